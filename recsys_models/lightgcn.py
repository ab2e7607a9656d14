"""LightGCN: propagation over the user-item graph."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_models.propagation import NormalizedAdjacency
from recsys_models.retrieval import DotProduct, Embedding


class LightGCN(DotProduct):
    """The LightGCN model (He et al. 2020, arXiv 2002.02126, eq. 3-8): vectors are averaged over the graph.

    `E^(k+1) = D^-1/2 A D^-1/2 E^(k)` (eq. 7), the final vectors are the mean of `E^(0) .. E^(K)` (eq. 4 with `a_k = 1 /
    (K + 1)`), and the score is their inner product (eq. 5).

    Args:
        users: the embedding of the users, a module such as `nn.Embedding` or `embcomp.nn.CompressedEmbedding`.
        items: the embedding of the items, of the same width.
        edges: the pairs of the training split, int64 `[2, E]`, users in the first row.
        num_layers: the number of layers, K.

    Raises:
        ValueError: `num_layers` is negative, or `NormalizedAdjacency` rejects the edges.

    Shapes: users int64 `[B]`, items int64 `[B, n]` -> scores `[B, n]`.

    Example:
        >>> import torch, embcomp
        >>> users = embcomp.nn.CompressedEmbedding(1_000, 16, embcomp.HashingTrick(rows=100))
        >>> edges = torch.tensor([[7, 7, 8, 9], [1, 2, 2, 499]])
        >>> model = LightGCN(users, torch.nn.Embedding(500, 16), edges=edges, num_layers=2)
        >>> model(torch.tensor([7, 8]), torch.tensor([[1, 2, 3], [4, 5, 6]])).shape
        torch.Size([2, 3])
    """

    def __init__(self, users: Embedding, items: Embedding, *, edges: Tensor, num_layers: int = 2) -> None:
        super().__init__(users, items)
        if num_layers < 0:
            raise ValueError(f"num_layers must be at least 0, not {num_layers}")
        self.num_layers = num_layers
        self.adjacency = NormalizedAdjacency(edges, self.num_users, self.num_items)

    def vectors(self) -> tuple[Tensor, Tensor]:
        start = torch.cat((self.users.weight, self.items.weight))
        users, items = self.adjacency.layer_mean(start, self.num_layers).split([self.num_users, self.num_items])
        return users, items
