"""The first columns of a table, for tables that are trained to be good at every width."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor
from torch.nn import functional as F

from embcomp.methods.around import settings_around
from embcomp.methods.base import Combiner, Ladder, Method, Plan, Sizes, Table, TablePlan, config_around
from embcomp.methods.full import Full
from embcomp.settings import Width


class Padded(Combiner):
    """A combiner that appends zeros to the result of another combiner.

    Args:
        inner: the combiner of the narrow vectors.
        width: the width of its result.
        embedding_dim: the width with the zeros.
    """

    def __init__(self, inner: Combiner, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.inner, self.width, self.embedding_dim = inner, width, embedding_dim
        self.linear = inner.linear  # pyright: ignore[reportAttributeAccessIssue]
        self.linear_in_rows = inner.linear_in_rows  # pyright: ignore[reportAttributeAccessIssue]
        self.neutral = inner.neutral  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return F.pad(self.inner(chunks), (0, self.embedding_dim - self.width))

    def dim(self, dims: Sequence[int]) -> int:
        return self.embedding_dim

    def start_(self, vectors: Tensor, counts: Tensor) -> tuple[Combiner, Tensor]:
        return self.inner, vectors[:, : self.width]


@dataclass(frozen=True, kw_only=True, eq=False)
class Nested(Method):
    """The first columns of another method's table, and zeros after them (Kusupati et al. 2022, arXiv 2205.13147).

    A table trained with `embcomp.nested_loss` is good at several widths at once, the most important columns first.
    `embcomp.truncate_` then cuts it to one of them: vectors keep their shape, and the further columns are zeros that
    are not stored. A warm start cuts the table; it does not fit.

    Args:
        width: the number of columns that are stored, at most the embedding_dim.
        of: the method of the narrow rows.

    Raises:
        ValueError: the width is below 1, or above the width of a table.

    Example:
        >>> import torch, embcomp
        >>> emb = embcomp.nn.CompressedEmbedding(1000, 32, embcomp.Nested(width=4))
        >>> emb(torch.tensor([3, 7])).shape, int((emb(torch.tensor([3]))[0] != 0).sum())
        (torch.Size([2, 32]), 4)
        >>> embcomp.nbytes(emb) == 4 * 1000 * 4
        True
    """

    width: Width
    of: Method = field(default_factory=Full)

    @property
    def shares_store(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if the method inside shares its store."""
        return self.of.shares_store

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        inner = self.of.plan(self._narrow(tables), group)
        plans = []
        for table, inner_plan in zip(tables, inner.tables, strict=True):
            inner_plan.encoder.config = config_around(self.config(), inner_plan, table)
            inner_plan.encoder.table = table  # whose vectors come out in the end
            combiner = Padded(inner_plan.combiner, self.width, table.embedding_dim)
            plans.append(TablePlan(table, inner_plan.encoder, inner_plan.chunks, combiner))
        return Plan(inner.stores, plans)

    def _narrow(self, tables: Sequence[Table]) -> list[Table]:
        """Return the tables of the method inside, of width `width`."""
        for table in tables:
            if self.width > table.embedding_dim:
                raise ValueError(
                    f"table {table.name!r}: width {self.width} is above its embedding_dim {table.embedding_dim}; "
                    "choose a lower width, or leave the table out"
                )
        return [dataclasses.replace(table, embedding_dim=self.width) for table in tables]

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        return self.of.sizes(self._narrow(tables), group)

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return a ladder whose sizes are the widths, or with a given `width` those of the method inside.

        Args:
            tables: the tables to compress together.
            nbytes: the budget in bytes.
            fixed: settings of Nested; `of`, a configuration, or with a given `width` also the class or the name of the
                method inside (by default `Full`); and settings of that method.
        """
        if "width" not in fixed:
            return Ladder(
                lambda width: cls(width=width, **fixed),
                lambda width: cls(width=width, **fixed).sizes(tables),
                most=min(table.embedding_dim for table in tables),
            )
        inner, own, fixed = settings_around(cls, fixed)
        outer = cls(**own)
        inside = inner.ladder(outer._narrow(tables), nbytes, **inner.checked_settings(fixed))
        return inside.around(lambda of: dataclasses.replace(outer, of=of), lambda sizes: sizes)
