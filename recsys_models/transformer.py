"""The block of the transformers among sequence models."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Self-attention and a network for each event, both around a residual, normalised before (Xiong et al. 2020).

    Attention is that of Vaswani et al. 2017 (arXiv 1706.03762, section 3.2), its weights without dropout.

    Args:
        dim: Width D.
        heads: Heads of attention; they divide D.
        hidden: Width of the network's hidden layer.
        dropout: Probability of dropping a value of what either adds.

    Raises:
        ValueError: Heads that do not divide the width.

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
        """Let events see each other.

        Args:
            x: Events, `[B, L, D]`.
            visible: Bool `[B, L]`, the events that others may see; all by default.
            causal: Events see none that come after them.
        """
        x = x + self.dropout(self.join(self._attention(self.norm(x), visible, causal)))
        return x + self.dropout(self.network(self.norm_hidden(x)))

    def _attention(self, x: Tensor, visible: Tensor | None, causal: bool) -> Tensor:
        query, key, value = self.project(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = None if visible is None else visible[:, None, None, :]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=causal)
        return attended.transpose(1, 2).flatten(2)


class Places(nn.Module):
    """Learned vectors of the places in a sequence, added to the events: `[B, L, D]` -> `[B, L, D]`.

    Events are scaled by sqrt(D) before, as their vectors start small where the output is tied to them.
    """

    def __init__(self, length: int, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(length, dim) * 0.02)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x * self.weight.shape[1] ** 0.5 + self.weight[: x.shape[1]])
