"""LowRank: narrow rows and a learned linear map, a low-rank factorisation of a table."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from embcomp.methods.around import settings_around
from embcomp.methods.base import Combiner, Ladder, Method, Plan, Sizes, Table, TablePlan, config_around
from embcomp.methods.full import Full
from embcomp.settings import Width

_BLOCK = 1 << 16  # vectors at a time


class Projection(Combiner):
    """A combiner that multiplies the result of another combiner, [..., rank], by a learned matrix.

    Attributes:
        matrix: the matrix, [rank, embedding_dim].
    """

    def __init__(self, inner: Combiner, rank: int, embedding_dim: int) -> None:
        super().__init__()
        self.inner = inner
        self.linear = inner.linear  # pyright: ignore[reportAttributeAccessIssue]
        self.neutral = inner.neutral  # pyright: ignore[reportAttributeAccessIssue]
        self.matrix = nn.Parameter(torch.empty(rank, embedding_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw columns with sum 1 and norm 1, so that vectors have the mean and the deviation of the narrow rows."""
        rank = len(self.matrix)
        with torch.no_grad():
            nn.init.normal_(self.matrix, std=rank**-0.5)
            self.matrix.sub_(self.matrix.mean(0)).add_(1 / rank)

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        narrow = self.inner(chunks)
        return narrow @ self.matrix.to(narrow.dtype)

    def dim(self, dims: Sequence[int]) -> int:
        return self.matrix.shape[1]

    @torch.no_grad()
    def start_(self, vectors: Tensor, counts: Tensor) -> tuple[Combiner, Tensor]:
        """Set the matrix to the directions of largest variance, by a truncated singular value decomposition."""
        gram = torch.zeros(2 * vectors.shape[1:], dtype=torch.float64, device=vectors.device)
        for rows, weigh in zip(vectors.split(_BLOCK), counts.split(_BLOCK), strict=True):
            gram += rows.double().t() @ (rows.double() * weigh.double().unsqueeze(1))
        directions = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, : len(self.matrix)]
        self.matrix.copy_(directions.t())
        return self.inner, torch.cat([rows @ self.matrix.t().to(rows) for rows in vectors.split(_BLOCK)])


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank(Method):
    """A method with rows of `rank` values, and for each table a learned matrix [rank, embedding_dim].

    e(id) = z(id) P, with z from another method (Ginart et al. 2021, arXiv 1909.11810, section 3, with one width for all
    ids). `init="warm"` starts at the truncated singular value decomposition of the trained table, which is the closest
    table of this rank. `LowBit(of=LowRank(rank=...))` combines narrow rows with few bits per value.

    Args:
        rank: the number of values of a row, at most the embedding_dim.
        of: the method of the narrow rows.

    Raises:
        ValueError: the rank is below 1, or above the width of a table.

    Example:
        >>> import torch, embcomp
        >>> emb = embcomp.nn.CompressedEmbedding(1000, 32, embcomp.LowRank(rank=4))
        >>> emb(torch.tensor([3, 7])).shape, embcomp.nbytes(emb) == 4 * (1000 * 4 + 4 * 32)
        (torch.Size([2, 32]), True)
    """

    sized_in_steps: ClassVar[bool] = True

    rank: Width
    of: Method = field(default_factory=Full)

    @property
    def shares_store(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if the method inside shares its store."""
        return self.of.shares_store

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        inner = self.of.plan(self._narrow(tables), group)
        plans = []
        for table, inner_plan in zip(tables, inner.tables, strict=True):
            width = inner.embedding_dim(inner_plan)
            inner_plan.encoder.config = config_around(self.config(), inner_plan, table)
            inner_plan.encoder.table = table  # whose vectors come out in the end
            combiner = Projection(inner_plan.combiner, width, table.embedding_dim)
            plans.append(TablePlan(table, inner_plan.encoder, inner_plan.chunks, combiner))
        return Plan(inner.stores, plans)

    def _narrow(self, tables: Sequence[Table]) -> list[Table]:
        """The tables of the method inside, of width `rank`."""
        for table in tables:
            if self.rank > table.embedding_dim:
                raise ValueError(
                    f"table {table.name!r}: rank {self.rank} is above its embedding_dim {table.embedding_dim}; choose "
                    "a lower rank, or leave the table out"
                )
        return [dataclasses.replace(table, embedding_dim=self.rank) for table in tables]

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        return self._mapped(self.of.sizes(self._narrow(tables), group), tables)

    def _mapped(self, narrow: Sizes, tables: Sequence[Table]) -> Sizes:
        matrices = sum(self.rank * table.embedding_dim for table in tables)
        return dataclasses.replace(narrow, learned=narrow.learned + matrices)

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return a ladder whose sizes are the ranks, or with a given `rank` those of the method inside.

        Args:
            tables: the tables to compress together.
            nbytes: the budget in bytes.
            fixed: settings of LowRank; `of`, a configuration, or with a given `rank` also the class or the name of the
                method inside (by default `Full`); and settings of that method.
        """
        if "rank" not in fixed:
            return Ladder(
                lambda rank: cls(rank=rank, **fixed),
                lambda rank: cls(rank=rank, **fixed).sizes(tables),
                most=min(table.embedding_dim for table in tables),
            )
        inner, own, fixed = settings_around(cls, fixed)
        outer = cls(**own)
        inside = inner.ladder(outer._narrow(tables), nbytes, **inner.checked_settings(fixed))
        return inside.around(lambda of: dataclasses.replace(outer, of=of), lambda sizes: outer._mapped(sizes, tables))
