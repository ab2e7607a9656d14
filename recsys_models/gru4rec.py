"""GRU4Rec: recurrent recommendation of the next item."""

from __future__ import annotations

from torch import Tensor, nn

from recsys_models.retrieval import Embedding
from recsys_models.sequence import CausalModel


class GRU4Rec(CausalModel):
    """A recurrent network over the items of a session or a user (Hidasi et al. 2016, arXiv 1511.06939, section 3).

    Args:
        items: the embedding of the items, a module such as `nn.Embedding` or `embcomp.nn.CompressedEmbedding`.
        length: the maximum number of events of a history.
        layers: the number of recurrent layers.
        hidden: the width of the state, by default that of the items.
        dropout: the probability of dropping a value of the input, and between layers.

    Raises:
        ValueError: the id space is open, or the length is below 1.

    Shapes: history int64 `[B, L]` and mask bool `[B, L]` -> queries `[B, D]`; see `SequenceModel`.

    Example:
        >>> import torch
        >>> model = GRU4Rec(torch.nn.Embedding(500, 16), hidden=32)
        >>> history = torch.tensor([[3, 1, 4], [7, 7, 0]])
        >>> model(history, history > 0).shape
        torch.Size([2, 16])
    """

    def __init__(
        self, items: Embedding, *, length: int = 200, layers: int = 1, hidden: int | None = None, dropout: float = 0.2
    ) -> None:
        super().__init__(items, length)
        dim = self.embedding_dim
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(dim, hidden or dim, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.out = nn.Linear(hidden or dim, dim)

    def states(self, history: Tensor) -> Tensor:
        states, _ = self.gru(self.dropout(self.items(history) * self.embedding_dim**0.5))
        return self.out(states)
