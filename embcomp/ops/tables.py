"""Pooled look-ups over plain float32 tables on CPU: the compiled form, and a form in torch.

FBGEMM's table-batched embedding does the same. This form is faster if many narrow rows are read from one large table
(`python -m experiments bench lookup`), as in Unified Embedding.
"""

import contextlib
import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embcomp.ops import native
from embcomp.ops.checks import (
    MOST_ROWS,
    check_inside,
    check_offsets,
    check_rows_inside,
    check_unchanged,
    float32,
    int64,
    size,
    versions,
)
from embcomp.ops.grid import RowGrid
from embcomp.ops.optimizers import FusedOptimizerSettings as FusedOptimizerSettings  # pickles name it here

_MADV_HUGEPAGE = 14
_MISFIT = "{} offsets do not fit {} features: give features * batch + 1"
# What C functions read and write, whatever torch.set_default_dtype and set_default_device say.
_FLOAT: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}


@dataclass(frozen=True)
class Bags:
    """Bags of rows of several features that read one table.

    Attributes:
        rows: the rows, int64, feature by feature and bag by bag; rows of other tables may precede and follow.
        offsets: the bounds of the bags in `rows`, int64 [features * batch + 1].
        weights: the weights of the rows, float32 like `rows`; None for 1.
        columns: the first output column of each feature, int64 [features].
        name: the name of the table, for errors.
    """

    rows: Tensor
    offsets: Tensor
    weights: Tensor | None
    columns: Tensor
    name: str = ""

    def check(self, shape: Sequence[int], width: int) -> None:
        """Raise if these bags cannot be read from a table of this shape, [rows, dim], into columns below `width`.

        Raises:
            ValueError: shapes, offsets or columns do not fit.
            IndexError: a row is not in the table.
        """
        (rows, dim), features = shape, self.columns.numel()
        try:
            if self._fit(rows, width - dim):
                return  # the rest is slower, and has the text of the error
            check_offsets(self.offsets, self.rows.numel())
            if features == 0 or (self.offsets.numel() - 1) % features:
                raise ValueError(_MISFIT.format(self.offsets.numel(), features))
            if max(rows, self.rows.numel()) > MOST_ROWS:
                raise ValueError(f"{rows} rows, {self.rows.numel()} look-ups: at most {MOST_ROWS} are numbered")
            check_inside(self.columns, max(0, width - dim + 1), "first column", "the output")
            check_rows_inside(self.rows, self.offsets, rows)
        except (ValueError, IndexError) as error:
            if not self.name:
                raise
            raise type(error)(f"table {self.name!r}: {error}") from None

    def _fit(self, rows: int, last_column: int) -> bool:
        """Return whether all is known to fit, in one pass of the compiled form; False where another look is needed."""
        lib, total, bounds = native.library(), self.rows.numel(), self.offsets.numel()
        features = self.columns.numel()
        if lib is None or last_column < 0 or not bounds or not features or (bounds - 1) % features:
            return False
        given = self.rows, self.offsets, self.columns
        if max(rows, total) > MOST_ROWS or not all(each.dim() == 1 and each.is_contiguous() for each in given):
            return False
        return not lib.bags_astray(
            int64("rows", self.rows, total), size(total), int64("offsets", self.offsets, bounds), size(bounds),
            ctypes.c_int64(rows), int64("columns", self.columns, features), size(features), ctypes.c_int64(last_column),
        )  # fmt: skip

    def arguments(self) -> tuple[Any, ...]:
        """The rows, offsets, weights, features and batch, in the form for C++."""
        total, features = self.rows.numel(), self.columns.numel()
        return (
            int64("rows", self.rows, total), int64("offsets", self.offsets, self.offsets.numel()),
            float32("weights", self.weights, total), size(features), size(self.batch),
        )  # fmt: skip

    def own(self) -> "Bags":
        """The bags without rows of other tables: offsets from 0, and rows and weights cut to them."""
        first, last = int(self.offsets[0]), int(self.offsets[-1])
        weights = None if self.weights is None else self.weights[first:last]
        return Bags(self.rows[first:last], self.offsets - first, weights, self.columns, self.name)

    def columns_of_rows(self, dim: int) -> tuple[Tensor, Tensor]:
        """The position of each row's gradient: batch positions [N, 1] and output columns [N, dim]."""
        bag = torch.repeat_interleave(torch.arange(self.offsets.numel() - 1, device="cpu"), self.offsets.diff())
        columns = self.columns[bag // self.batch].unsqueeze(-1) + torch.arange(dim, device="cpu")
        return (bag % self.batch).unsqueeze(-1), columns

    @property
    def batch(self) -> int:
        return (self.offsets.numel() - 1) // self.columns.numel()


def bags_of_tables(
    rows: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    columns: Sequence[Tensor],
    names: Sequence[str] = (),
) -> list[Bags]:
    """Split the bags of a batch into those of each table, whose features are consecutive; see `Bags.check`.

    Args:
        rows: the rows, int64 [N], contiguous.
        offsets: the bounds of the bags, int64 [features * batch + 1], contiguous.
        weights: the weights of the rows, float32 [N], contiguous, or None.
        columns: the first output column of each feature, for each table.
        names: the names of the tables, for errors.

    Raises:
        ValueError: the offsets do not cover the rows, or do not fit the features.
    """
    features = sum(own.numel() for own in columns)
    if features == 0 or (offsets.numel() - 1) % features:
        raise ValueError(_MISFIT.format(offsets.numel(), features))
    if int(offsets[0]) != 0 or int(offsets[-1]) != rows.numel():
        ends = f"[{int(offsets[0])}, {int(offsets[-1])}]"
        raise ValueError(f"offsets must begin at 0 and end with the number of rows, {rows.numel()}; got {ends}")
    batch = (offsets.numel() - 1) // features
    result, first = [], 0
    for i, own in enumerate(columns):
        last = first + own.numel() * batch
        result.append(Bags(rows, offsets[first : last + 1], weights, own, names[i] if names else ""))
        first = last
    return result


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
        for table, bags in zip(tables, ctx.bags, strict=True):
            pool_bags(table.detach().contiguous(), bags, out)
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
    """Write the sum of each bag's rows into `out` [batch, columns], float32, row-major.

    The rows are read as they are, or rounded to their grid.
    """
    bags.check(table.shape, out.shape[1])
    lib = native.library()
    if lib is None:
        return pool_bags_reference(table, bags, out, grid)
    rows, dim = table.shape
    lib.bag_forward(
        float32("table", table, rows, dim), size(0), size(dim), *grid_arguments(grid, rows), *bags.arguments(),
        float32("out", out, bags.batch, out.shape[1]), size(out.shape[1]),
        int64("columns", bags.columns, bags.columns.numel()),
    )  # fmt: skip
    return None


def grid_arguments(grid: RowGrid | None, rows: int) -> tuple[Any, ...]:
    """The steps, the number of rows that share one, and the bits, in the form for C++."""
    if grid is None:
        return ctypes.c_void_p(None), ctypes.c_int64(0), ctypes.c_int(0)
    steps = -(-rows // grid.shared) if grid.shared else 1
    return float32("step", grid.step.detach(), steps), ctypes.c_int64(grid.shared), ctypes.c_int(grid.bits)


def weight_gradient(table: Tensor, bags: Bags, grad: Tensor, grid: RowGrid | None = None) -> Tensor:
    """Compute the gradient of the weights of `bags.own()`: each row's product with the gradient of its bag."""
    bags, table = bags.own(), table if grid is None else grid.snapped(table)
    return (grad[bags.columns_of_rows(table.shape[1])] * table[bags.rows]).sum(1)
