"""Pooled look-ups over plain float32 tables on CPU: the compiled form, and a form in torch.

FBGEMM's table-batched embedding does the same. This form is faster if many narrow rows are read from one large table
(`python -m experiments bench lookup`), as in Unified Embedding.
"""

import contextlib
import ctypes
import mmap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from embcomp.ops import native
from embcomp.ops.checks import check_unchanged, float32, int64, size, versions
from embcomp.ops.grid import RowGrid
from embcomp.ops.optimizers import FusedOptimizerSettings as FusedOptimizerSettings  # pickles name it here
from embcomp.ops.requests import Bags, bags_of_tables, requests_of

_MADV_HUGEPAGE = 14
# What C functions read and write, whatever torch.set_default_dtype and set_default_device say.
_FLOAT: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}


class SumBags(torch.autograd.Function):
    """The function of sum-pooled bags of several tables, float32 on CPU, with dense gradients.

    `SumBags.apply(rows, offsets, weights, columns, *tables)` takes int64 [N], int64 [features * batch + 1], float32 [N]
    or None, for each table the first output column of each of its features (int64, on CPU), and the tables, [rows, dim]
    each. It returns [batch, sum of widths].
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, offsets: Tensor, weights: Tensor | None, columns: Sequence[Tensor], *tables: Tensor
    ) -> Tensor:
        ctx.shapes = [table.shape for table in tables]
        if ctx.needs_input_grad[2]:  # else the rows may change before the backward pass, as with torch's own bags
            ctx.save_for_backward(weights, *tables)
        given = None if weights is None else weights.detach().float().contiguous()
        ctx.given = rows.contiguous(), offsets.contiguous(), given
        ctx.versions = versions(*ctx.given)
        ctx.bags = bags_of_tables(*ctx.given, columns)
        width = sum(table.shape[1] * own.numel() for table, own in zip(tables, columns, strict=True))
        out = torch.empty(ctx.bags[0].batch, width, **_FLOAT)
        pool_tables([table.detach().contiguous() for table in tables], ctx.bags, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        saved: Any = ctx.saved_tensors or (None,)
        weights, *tables = saved
        if torch.is_grad_enabled():  # create_graph=True
            made = _gradients(grads[0], ctx.bags, weights, ctx.shapes, tables)
            return None, None, made[0], None, *made[1]
        grad, weight_grad = grads[0].contiguous(), None
        check_unchanged(ctx.versions, *ctx.given)
        if ctx.needs_input_grad[2]:
            pairs = zip(tables, ctx.bags, strict=True)
            weight_grad = torch.cat([weight_gradient(table, bags, grad) for table, bags in pairs])
        table_grads = [
            table_gradient(shape, bags, grad) if needed else None
            for shape, bags, needed in zip(ctx.shapes, ctx.bags, ctx.needs_input_grad[4:], strict=True)
        ]
        return None, None, weight_grad, None, *table_grads


def _gradients(
    grad: Tensor, bags: Sequence[Bags], weights: Tensor | None, shapes: Sequence[torch.Size], tables: Sequence[Tensor]
) -> tuple[Tensor | None, list[Tensor]]:
    """The gradients of the weights, if they are trained, and of the tables, by operations that torch differentiates."""
    of_weights, of_tables = [], []
    for i, (own, shape) in enumerate(zip(bags, shapes, strict=True)):
        first, last = int(own.offsets[0]), int(own.offsets[-1])
        mine = own.own()
        each = grad[mine.columns_of_rows(shape[1])]
        factors = mine.weights if weights is None else weights[first:last].float()
        weighted = each if factors is None else each * factors.unsqueeze(-1)
        of_tables.append(grad.new_zeros(shape).index_add(0, mine.rows, weighted))
        if weights is not None:
            of_weights.append((each * tables[i][mine.rows]).sum(1))
    return torch.cat(of_weights).to(weights.dtype) if weights is not None else None, of_tables


def table_gradient_reference(shape: torch.Size, bags: Bags, grad: Tensor, out: Tensor | None = None) -> Tensor:
    """Compute `table_gradient` in plain torch."""
    own = bags.own()
    each = grad[own.columns_of_rows(shape[1])]
    if own.weights is not None:
        each = each * own.weights.unsqueeze(-1)
    return (torch.zeros(shape, **_FLOAT) if out is None else out).index_add_(0, own.rows, each)


def table_gradient(shape: torch.Size, bags: Bags, grad: Tensor, out: Tensor | None = None) -> Tensor:
    """Compute the dense gradient of a table of this shape, [rows, dim], from that of its bags, [batch, columns].

    If `out` is given, float32 [rows, dim] and contiguous, the gradient is added to it.
    """
    bags.check(shape, grad.shape[1])
    lib = native.library()
    if lib is None:
        return table_gradient_reference(shape, bags, grad, out)
    out, width = torch.zeros(shape, **_FLOAT) if out is None else out, grad.shape[1]
    lib.bag_backward(
        float32("out", out, *shape), size(shape[1]), *bags.arguments(), float32("grad", grad, bags.batch, width),
        size(width), int64("columns", bags.columns, bags.columns.numel()),
    )  # fmt: skip
    return out


def empty_table(*shape: int) -> Tensor:
    """Allocate float32 memory for a table. Large tables ask for huge pages: random rows then cost no page walk."""
    table = torch.empty(*shape, **_FLOAT)
    huge = 1 << 21
    start = -(-table.data_ptr() // huge) * huge
    length = (table.data_ptr() + table.nbytes - start) // huge * huge
    if length > 0:
        with contextlib.suppress(AttributeError, OSError):  # another system: ordinary pages serve
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(length), getattr(mmap, "MADV_HUGEPAGE", _MADV_HUGEPAGE)
            )
    return table


def pool_bags_reference(table: Tensor, bags: Bags, out: Tensor, grid: RowGrid | None = None) -> None:
    """Compute `pool_bags` in plain torch."""
    table = table if grid is None else grid.snapped(table)
    bags, features, dim = bags.own(), bags.columns.numel(), table.shape[1]
    pooled = torch.nn.functional.embedding_bag(
        bags.rows, table, bags.offsets, mode="sum", per_sample_weights=bags.weights, include_last_offset=True
    )
    for f, column in enumerate(bags.columns.tolist()):
        out[:, column : column + dim] = pooled.view(features, -1, dim)[f]


def pool_bags(table: Tensor, bags: Bags, out: Tensor, grid: RowGrid | None = None) -> None:
    """Compute `pool_tables` for one table."""
    pool_tables([table], [bags], out, [grid])


def pool_tables(
    tables: Sequence[Tensor], parts: Sequence[Bags], out: Tensor, grids: Sequence[RowGrid | None] | None = None
) -> Any:
    """Write the sum of each bag's rows into `out` [batch, columns], float32, row-major, in one pass over `out`.

    Args:
        tables: the tables, float32 [rows, dim] each.
        parts: the bags of each table, of one batch.
        out: the output, of which the columns of other tables are left as they are.
        grids: the grid of each table to which rows are rounded as they are read; None for none.

    Returns:
        The requests of the compiled form, which were checked; None of the torch form.
    """
    grids = [None] * len(tables) if grids is None else grids
    lib = native.library()
    if lib is not None:
        requests = requests_of(tables, parts, out.shape[1], grids)
        pool_requests(lib, requests, out)
        return requests
    for table, bags, grid in zip(tables, parts, grids, strict=True):
        bags.check(table.shape, out.shape[1])
        pool_bags_reference(table, bags, out, grid)
    return None


def pool_requests(lib: ctypes.CDLL, requests: Any, out: Tensor) -> None:
    """Write the sums of bags of an array of requests that are checked, by the compiled form."""
    place, width = float32("out", out, requests[0].batch, out.shape[1]), size(out.shape[1])
    threads = size(torch.get_num_threads())
    native.within_memory(lib.pool_tables, requests, size(len(requests)), place, width, threads)


def weight_gradient(table: Tensor, bags: Bags, grad: Tensor, grid: RowGrid | None = None) -> Tensor:
    """Compute the gradient of the weights of `bags.own()`: each row's product with the gradient of its bag."""
    bags, table = bags.own(), table if grid is None else grid.snapped(table)
    return (grad[bags.columns_of_rows(table.shape[1])] * table[bags.rows]).sum(1)
