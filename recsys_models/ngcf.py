"""NGCF: neural graph collaborative filtering."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_models.propagation import NormalizedAdjacency
from recsys_models.retrieval import DotProduct, Embedding


class NGCF(DotProduct):
    """The NGCF model, neural graph collaborative filtering (Wang et al. 2019, arXiv 1905.08108, section 2).

    With `L = D^-1/2 A D^-1/2` each layer is `E^(l) = LeakyReLU((L + I) E^(l-1) W_1 + (L E^(l-1) * E^(l-1)) W_2)` (eq.
    7, `*` by element), the final vectors are all layers side by side (eq. 9), and the score is their inner product (eq.
    10).

    Args:
        users: the embedding of the users, a module such as `nn.Embedding` or `embcomp.nn.CompressedEmbedding`.
        items: the embedding of the items, of the same width.
        edges: the pairs of the training split, int64 `[2, E]`, users in the first row.
        hidden: the widths of the layers.
        dropout: the share of each layer's entries that is dropped in training (message dropout, section 2.4.2).

    Raises:
        ValueError: there is no layer, or `NormalizedAdjacency` rejects the edges.

    Shapes: users int64 `[B]`, items int64 `[B, n]` -> scores `[B, n]`.

    Example:
        >>> import torch
        >>> edges = torch.tensor([[7, 7, 8, 9], [1, 2, 2, 49]])
        >>> model = NGCF(torch.nn.Embedding(100, 16), torch.nn.Embedding(50, 16), edges=edges, hidden=[16, 8])
        >>> [vectors.shape for vectors in model.vectors()]
        [torch.Size([100, 40]), torch.Size([50, 40])]
    """

    def __init__(
        self,
        users: Embedding,
        items: Embedding,
        *,
        edges: Tensor,
        hidden: Sequence[int] = (64, 64, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(users, items)
        if not hidden:
            raise ValueError("hidden is empty; without layers the model is MF")
        self.adjacency = NormalizedAdjacency(edges, self.num_users, self.num_items)
        widths = list(zip([self.embedding_dim, *hidden[:-1]], hidden, strict=True))
        self.sums = nn.ModuleList(_xavier(*width) for width in widths)  # W_1
        self.products = nn.ModuleList(_xavier(*width) for width in widths)  # W_2
        self.dropout = nn.Dropout(dropout)

    def vectors(self) -> tuple[Tensor, Tensor]:
        layer = torch.cat((self.users.weight, self.items.weight))
        layers = [layer]
        for w_1, w_2 in zip(self.sums, self.products, strict=True):
            messages = self.adjacency(layer)
            layer = self.dropout(F.leaky_relu(w_1(messages + layer) + w_2(messages * layer), 0.2))
            layers.append(layer)
        users, items = torch.cat(layers, dim=1).split([self.num_users, self.num_items])
        return users, items


def _xavier(width: int, next_width: int) -> nn.Linear:
    linear = nn.Linear(width, next_width, bias=False)
    nn.init.xavier_uniform_(linear.weight)
    return linear
