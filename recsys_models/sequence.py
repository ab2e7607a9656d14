"""The base of sequence models: one embedding of the items, queries from histories, scores of the next item."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from recsys_models.retrieval import Embedding


class Examples(NamedTuple):
    """The training examples of a batch of histories.

    Attributes:
        queries: the queries, float `[N, D]`.
        targets: the item that each query should find, int64 `[N]`.
        penalty: a scalar that a model adds to the loss; None for none.
    """

    queries: Tensor
    targets: Tensor
    penalty: Tensor | None = None


class SequenceModel(nn.Module, abc.ABC):
    """A model that reads the items of a user in their order and predicts the next.

    The output is tied: the score of an item is the product of its own vector and the query. Histories are int64 `[B,
    L]`, from the oldest event to the latest, then padding; their mask is bool `[B, L]`, True for events, at least one
    in each history.

    Args:
        items: the embedding of the items, a module such as `nn.Embedding` or `embcomp.nn.CompressedEmbedding`.
        length: the maximum number of events of a history.

    Raises:
        ValueError: the id space is open, so it cannot be ranked as a whole, or the length is below 1.
    """

    def __init__(self, items: Embedding, length: int) -> None:
        super().__init__()
        if items.num_embeddings is None:
            raise ValueError("items have an open id space, which cannot be ranked as a whole: give num_embeddings")
        if length < 1:
            raise ValueError(f"length is {length}: give at least 1")
        self.items, self.length = items, length
        self.num_items, self.embedding_dim = items.num_embeddings, items.embedding_dim

    @abc.abstractmethod
    def forward(self, history: Tensor, mask: Tensor) -> Tensor:
        """Return queries for the next item, `[B, D]`."""

    @abc.abstractmethod
    def examples(self, history: Tensor, mask: Tensor) -> Examples:
        """Return the training examples of windows of histories, of up to `length + 1` events."""

    def vectors(self, items: Tensor | None = None) -> Tensor:
        """Return the output vectors of some items, int64 `[N]`, or of all: `[N, D]`, differentiable."""
        return self.items.weight if items is None else self.items(items)

    def scorer(self, items: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function (history, mask) -> scores `[B, N]` of the same candidates for all; call it many times.

        Args:
            items: the candidates, int64 `[N]`, in the order of the columns; by default all items.
        """
        vectors = self.vectors(items)
        return lambda history, mask: self(history, mask) @ vectors.T

    def check(self, history: Tensor) -> Tensor:
        """Return the history. Raise ValueError if it is longer than `length`."""
        if history.shape[1] > self.length:
            raise ValueError(f"a history of {history.shape[1]} events is longer than length={self.length}: cut it")
        return history


class CausalModel(SequenceModel):
    """A model whose state after each event predicts the next one, and depends only on earlier events."""

    @abc.abstractmethod
    def states(self, history: Tensor) -> Tensor:
        """Return the state after each event, `[B, L, D]`. Padding comes after the events, so it changes none."""

    def forward(self, history: Tensor, mask: Tensor) -> Tensor:
        return last_of(self.states(self.check(history)), mask)

    def examples(self, history: Tensor, mask: Tensor) -> Examples:
        asked = mask[:, 1:]
        states = self.states(self.check(history[:, :-1]))
        return Examples(states[asked], history[:, 1:][asked])


def last_of(states: Tensor, mask: Tensor) -> Tensor:
    """Return the state at the last event: `[B, L, D]` and bool `[B, L]` -> `[B, D]`.

    Example:
        >>> import torch
        >>> last_of(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    last = mask.sum(1) - 1
    return states.gather(1, last.view(-1, 1, 1).expand(-1, 1, states.shape[2])).squeeze(1)
