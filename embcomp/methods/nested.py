"""The first columns of a table, for tables that are trained to be good at every width."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from embcomp.methods.base import Combiner, Method
from embcomp.methods.full import Full
from embcomp.methods.narrow import Narrow
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
class Nested(Narrow):
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

    narrowed_by: ClassVar[str] = "width"

    width: Width
    of: Method = field(default_factory=Full)

    def widened(self, inner: Combiner, width: int, embedding_dim: int) -> Combiner:
        return Padded(inner, width, embedding_dim)
