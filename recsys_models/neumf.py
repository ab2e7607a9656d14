"""NeuMF: neural matrix factorisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from recsys_models.layers import MLP
from recsys_models.retrieval import Embedding, RetrievalModel

_BLOCK = 1 << 24  # floats of the first hidden layer that a full ranking holds at once


class NeuMF(RetrievalModel):
    """The NeuMF model, a neural matrix factorisation (He et al. 2017, arXiv 1708.05031, eq. 12).

    The score is `h . [p_G * q_G, MLP([p_M, q_M])]` (`*` by element): a generalised matrix factorisation and a deep
    network in parallel, each with separate vectors. A user's embedding is `[p_G, p_M]`, an item's `[q_G, q_M]`.

    Args:
        users: the embedding of the users, a module such as `nn.Embedding` or `embcomp.nn.CompressedEmbedding`.
        items: the embedding of the items, of the same width.
        gmf_dim: the width of `p_G` and `q_G`, by default half of the embedding.
        hidden: the widths of the network's hidden layers, each with a ReLU.
        dropout: the dropout probability after each hidden layer but the first, see `MLP`.

    Raises:
        ValueError: `gmf_dim` leaves nothing for one of the two parts, or there is no hidden layer.

    Shapes: users int64 `[B]`, items int64 `[B, n]` -> scores (logits) `[B, n]`.

    Example:
        >>> import torch
        >>> model = NeuMF(torch.nn.Embedding(100, 16), torch.nn.Embedding(50, 16), hidden=[16, 8])
        >>> model(torch.tensor([7, 8]), torch.tensor([[1, 2, 3], [4, 5, 6]])).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        users: Embedding,
        items: Embedding,
        *,
        gmf_dim: int | None = None,
        hidden: Sequence[int] = (64, 32, 16),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(users, items)
        gmf_dim = self.embedding_dim // 2 if gmf_dim is None else gmf_dim
        if not 0 < gmf_dim < self.embedding_dim:
            raise ValueError(f"gmf_dim is {gmf_dim}; it must lie between 0 and the embedding's {self.embedding_dim}")
        if not hidden:
            raise ValueError("hidden is empty; the network needs at least one layer")
        self.parts = [gmf_dim, self.embedding_dim - gmf_dim]
        # The first layer of [p_M, q_M] is the sum of a map of p_M and one of q_M; a full ranking computes each once.
        self.first_of_user = nn.Linear(self.parts[1], hidden[0])
        self.first_of_item = nn.Linear(self.parts[1], hidden[0], bias=False)
        self.hidden = MLP(hidden[0], hidden[1:], dropout=dropout)
        self.gmf_weights = nn.Linear(gmf_dim, 1, bias=False)  # h, of the first part
        self.mlp_weights = nn.Linear(hidden[-1], 1)  # h, of the second, and a bias
        self.width = hidden[0]

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        user, item = self._of_users(self.users(users)), self._of_items(self.items(items))
        return self._score([part.unsqueeze(-2) for part in user], item)

    def scorer(self, items: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        item = self._of_items(self.items.weight if items is None else self.items(items))
        at_once = max(1, _BLOCK // (len(item[0]) * self.width))

        def score(users: Tensor) -> Tensor:
            user = self._of_users(self.users(users))
            blocks = zip(*(part.unsqueeze(-2).split(at_once) for part in user), strict=True)
            return torch.cat([self._score(block, item) for block in blocks])

        return score

    def _of_users(self, vectors: Tensor) -> list[Tensor]:
        """Split vectors [*, D] into p_G and the first layer's part of p_M."""
        gmf, mlp = vectors.split(self.parts, dim=-1)
        return [gmf, self.first_of_user(mlp)]

    def _of_items(self, vectors: Tensor) -> list[Tensor]:
        gmf, mlp = vectors.split(self.parts, dim=-1)
        return [gmf, self.first_of_item(mlp)]

    def _score(self, user: Sequence[Tensor], item: Sequence[Tensor]) -> Tensor:
        deep = self.hidden(torch.relu(user[1] + item[1]))
        return (self.gmf_weights(user[0] * item[0]) + self.mlp_weights(deep)).squeeze(-1)
