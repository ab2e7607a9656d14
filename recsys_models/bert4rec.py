"""BERT4Rec: sequential recommendation by filling in masked items."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys_models.retrieval import Embedding
from recsys_models.sequence import Examples, SequenceModel, last_of
from recsys_models.transformer import Block, Positions


class BERT4Rec(SequenceModel):
    """A transformer that sees both sides and fills in masked items (Sun et al. 2019, arXiv 1904.06690, section 3).

    In training every event is masked with a probability, and some histories only at their last event. The latter
    matches inference, where a mask after the history stands for the next item (section 3.6).

    Args:
        items: the embedding of the items, a module such as `nn.Embedding` or `embcomp.nn.CompressedEmbedding`.
        length: the maximum number of events of a history.
        blocks: the number of blocks.
        heads: the number of attention heads.
        hidden: the width of the hidden layers, by default four times that of the items.
        dropout: the probability of dropping a value of the input, or of a block's output.
        mask_share: the probability that an event is masked.
        last_share: the probability that a history is masked only at its last event.

    Raises:
        ValueError: the id space is open, the length is below 1, a share is not a probability, or the heads do not
            divide the width.

    Shapes: history int64 `[B, L]` and mask bool `[B, L]` -> queries `[B, D]`; see `SequenceModel`.

    Example:
        >>> import torch
        >>> model = BERT4Rec(torch.nn.Embedding(500, 16), length=50)
        >>> history = torch.tensor([[3, 1, 4], [7, 7, 0]])
        >>> model(history, history > 0).shape
        torch.Size([2, 16])
    """

    def __init__(
        self,
        items: Embedding,
        *,
        length: int = 200,
        blocks: int = 2,
        heads: int = 1,
        hidden: int | None = None,
        dropout: float = 0.2,
        mask_share: float = 0.2,
        last_share: float = 0.1,
    ) -> None:
        super().__init__(items, length)
        if not 0 < mask_share <= 1 or not 0 <= last_share <= 1:
            raise ValueError(f"mask_share={mask_share} and last_share={last_share} are probabilities, the first not 0")
        dim = self.embedding_dim
        self.mask_share, self.last_share = mask_share, last_share
        self.masked = nn.Parameter(torch.randn(dim) * 0.02)
        self.positions = Positions(length + 1, dim, dropout)
        self.blocks = nn.ModuleList(
            Block(dim, heads=heads, hidden=hidden or 4 * dim, dropout=dropout) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim))

    def states(self, history: Tensor, mask: Tensor, hidden: Tensor) -> Tensor:
        """Return the state at each event `[B, L, D]`; `hidden`, bool `[B, L]`, marks the masked events."""
        x = self.positions(torch.where(hidden.unsqueeze(2), self.masked, self.items(history)))
        for block in self.blocks:
            x = block(x, visible=mask)
        return self.out(self.norm(x))

    def forward(self, history: Tensor, mask: Tensor) -> Tensor:
        asked = torch.zeros_like(self.check(history[:, :1]))
        history, longer = (
            torch.cat([self.check(history), asked], 1),
            torch.cat([mask, torch.zeros_like(mask[:, :1])], 1),
        )
        positions = torch.arange(history.shape[1], device=history.device)
        hidden = positions == mask.sum(1, keepdim=True)  # one behind the last event
        return last_of(self.states(history, longer | hidden, hidden), longer | hidden)

    def examples(self, history: Tensor, mask: Tensor) -> Examples:
        last = torch.arange(history.shape[1], device=history.device) == mask.sum(1, keepdim=True) - 1
        alone = torch.rand(len(history), 1, device=history.device) < self.last_share
        drawn = (torch.rand(history.shape, device=history.device) < self.mask_share) & mask
        none = ~drawn.any(1, keepdim=True)  # every history is asked something
        hidden = torch.where(alone | none, last, drawn)
        return Examples(self.states(history, mask, hidden)[hidden], history[hidden])
