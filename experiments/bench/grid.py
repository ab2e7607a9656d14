"""Look-ups in tables trained in few bits, in the form that `embcomp.export` writes, for `bench serving`."""

from collections.abc import Callable

import torch
from torch import Tensor

from embcomp.codecs.grid import Grid
from embcomp.ops.grid_rows import grid_bags_by_torch
from embcomp.serving.coded import CodedStore, serve_coded
from embcomp.serving.stores import serve

BITS, BAG = (4, 2), 8

Calls = dict[str, Callable[[], object]]


def calls(table: Tensor, batches: list[Tensor]) -> tuple[str, Calls, str, Calls]:
    """Return calls of one look-up per bag, and of bags of 8, by name, and the name of the float32 form among them."""
    number, dim = table.shape
    whole = serve(table, "float32", torch.float32, "bench")
    single = f"one look-up, float32, width {dim}, {4 * dim} B"
    bags = f"bags of {BAG}, float32, width {dim}, {4 * dim} B"
    offsets = torch.arange(0, len(batches[0]) + 1, BAG)
    one: Calls = {single: lambda: [whole.look_up(ids.unsqueeze(1)) for ids in batches]}
    many: Calls = {bags: lambda: [whole.pool(ids.unsqueeze(1), offsets) for ids in batches]}
    for bits in BITS:
        codec = Grid(bits).module(number, dim)
        codec.fit_(table)
        store = serve_coded(table, codec, torch.float32, "bench")
        size = f"{bits} bits, width {dim}, {store.table.nbytes / len(table):g} B"
        one[f"one look-up, {size}"] = lambda store=store: [store.look_up(ids.unsqueeze(1)) for ids in batches]
        many[f"bags of {BAG}, {size}"] = lambda store=store: [store.pool(ids.unsqueeze(1), offsets) for ids in batches]
        plain = _plain(store, bits)
        one[f"one look-up, plain torch, {size}"] = lambda plain=plain: [plain(ids, None) for ids in batches]
        many[f"bags of {BAG}, plain torch, {size}"] = lambda plain=plain: [plain(ids, offsets) for ids in batches]
    return single, one, bags, many


def _plain(store: CodedStore, bits: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    table, step, dim = store.table, store.get_buffer("step"), store.dim
    return lambda ids, offsets: grid_bags_by_torch(table, bits, dim, step, 0, ids, offsets)
