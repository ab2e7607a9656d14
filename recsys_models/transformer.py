"""The block of the sequence models that are transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A block of self-attention and a network, both residual and normalised before (Xiong et al. 2020).

    The attention is that of Vaswani et al. 2017 (arXiv 1706.03762, section 3.2), without dropout on its weights.

    Args:
        dim: the width D.
        heads: the number of attention heads, which must divide D.
        hidden: the width of the network's hidden layer.
        dropout: the probability of dropping a value of either output.

    Raises:
        ValueError: the heads do not divide the width.

    Shapes: `[B, L, D]` -> `[B, L, D]`.

    Example:
        >>> import torch
        >>> Block(8, heads=2, hidden=16)(torch.randn(2, 5, 8), causal=True).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, dim: int, *, heads: int = 1, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"{heads} heads do not divide a width of {dim}: choose another number")
        self.heads = heads
        self.norm, self.norm_hidden = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.project, self.join = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.network = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *, visible: Tensor | None = None, causal: bool = False) -> Tensor:
        """Apply the block to the events.

        Args:
            x: the events, `[B, L, D]`.
            visible: the events that others may see, bool `[B, L]`; by default all.
            causal: True to hide later events from each event.
        """
        x = x + self.dropout(self.join(self._attention(self.norm(x), visible, causal)))
        return x + self.dropout(self.network(self.norm_hidden(x)))

    def _attention(self, x: Tensor, visible: Tensor | None, causal: bool) -> Tensor:
        query, key, value = self.project(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = None if visible is None else visible[:, None, None, :]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=causal)
        return attended.transpose(1, 2).flatten(2)


class Positions(nn.Module):
    """Learned vectors of the positions in a sequence, added to the events: `[B, L, D]` -> `[B, L, D]`.

    Events are scaled by sqrt(D) before, because their vectors start small if the output is tied to them.
    """

    def __init__(self, length: int, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(length, dim) * 0.02)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x * self.weight.shape[1] ** 0.5 + self.weight[: x.shape[1]])
