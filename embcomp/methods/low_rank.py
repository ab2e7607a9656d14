"""LowRank: narrow rows and a learned linear map, a low-rank factorisation of a table."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from embcomp.methods.base import Combiner, Method, Sizes, Table
from embcomp.methods.full import Full
from embcomp.methods.narrow import Narrow, draw_map_, equalizing, principal_directions
from embcomp.settings import Width

Axes = Literal["equal", "principal"]
_BLOCK = 1 << 16  # vectors at a time


class Projection(Combiner):
    """A combiner that multiplies the result of another combiner, [..., rank], by a learned matrix.

    Attributes:
        matrix: the matrix, [rank, embedding_dim].
        axes: the columns of narrow rows after a warm start; see `LowRank`.
    """

    axes: Axes = "equal"  # of files that were saved before there was a choice

    def __init__(self, inner: Combiner, rank: int, embedding_dim: int, axes: Axes = "equal") -> None:
        super().__init__()
        self.inner, self.axes = inner, axes
        self.linear = inner.linear  # pyright: ignore[reportAttributeAccessIssue]
        self.neutral = inner.neutral  # pyright: ignore[reportAttributeAccessIssue]
        self.matrix = nn.Parameter(torch.empty(rank, embedding_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw columns with sum 1 and norm 1, so that vectors have the mean and the deviation of the narrow rows."""
        draw_map_(self.matrix)

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        narrow = self.inner(chunks)
        return narrow @ self.matrix.to(narrow.dtype)

    def dim(self, dims: Sequence[int]) -> int:
        return self.matrix.shape[1]

    @torch.no_grad()
    def start_(self, vectors: Tensor, counts: Tensor) -> tuple[Combiner, Tensor]:
        """Set the matrix to the directions of largest variance, by a truncated singular value decomposition.

        With equal axes they are turned among themselves so that all have the same variance.
        """
        variances, directions = principal_directions(vectors, counts)
        rank = len(self.matrix)
        kept = directions[:, :rank]
        self.matrix.copy_((kept @ equalizing(variances[:rank]) if self.axes == "equal" else kept).t())
        return self.inner, torch.cat([rows @ self.matrix.t().to(rows) for rows in vectors.split(_BLOCK)])


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank(Narrow):
    """A method with rows of `rank` values, and for each table a learned matrix [rank, embedding_dim].

    e(id) = z(id) P, with z from another method (Ginart et al. 2021, arXiv 1909.11810, section 3, with one width for all
    ids). `init="warm"` starts at the truncated singular value decomposition of the trained table, which is the closest
    table of this rank. `LowBit(of=LowRank(rank=...))` combines narrow rows with few bits per value.

    Args:
        rank: the number of values of a row, at most the embedding_dim.
        of: the method of the narrow rows.
        axes: the columns of the narrow rows after a warm start. "equal" turns them so that all have the same variance,
            which one step of `LowBit` around them fits best. "principal" leaves them the directions of largest
            variance, of which few bits clip the largest and stretch the smallest: more of the vectors is lost, but
            where items are ranked by inner products a flatter spectrum may rank them better.

    Raises:
        ValueError: the rank is below 1, or above the width of a table.

    Example:
        >>> import torch, embcomp
        >>> emb = embcomp.nn.CompressedEmbedding(1000, 32, embcomp.LowRank(rank=4))
        >>> emb(torch.tensor([3, 7])).shape, embcomp.nbytes(emb) == 4 * (1000 * 4 + 4 * 32)
        (torch.Size([2, 32]), True)
    """

    sized_in_steps: ClassVar[bool] = True
    narrowed_by: ClassVar[str] = "rank"

    rank: Width
    of: Method = field(default_factory=Full)
    axes: Axes = "equal"

    def widened(self, inner: Combiner, width: int, embedding_dim: int) -> Combiner:
        return Projection(inner, width, embedding_dim, self.axes)

    def widened_sizes(self, narrow: Sizes, tables: Sequence[Table]) -> Sizes:
        matrices = sum(self.rank * table.embedding_dim for table in tables)
        return dataclasses.replace(narrow, learned=narrow.learned + matrices)
