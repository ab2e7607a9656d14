"""Compiled functions with arrays that do not fit each other: an error, or what the torch form gives.

On the sanitized build (`make sanitize`) a read beside an array ends the run.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from embcomp.graph.moves import Graph, local_moves, local_moves_reference, symmetric
from embcomp.ops import buckets, native, tables
from embcomp.ops.balanced import Domain, balanced_rows, balanced_rows_reference
from embcomp.ops.buckets import Histories
from embcomp.ops.hashing import hash_rows, hash_rows_by_key, hash_rows_reference
from embcomp.ops.optimizers import FusedOptimizerSettings
from embcomp.ops.packing import pack, unpack, unpack_known, unpack_known_reference, unpack_reference
from embcomp.ops.tables import Bags
from embcomp.ops.updates import update_rows, update_rows_reference
from tests.fuzz.fuzzing import CLEAR, REFUSED, Tally, fuzz
from tests.fuzz.values import damaged, spoil_numbers

Arrays = dict[str, Tensor]
DTYPES = [torch.int32, torch.float64, torch.float16, torch.bool]


def draw_arrays(name: str, g: torch.Generator) -> Arrays:
    """Arrays that fit each other."""

    def below(limit: int, *shape: int) -> Tensor:
        return torch.randint(0, limit, shape, generator=g)

    if name in ("hash_rows", "hash_rows_by_key"):
        return {"ids": below(99, 5), "keys": below(10**9, 3)}
    if name == "balanced_rows":
        return {"ids": below(40, 5), "keys": below(10**9, 2, 8)}
    if name.startswith("unpack"):
        return {"words": pack(below(7, 12), 3), "ids": below(4, 5)}
    if name in ("pool", "gradient", "update"):
        offsets = torch.cat([torch.tensor([0]), below(4, 6).cumsum(0)])
        total = int(offsets[-1])
        return {
            "table": torch.randn(7, 3, generator=g), "rows": below(7, total), "offsets": offsets,
            "weights": torch.randn(total, generator=g), "columns": torch.tensor([3, 0]),
            "wide": torch.randn(3, 6, generator=g),
        }  # fmt: skip
    if name == "moves":
        ends = below(6, 2, 9)
        starts, adjacency, _ = symmetric(*ends[:, ends[0] != ends[1]].numpy(), None, 6)
        return {
            "starts": torch.from_numpy(starts), "adjacency": torch.from_numpy(adjacency),
            "order": torch.randperm(6, generator=g).int(), "labels": torch.arange(6).int(),
            "out": torch.rand(6, generator=g).double(), "inn": torch.rand(6, generator=g).double(),
        }  # fmt: skip
    return {
        "values": torch.randn(6, 4, generator=g), "signatures": below(8, 6, 1), "offsets": torch.tensor([0, 2, 5]),
        "places": below(6, 5), "mask": below(2, 5).bool(), "asked": below(8, 2, 3, 1),
        "sums": torch.randn(2, 1, 8, 4, generator=g),
    }  # fmt: skip


def _bags(a: Arrays) -> Bags:
    return Bags(a["rows"], a["offsets"], a["weights"], a["columns"])


def _events(a: Arrays) -> Histories:
    return Histories(a["signatures"], a["offsets"], 1, 3, a["mask"], a["places"])


def _pooled(pool: Callable[..., None], a: Arrays) -> Tensor:
    out = a["wide"].clone() if a["wide"].is_contiguous() else a["wide"]
    pool(a["table"], _bags(a), out)
    return out


def _updated(update: Callable[..., None], a: Arrays) -> Tensor:
    table, states = a["table"].clone(), {"sum": torch.zeros(len(a["table"]))}
    update(table, states, _bags(a), a["wide"], FusedOptimizerSettings("rowwise_adagrad", 0.1, 1e-3))
    return table


def _moved(move: Callable[..., np.ndarray], a: Arrays) -> Tensor:
    n = {name: value.numpy() for name, value in a.items()}
    graph = Graph(n["starts"], n["adjacency"], None, n["out"], n["inn"])
    return torch.from_numpy(move(graph, 0.1, 1e-9, n["order"], 3, n["labels"]))


def _by_loops(a: Arrays) -> Tensor:
    """Bucket sums of masked events at places, added up one by one."""
    batch = len(a["offsets"]) - 1
    sums = torch.zeros(batch, 1, 8, a["values"].shape[1])
    for b in range(batch):
        for t in range(int(a["offsets"][b]), int(a["offsets"][b + 1])):
            row = int(a["places"][t])
            if a["mask"][t]:
                sums[b, 0, int(a["signatures"][row, 0]) & 7] += a["values"][row]
    return sums


def _collided(a: Arrays) -> Tensor:
    sums = _by_loops(a)
    return torch.stack([sums[b, 0, a["asked"][b, :, 0] & 7].unsqueeze(1) for b in range(len(sums))])


def _gathered(a: Arrays) -> Tensor:
    out = torch.zeros(5, a["sums"].shape[3])
    for b in range(len(a["offsets"]) - 1):
        for t in range(int(a["offsets"][b]), int(a["offsets"][b + 1])):
            if a["mask"][t]:
                out[t] = a["sums"][b, 0, int(a["signatures"][t, 0]) & 7]
    return out


OPS: dict[str, tuple[Callable[[Arrays], Tensor], Callable[[Arrays], Tensor]]] = {
    "hash_rows": (lambda a: hash_rows(a["ids"], a["keys"], 9), lambda a: hash_rows_reference(a["ids"], a["keys"], 9)),
    "hash_rows_by_key": (
        lambda a: hash_rows_by_key(a["ids"], a["keys"], 9), lambda a: hash_rows_reference(a["ids"], a["keys"], 9).t(),
    ),
    "balanced_rows": (
        lambda a: balanced_rows(a["ids"], a["keys"], 40, 30),
        lambda a: balanced_rows_reference(a["ids"], a["keys"], Domain.of(40, 30)),
    ),
    "unpack": (lambda a: unpack(a["words"], 3, a["ids"]), lambda a: unpack_reference(a["words"], 3, a["ids"])),
    "unpack wide": (
        lambda a: unpack(a["words"], 3, a["ids"], 3), lambda a: unpack_reference(a["words"], 3, a["ids"], 3),
    ),
    "unpack_known": (
        lambda a: unpack_known(a["words"], 3, a["ids"], 12, 5),
        lambda a: unpack_known_reference(a["words"], 3, a["ids"], 12, 5),
    ),
    "pool": (lambda a: _pooled(tables.pool_bags, a), lambda a: _pooled(tables.pool_bags_reference, a)),
    "gradient": (
        lambda a: tables.table_gradient(a["table"].shape, _bags(a), a["wide"]),
        lambda a: tables.table_gradient_reference(a["table"].shape, _bags(a), a["wide"]),
    ),
    "update": (lambda a: _updated(update_rows, a), lambda a: _updated(update_rows_reference, a)),
    "moves": (lambda a: _moved(local_moves, a), lambda a: _moved(local_moves_reference, a)),
    "scatter": (lambda a: buckets.scatter(a["values"], _events(a))[0], _by_loops),
    "collide": (lambda a: buckets.collide(a["values"], _events(a), a["asked"])[0], _collided),
    "gather": (
        lambda a: buckets.gather(a["sums"], Histories(a["signatures"][:5], a["offsets"], 1, 3, a["mask"])),
        _gathered,
    ),
}  # fmt: skip


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, Arrays, bool]:
    name = draw(st.sampled_from(sorted(OPS)))
    arrays = draw_arrays(name, torch.Generator().manual_seed(draw(st.integers(0, 99))))
    if how := draw(st.sampled_from(["", "numbers", "numbers", "shape", "dtype"])):
        which = draw(st.sampled_from(sorted(arrays)))
        fixed = which == "words" or name == "balanced_rows"  # which promise nothing for ids that are none
        if how == "numbers" and not fixed and not arrays[which].is_floating_point():
            arrays[which] = draw(spoil_numbers(arrays[which]))
        elif how == "shape":
            arrays[which] = draw(damaged(arrays[which], ["scalar", "more", "less", "longer", "scattered"]))
        elif how == "dtype":
            arrays[which] = arrays[which].to(draw(st.sampled_from(DTYPES)))
    return name, arrays, bool(how)


def check(case: tuple[str, Arrays, bool], tally: Tally) -> None:
    name, arrays, spoilt = case
    call, reference = OPS[name]
    try:
        found = call(arrays)
    except (*CLEAR, RuntimeError):
        assert spoilt
        tally[REFUSED] += 1
        return
    torch.testing.assert_close(found, reference(arrays).to(found.dtype), rtol=1e-4, atol=1e-5)
    tally.is_right()


@pytest.mark.skipif(native.library() is None, reason="needs a C++ compiler")
def test_arrays_that_do_not_fit(record_property) -> None:
    fuzz(record_property, "compiled functions", cases(), check, tries=1200)
