"""The base of retrieval models: two embedding modules, scores of pairs, scores of all items."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F


class Embedding(Protocol):
    """The interface of tables that models need: `nn.Embedding` and `embcomp.nn.CompressedEmbedding` have it.

    Attributes:
        num_embeddings: the bound of ids, 0 <= id < num_embeddings. None, an open id space, cannot be ranked as a whole.
        embedding_dim: the width of a vector.
        weight: all vectors, `[num_embeddings, embedding_dim]`, differentiable.
    """

    @property
    def num_embeddings(self) -> int | None: ...
    @property
    def embedding_dim(self) -> int: ...
    @property
    def weight(self) -> Tensor: ...

    def __call__(self, ids: Tensor) -> Tensor:
        """Look up the vectors of ids, int64 `[*]` -> `[*, embedding_dim]`."""
        ...


class RetrievalModel(nn.Module, abc.ABC):
    """A model that scores items for users.

    Args:
        users: the embedding of the users, a module, see `Embedding`.
        items: the embedding of the items, of the same width.

    Raises:
        ValueError: users and items differ in width, or a module has an open id space.
    """

    def __init__(self, users: Embedding, items: Embedding) -> None:
        super().__init__()
        if users.num_embeddings is None or items.num_embeddings is None:
            whose = "users" if users.num_embeddings is None else "items"
            raise ValueError(f"{whose} have an open id space, which cannot be ranked as a whole: give num_embeddings")
        if users.embedding_dim != items.embedding_dim:
            raise ValueError(f"users are {users.embedding_dim} wide and items {items.embedding_dim}; make them equal")
        self.users, self.items = users, items
        self.num_users, self.num_items = users.num_embeddings, items.num_embeddings
        self.embedding_dim = users.embedding_dim

    @abc.abstractmethod
    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Score n items for each user: int64 `[B]` and int64 `[B, n]` -> `[B, n]`."""

    @abc.abstractmethod
    def scorer(self, items: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Return a function users `[B]` -> scores `[B, N]` of the same candidates for all; call it many times.

        Args:
            items: the candidates, int64 `[N]`, in the order of the columns; by default all items.
        """


class DotProduct(RetrievalModel):
    """A model whose scores are inner products of final vectors of users and items."""

    @abc.abstractmethod
    def vectors(self) -> tuple[Tensor, Tensor]:
        """Return the final vectors of all users `[num_users, D]` and all items `[num_items, D]`."""

    def look_up(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Return the final vectors of some users and items: int64 `[B]` and `[B, n]` -> `[B, D]` and `[B, n, D]`."""
        all_users, all_items = self.vectors()
        return F.embedding(users, all_users), F.embedding(items, all_items)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        user_vectors, item_vectors = self.look_up(users, items)
        return (item_vectors * user_vectors.unsqueeze(1)).sum(-1)

    def scorer(self, items: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        user_vectors, item_vectors = self.vectors()
        candidates = item_vectors if items is None else item_vectors[items]
        return lambda users: user_vectors[users] @ candidates.T
