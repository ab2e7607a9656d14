"""`python -m experiments bench serving`: look-ups in the stores that `embcomp.export` writes, and in other layouts.

Each name tells the bytes of a row. `torch.ops.quantized` is the kernel of the int8 and int4 stores, with a scale for
each row, even if it is narrow; "gathered" is the same arithmetic in plain torch with float16 scales; `torchrec.quant`
pads rows to 16 bytes. Rows that were trained in few bits are compared one by one and in bags.
"""

from collections.abc import Callable

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
    IntNBitTableBatchedEmbeddingBagsCodegen,
    rounded_row_size_in_bytes,
)
from rich.console import Console
from torch import Tensor

from embcomp.serving.quantize import quantize
from embcomp.serving.stores import DTYPES, serve
from experiments.bench import BenchRow, grid
from experiments.bench.timing import paired

FEATURES, BATCH, DIMS = 26, 8192, (8, 16, 32, 64, 128)
GRID_DIMS = (16, 32, 64, 128)

Form = Callable[[Tensor], Tensor]


def run(console: Console, *, rows: int = 1_000_000, rounds: int = 15) -> list[BenchRow]:
    """Time a look-up for each of 26 x 8192 ids in a table of `rows`, against float32 rows, for five widths."""
    results = []
    random = torch.Generator().manual_seed(0)
    batches = [torch.randint(rows, (BATCH,), generator=random) for _ in range(FEATURES)]
    for dim in DIMS:
        console.log(f"width {dim}")
        forms = _forms(torch.randn(rows, dim, generator=random))
        calls = {name: lambda form=form: [form(ids) for ids in batches] for name, form in forms.items()}
        results += paired(calls, against=f"float32, width {dim}, {4 * dim} B", rounds=rounds)
    for dim in GRID_DIMS:
        console.log(f"few bits, width {dim}")
        single, one, bags, many = grid.calls(torch.randn(rows, dim, generator=random), batches)
        results += paired(one, against=single, rounds=rounds)
        results += paired(many, against=bags, rounds=rounds)
    return results


def _forms(table: Tensor) -> dict[str, Form]:
    count, dim = table.shape
    forms: dict[str, Form] = {}
    for dtype in DTYPES:
        store = serve(table, dtype, torch.float32, "bench")
        name = f"{dtype}, width {dim}, {store.table.nbytes / count:g} B"
        forms[name] = lambda ids, store=store: store.look_up(ids.unsqueeze(1))
    order = torch.arange(BATCH + 1)
    if 2 * dim <= 32:  # wider rows have a scale of their own anyway
        own = torch.ops.quantized.embedding_bag_byte_prepack(table)
        kernel = torch.ops.quantized.embedding_bag_byte_rowwise_offsets
        forms[f"int8 by torch.ops.quantized, width {dim}, {own.shape[1]} B"] = lambda ids: kernel(
            own, ids, order, False, 0, False, None, None, True
        )
    forms[f"int8 gathered, width {dim}, {dim + 4} B"] = _gathered(table)
    for dtype, kind in (("int8", SparseType.INT8), ("int4", SparseType.INT4)):
        spec = ("bench", count, dim, kind, EmbeddingLocation.HOST)
        module = IntNBitTableBatchedEmbeddingBagsCodegen(
            [spec], device="cpu", pooling_mode=PoolingMode.SUM, output_dtype=SparseType.FP32, row_alignment=16
        )
        module.fill_random_weights()
        size, offsets = rounded_row_size_in_bytes(dim, kind, 16, 4), order.int()
        forms[f"{dtype} by torchrec.quant's FBGEMM, width {dim}, {size} B"] = (
            lambda ids, module=module, offsets=offsets: module(ids.int(), offsets)
        )
    return forms


def _gathered(table: Tensor) -> Form:
    codes, scale, bias = quantize(table, bits=8, half=True)
    pair = torch.cat([scale, bias], 1).half()

    def look_up(ids: Tensor) -> Tensor:
        grid = pair.index_select(0, ids).float()
        return torch.addcmul(grid[:, 1:], codes.index_select(0, ids).float(), grid[:, :1])

    return look_up
