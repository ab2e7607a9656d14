"""The bags of a batch that one table is asked for, checked, and in the form for C++ (`embcomp/native/request.h`)."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from embcomp.ops import native
from embcomp.ops.checks import (
    MOST_ROWS,
    check_inside,
    check_offsets,
    check_rows_inside,
    float32,
    int64,
    size,
)
from embcomp.ops.grid import RowGrid

_MISFIT = "{} offsets do not fit {} features: give features * batch + 1"


class Request(ctypes.Structure):
    """One table, and what the bags of a batch ask of it. The tensors that it points to must be kept beside it."""

    _fields_ = [
        ("table", ctypes.c_void_p), ("row_bytes", ctypes.c_uint64), ("num_rows", ctypes.c_uint64),
        ("dim", ctypes.c_uint64), ("steps", ctypes.c_void_p), ("shared", ctypes.c_int64), ("bits", ctypes.c_int64),
        ("rows", ctypes.c_void_p), ("offsets", ctypes.c_void_p), ("total", ctypes.c_uint64),
        ("weights", ctypes.c_void_p),
        ("features", ctypes.c_uint64), ("batch", ctypes.c_uint64), ("columns", ctypes.c_void_p),
    ]  # fmt: skip


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
        if lib is None or not self._may_fit(rows, 0, last_column):
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

    def request(self, table: ctypes.c_void_p, rows: int, dim: int, grid: RowGrid | None, row_bytes: int = 0) -> Request:
        """Return the request to a table of this shape, not checked; `row_bytes` is 0 for a table of floats."""
        steps, shared, bits = None, 0, 0
        if grid is not None:
            number = 256 if row_bytes else -(-rows // grid.shared) if grid.shared else 1
            steps, shared, bits = float32("step", grid.step.detach(), number).value, grid.shared, grid.bits
        total, features = self.rows.numel(), self.columns.numel()
        return Request(
            table.value, row_bytes, rows, dim, steps, shared, bits,
            int64("rows", self.rows, total).value, int64("offsets", self.offsets, self.offsets.numel()).value, total,
            float32("weights", self.weights, total).value, features, self.batch,
            int64("columns", self.columns, features).value,
        )  # fmt: skip

    def _may_fit(self, rows: int, dim: int, width: int) -> bool:
        bounds, features = self.offsets.numel(), self.columns.numel()
        given = self.rows, self.offsets, self.columns
        return (
            width >= dim and bounds > 0 and features > 0 and (bounds - 1) % features == 0
            and max(rows, self.rows.numel()) <= MOST_ROWS
            and all(each.dim() == 1 and each.is_contiguous() for each in given)
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


class Asked(NamedTuple):
    """The bags of one table, the memory and the shape of the table, its grid, and the bytes of a row of integers."""

    bags: Bags
    table: ctypes.c_void_p
    rows: int
    dim: int
    grid: RowGrid | None
    row_bytes: int = 0


def requests_of(tables: Sequence[Tensor], parts: Sequence[Bags], width: int, grids: Sequence[RowGrid | None]) -> Any:
    """Return the requests of bags to tables, float32 [rows, dim] each, as an array for C++; see `checked`."""
    asked = []
    for table, bags, grid in zip(tables, parts, grids, strict=True):
        rows, dim = table.shape
        asked.append(Asked(bags, float32("table", table, rows, dim), rows, dim, grid))
    return checked(asked, width)


def checked(asked: Sequence[Asked], width: int) -> Any:
    """Return requests as an array for C++, after one pass of the compiled form over all that it will read.

    Args:
        asked: the bags of each table, all of one batch.
        width: the number of columns of the output.

    Raises:
        ValueError: shapes, offsets, columns or batches do not fit, or memory is not as C++ reads it.
        IndexError: a row is not in its table.
    """
    for each in asked:
        if not each.bags._may_fit(each.rows, each.dim, width):
            each.bags.check((each.rows, each.dim), width)
    if len(batches := {each.bags.batch for each in asked}) > 1:
        raise ValueError(f"tables are read by batches of {sorted(batches)} bags: give bags of one batch")
    made = [each.bags.request(each.table, each.rows, each.dim, each.grid, each.row_bytes) for each in asked]
    requests, lib = (Request * len(made))(*made), native.library()
    if lib is None or lib.requests_astray(requests, size(len(made)), size(width)):
        for each in asked:
            each.bags.check((each.rows, each.dim), width)
    return requests
