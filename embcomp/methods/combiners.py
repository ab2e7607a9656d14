"""The last part of every method: the vectors of a table's chunks -> its embedding."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from embcomp import configs

COMBINERS: dict[str, type["Combiner"]] = {}
"""By name, so that a plan can be written and read."""


class Combiner(nn.Module, abc.ABC):
    """The vectors of a table's chunks -> its embedding. A module: what it learns is trained, saved and counted.

    `linear` combiners commute with pooling, so bags pool inside the look-up; the others combine before they pool.
    `neutral` maps a chunk to the constant that makes the rest linear (warm starts fix it there).
    """

    linear: ClassVar[bool] = True
    neutral: ClassVar[Mapping[int, float]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        configs.join(COMBINERS, cls)
        if "__call__" in vars(cls) and "forward" not in vars(cls):  # as combiners were written before they were modules
            cls.forward = vars(cls)["__call__"]
            del cls.__call__

    @abc.abstractmethod
    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        """[..., dim of chunk] each -> [..., embedding_dim]."""

    @abc.abstractmethod
    def dim(self, dims: Sequence[int]) -> int:
        """The width of the result for chunks of these widths."""

    def start_(self, vectors: Tensor, counts: Tensor) -> tuple["Combiner", Tensor] | None:
        """Fit what the combiner learns to trained vectors, before a warm start fits the rows.

        Args:
            vectors: [num_embeddings, embedding_dim].
            counts: how much each id counts, [num_embeddings].

        Returns:
            The combiner that is left once these parameters are fixed, and the vectors that it is to give; None where
            nothing was fitted, and the warm start goes on from the parameters as they are.
        """
        return None


class Concat(Combiner):
    """Chunks side by side; with one chunk, that chunk."""

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return chunks[0] if len(chunks) == 1 else torch.cat(list(chunks), dim=-1)

    def dim(self, dims: Sequence[int]) -> int:
        return sum(dims)


class Sum(Combiner):
    """Chunks added up."""

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(chunks)).sum(0)

    def dim(self, dims: Sequence[int]) -> int:
        return dims[0]


class Product(Combiner):
    """The first chunk times the second, element by element."""

    linear = False
    neutral: ClassVar[Mapping[int, float]] = {0: 1.0}

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return chunks[0] * chunks[1]

    def dim(self, dims: Sequence[int]) -> int:
        return dims[0]


class WeightedSum(Combiner):
    """Column j of the first chunk times chunk j + 1, added up (the first chunk may carry spare columns)."""

    linear = False
    neutral: ClassVar[Mapping[int, float]] = {0: 1.0}

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        weights, vectors = chunks[0], chunks[1:]
        return sum((weights[..., j : j + 1] * vector for j, vector in enumerate(vectors)), torch.zeros_like(vectors[0]))

    def dim(self, dims: Sequence[int]) -> int:
        return dims[1]
