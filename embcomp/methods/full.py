"""Full: the table without compression."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from embcomp.methods.base import Chunk, Concat, Encoder, Ladder, Method, Plan, Rows, Sizes, Store, Table, TablePlan
from embcomp.methods.together import Parts
from embcomp.ops.together.digits import own_rows


class IdentityEncoder(Encoder):
    """An encoder in which each id is its own row."""

    def encode(self, ids: Tensor) -> list[Rows]:
        return [Rows(ids.unsqueeze(-1))]

    @classmethod
    def encode_together(cls, asked: Parts) -> Rows:
        """Encode the ids of several encoders at once (`embcomp.methods.together`)."""
        return Rows(own_rows(asked.batch))


@dataclass(frozen=True, kw_only=True, eq=False)
class Full(Method):
    """The method that compresses nothing: one row per id. Use it to exclude a table from a wider pattern.

    Example:
        >>> import embcomp, torch
        >>> model = torch.nn.ModuleDict({"user": torch.nn.Embedding(900, 8), "country": torch.nn.Embedding(20, 8)})
        >>> report = embcomp.compress_(model, {"country": embcomp.Full(), "*": embcomp.HashingTrick(rows=90)})
        >>> model["country"]
        Embedding(20, 8)
    """

    sized_in_steps: ClassVar[bool] = True

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        return Sizes({table.name: Store(table.ids_or_raise("Full"), table.embedding_dim) for table in tables})

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        plans = [
            TablePlan(table, IdentityEncoder(table, self.config()), (Chunk(table.name),), Concat()) for table in tables
        ]
        return Plan(dict(self.sizes(tables).stores), plans)

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return a ladder with one size."""
        return Ladder(lambda size: cls(**fixed), lambda size: cls(**fixed).sizes(tables), most=1)
