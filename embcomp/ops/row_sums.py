"""Sums into the rows of a table: values that are added to the rows that an id reads."""

import torch
from torch import Tensor

from embcomp.ops import native
from embcomp.ops.checks import readable
from embcomp.ops.tables import Bags, table_gradient


def add_rows_reference(table: Tensor, rows: Tensor, values: Tensor, weights: Tensor | None = None) -> None:
    """Compute `add_rows` in plain torch, on any device."""
    for read in range(rows.shape[1]):
        each = values if weights is None else values * weights[:, read : read + 1]
        table.index_add_(0, rows[:, read], each.to(table.dtype))


def add_rows(table: Tensor, rows: Tensor, values: Tensor, weights: Tensor | None = None) -> None:
    """Add the values of each id to all rows that it reads, in place.

    Args:
        table: the rows, floats [rows, dim].
        rows: the rows that each id reads, int64 [N, lookups].
        values: the values of each id, float32 [N, dim].
        weights: the factor of each read, float32 [N, lookups]; None for 1.

    Raises:
        IndexError: a row is not in the table.

    Example:
        >>> import torch
        >>> table = torch.zeros(3, 1)
        >>> add_rows(table, torch.tensor([[0, 2], [2, 2]]), torch.tensor([[1.0], [10.0]]))
        >>> table
        tensor([[ 1.],
                [ 0.],
                [21.]])
    """
    weights = None if weights is None else weights.float()
    given = [table, rows, values] if weights is None else [table, rows, values, weights]
    plain = table.dtype == torch.float32 and table.is_contiguous() and readable(*given)
    if not plain or native.library() is None:
        return add_rows_reference(table, rows, values, weights)
    number, lookups = rows.shape
    bags = Bags(
        rows.reshape(-1).contiguous(), torch.arange(0, number * lookups + 1, lookups, device="cpu"),
        None if weights is None else weights.reshape(-1).contiguous(), torch.zeros(1, dtype=torch.int64, device="cpu"),
    )  # fmt: skip
    table_gradient(table.shape, bags, values.contiguous(), table)
    return None
