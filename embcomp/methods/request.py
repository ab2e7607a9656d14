"""The request of a `for_budget` call: tables or a whole model, and a budget as users write it."""

from collections.abc import Iterable, Sequence
from functools import singledispatch
from typing import Any, TypeAlias

from torch import Tensor, nn

from embcomp.formats import parse_nbytes
from embcomp.methods.plan import FLOAT_BYTES, Count
from embcomp.methods.table import Table
from embcomp.settings import Bytes, checked, shown

Tables: TypeAlias = Sequence[Table] | nn.Module
"""The tables that a method compresses together: a sequence of tables, or a model for all of its tables."""
Budget: TypeAlias = int | float | str
"""A budget in bytes: a number, "50MB", or "10%" of the full tables (`embcomp.sizes.parse_nbytes`)."""


@singledispatch
def tables_of(asked: Any) -> list[Table]:
    """Return the tables to compress. `embcomp.swaps` registers the rule for models here.

    Raises:
        TypeError: `asked` is neither tables nor a model.
    """
    tables: list[Any] = list(asked) if isinstance(asked, Iterable) and not isinstance(asked, Tensor) else [asked]
    if isinstance(asked, Table) or not all(isinstance(table, Table) for table in tables):
        raise TypeError(f"tables must be a model, or a sequence of embcomp.Table; got {shown(asked)}")
    return tables


def request(tables: Tables, nbytes: Budget, count: Count = "served") -> tuple[list[Table], int]:
    """Return the tables and the whole bytes of a call of `for_budget`.

    Raises:
        TypeError, ValueError: `tables_of` or `embcomp.sizes.parse_nbytes` refuses its argument, or `count` is invalid.

    Example:
        >>> import torch, embcomp
        >>> from embcomp.methods.request import request
        >>> request(torch.nn.ModuleDict({"item": torch.nn.Embedding(1000, 16)}), "10%")
        ([Table(name='item', num_embeddings=1000, embedding_dim=16)], 6400)
    """
    checked(count, Count, "count")
    table_list = tables_of(tables)
    names = [table.name for table in table_list]
    twice = next((name for name in names if names.count(name) > 1), None)
    if not names or twice is not None:
        raise ValueError(
            f"tables must have different names, got {twice!r} twice"
            if names
            else "tables: a budget needs at least one, got none"
        )
    closed = all(table.num_embeddings is not None for table in table_list)
    full = sum((table.num_embeddings or 0) * table.embedding_dim for table in table_list) * FLOAT_BYTES
    return table_list, checked(parse_nbytes(nbytes, full if closed else None), Bytes, "nbytes")
