"""Combiners, the last part of every method: from the vectors of a table's chunks to its embedding."""

import abc
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from embcomp import configs
from embcomp.constants import KeptBuffers
from embcomp.initial_rows import Moments

COMBINERS: dict[str, type["Combiner"]] = {}
"""The combiners by class name, so that a plan can be written and read."""


_NOT_MADE = ("training", "like")  # attributes that change after a combiner was made


class Combiner(KeptBuffers, abc.ABC):
    """A module from the vectors of a table's chunks to its embedding; its parameters are trained and saved.

    A `linear` combiner commutes with pooling, so bags are pooled inside the look-up; other combiners combine before
    pooling. `neutral` maps a chunk to the constant at which the rest is linear; warm starts fix the chunk at that
    value. `linear_in_rows` marks a combiner that is linear in the rows but cannot pool inside the look-up, because its
    encoder hands it numbers of each id. A `costly` one takes so many operations for a vector that each id of a batch is
    computed once on a CPU.

    On a GPU the vectors of several features are combined in one pass if their combiners are `alike`. One that holds
    tensors is alone, unless its class names them in `beside` and defines `combine`, which gets them as chunks.

    Attributes:
        like: the moments of the replaced table, for combiners that draw something by themselves (`draws`).
    """

    linear: ClassVar[bool] = True
    linear_in_rows: ClassVar[bool] = False
    neutral: ClassVar[Mapping[int, float]] = {}
    draws: ClassVar[bool] = False
    costly: ClassVar[bool] = False
    beside: ClassVar[tuple[str, ...]] = ()
    """The names of the buffers, [1, ...], that `combine` takes after the chunks, with a row for each vector."""
    like: Moments = Moments()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        configs.join(COMBINERS, cls)
        if "__call__" in vars(cls) and "forward" not in vars(cls):  # as combiners were written before they were modules
            cls.forward = vars(cls)["__call__"]
            del cls.__call__

    @abc.abstractmethod
    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        """Combine chunks [..., dim of chunk] into vectors [..., embedding_dim].

        The numbers that the encoder hands over (`Encoder.handed`) follow the chunks.
        """

    def combine(self, chunks: Sequence[Tensor]) -> Tensor:
        """Combine as `forward` does, with the buffers that `beside` names as further chunks."""
        return self(chunks)

    def alike(self) -> Hashable | None:
        """Return a key of the combiners of this class that do the same with `combine`; None for one that is alone.

        The default is what the combiner was made with.
        """
        own = vars(type(self))
        held = {name for name, _ in self.named_buffers()} - {*(self.beside if "beside" in own else ())}
        if held or any(True for _ in self.parameters()):
            return None
        settings = tuple(
            (name, value) for name, value in vars(self).items() if name[0] != "_" and name not in _NOT_MADE
        )
        try:
            hash(settings)
        except TypeError:  # a setting that cannot be compared
            return None
        return settings

    def reset_parameters(self) -> None:
        """Draw the parameters that the combiner learns; by default it has none."""

    @abc.abstractmethod
    def dim(self, dims: Sequence[int]) -> int:
        """Return the width of the result for chunks of these widths."""

    def rows_of(self, vectors: Tensor, counts: Tensor) -> list[Tensor] | None:
        """Find rows in trained vectors from which a warm start goes on.

        Args:
            vectors: [num_embeddings, embedding_dim].
            counts: the weight of each id, [num_embeddings].

        Returns:
            The rows of each chunk's store, [rows, dim]; None where the warm start goes on from the rows as they are.
        """
        return None

    def start_(self, vectors: Tensor, counts: Tensor) -> tuple["Combiner", Tensor] | None:
        """Fit the parameters of the combiner to trained vectors, before a warm start fits the rows.

        Args:
            vectors: the trained vectors, [num_embeddings, embedding_dim].
            counts: the weight of each id, [num_embeddings].

        Returns:
            The combiner that remains when these parameters are fixed, and the vectors that it must give. None if
            nothing was fitted; the warm start then goes on from the current parameters.
        """
        return None


def as_module(combiner: Combiner) -> Combiner:
    """Make a combiner that was pickled before combiners were modules a module, in place, and return it."""
    if "_modules" not in vars(combiner):
        nn.Module.__init__(combiner)
    return combiner


def start_like(combiner: Combiner, like: Moments) -> None:
    """Draw the parameters of a combiner, or of one inside it, for vectors of these moments."""
    for submodule in combiner.modules():
        if isinstance(submodule, Combiner) and submodule.draws:
            submodule.like = like
            submodule.reset_parameters()


class Concat(Combiner):
    """A combiner that puts chunks side by side."""

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return chunks[0] if len(chunks) == 1 else torch.cat(list(chunks), dim=-1)

    def dim(self, dims: Sequence[int]) -> int:
        return sum(dims)


class Sum(Combiner):
    """A combiner that adds up the chunks."""

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(chunks)).sum(0)

    def dim(self, dims: Sequence[int]) -> int:
        return dims[0]


class Product(Combiner):
    """A combiner that multiplies two chunks, element by element."""

    linear = False
    neutral: ClassVar[Mapping[int, float]] = {0: 1.0}

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return chunks[0] * chunks[1]

    def dim(self, dims: Sequence[int]) -> int:
        return dims[0]


class WeightedSum(Combiner):
    """A combiner that adds up column j of the first chunk times chunk j + 1 (the first chunk may have more columns)."""

    linear = False
    neutral: ClassVar[Mapping[int, float]] = {0: 1.0}

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        weights, vectors = chunks[0], chunks[1:]
        return sum((weights[..., j : j + 1] * vector for j, vector in enumerate(vectors)), torch.zeros_like(vectors[0]))

    def dim(self, dims: Sequence[int]) -> int:
        return dims[1]
