"""What `for_budget` is asked for: tables or a whole model, and a budget as its user writes it."""

from collections.abc import Iterable, Sequence
from functools import singledispatch
from typing import Any, TypeAlias

from torch import Tensor, nn

from embcomp.methods.plan import FLOAT_BYTES, Count
from embcomp.methods.table import Table
from embcomp.settings import Bytes, checked, shown
from embcomp.sizes import parse_nbytes

Tables: TypeAlias = Sequence[Table] | nn.Module
"""What a method compresses together: tables, or all those of a model."""
Budget: TypeAlias = int | float | str
"""Bytes: a number, "50MB", or "10%" of the full tables (`embcomp.sizes.parse_nbytes`)."""


@singledispatch
def tables_of(asked: Any) -> list[Table]:
    """The tables to compress. What knows where models keep theirs registers that here (`embcomp.swaps`).

    Raises:
        TypeError: neither tables nor a model.
    """
    tables: list[Any] = list(asked) if isinstance(asked, Iterable) and not isinstance(asked, Tensor) else [asked]
    if isinstance(asked, Table) or not all(isinstance(table, Table) for table in tables):
        raise TypeError(f"tables must be a model, or a sequence of embcomp.Table; got {shown(asked)}")
    return tables


def request(tables: Tables, nbytes: Budget, count: Count = "served") -> tuple[list[Table], int]:
    """The tables and the whole bytes of a call of `for_budget`.

    Raises:
        TypeError, ValueError: what `tables_of` and `embcomp.sizes.parse_nbytes` refuse; another `count`.

    Example:
        >>> import torch, embcomp
        >>> from embcomp.methods.request import request
        >>> request(torch.nn.ModuleDict({"item": torch.nn.Embedding(1000, 16)}), "10%")
        ([Table(name='item', num_embeddings=1000, embedding_dim=16)], 6400)
    """
    checked(count, Count, "count")
    found = tables_of(tables)
    names = [table.name for table in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if not names or twice is not None:
        raise ValueError(
            f"tables must have different names, got {twice!r} twice"
            if names
            else "tables: a budget needs some to spend it on, got none"
        )
    closed = all(table.num_embeddings is not None for table in found)
    full = sum((table.num_embeddings or 0) * table.embedding_dim for table in found) * FLOAT_BYTES
    return found, checked(parse_nbytes(nbytes, full if closed else None), Bytes, "nbytes")
