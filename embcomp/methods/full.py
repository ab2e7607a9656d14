"""The table as it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from embcomp.methods.base import (
    Budget,
    Chunk,
    Concat,
    Count,
    Encoder,
    Method,
    Plan,
    Rows,
    Store,
    Table,
    TablePlan,
    Tables,
)
from embcomp.methods.budget import BudgetTooSmall
from embcomp.methods.request import request


class IdentityEncoder(Encoder):
    """An id is its row."""

    def encode(self, ids: Tensor) -> list[Rows]:
        return [Rows(ids.unsqueeze(-1))]


@dataclass(frozen=True, kw_only=True, eq=False)
class Full(Method):
    """No compression: one row per id. Excludes a table from a wider pattern.

    Example:
        >>> import embcomp, torch
        >>> model = torch.nn.ModuleDict({"user": torch.nn.Embedding(900, 8), "country": torch.nn.Embedding(20, 8)})
        >>> report = embcomp.compress_(model, {"country": embcomp.Full(), "*": embcomp.HashingTrick(rows=90)})
        >>> model["country"]
        Embedding(20, 8)
    """

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        stores = {table.name: Store(table.ids_or_raise("Full"), table.embedding_dim) for table in tables}
        plans = [
            TablePlan(table, IdentityEncoder(table, self.config()), (Chunk(table.name),), Concat()) for table in tables
        ]
        return Plan(stores, plans)

    @classmethod
    def for_budget(cls, tables: Tables, nbytes: Budget, *, count: Count = "served", **fixed: Any) -> Self:
        tables, nbytes = request(tables, nbytes, count)
        method = cls(**fixed)
        needed = method.plan(tables).nbytes()
        if needed > nbytes:
            raise BudgetTooSmall(
                f"Full: a budget of {nbytes} bytes is too small; the full tables take {needed} bytes", needed
            )
        return method
