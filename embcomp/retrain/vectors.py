"""The vectors of one table, whatever module holds it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from embcomp.nn.table import CompressedTable
from embcomp.ops.checks import check_tensor
from embcomp.settings import shown

Vectors = nn.Module | Tensor | Callable[[Tensor], Tensor]
"""A table, its vectors [num_embeddings, embedding_dim], or a function from ids to vectors."""


def vectors_of(table: Any, ids: Tensor, name: str) -> Tensor:
    """Return the vectors of ids, [n] -> [n, embedding_dim], differentiably if the table is trained.

    Raises:
        TypeError: `table` holds no vectors, or ids are not integers.
        IndexError: an id is beyond the table.
    """
    check_tensor(ids, "ids")
    if ids.is_floating_point() or ids.ndim != 1:
        raise TypeError(f"ids must be integers [n], got {ids.dtype} {list(ids.shape)}")
    if isinstance(table, CompressedTable):
        return table.materialize(ids)
    weight = table if isinstance(table, Tensor) else getattr(table, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2:
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(weight):
            raise IndexError(f"{name} has {len(weight)} vectors, ids reach from {int(ids.min())} to {int(ids.max())}")
        return weight[ids]
    if callable(table):
        vectors = table(ids)
        if isinstance(vectors, Tensor) and vectors.ndim == 2 and len(vectors) == len(ids):
            return vectors
    raise TypeError(
        f"{name} must be a table, its vectors [num_embeddings, dim], or give them for ids; got {shown(table)}"
    )


def rows_of(table: Any) -> int | None:
    """Return the number of ids of a table; None if it is unknown."""
    if isinstance(table, Tensor):
        return len(table)
    return getattr(table, "num_embeddings", None)
