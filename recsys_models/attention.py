"""Attention of candidates over a history, at a cost per candidate that grows with the length of the history.

Each layer maps candidates `[B, C, D]` and histories `[B, L, D]` with their mask `[B, L]` (True for events) to `[B, C,
D]`, zeros where a history has no events. Histories may also differ by candidate, `[B, C, L, D]` and `[B, C, L]`, as a
search gives them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys_models.layers import MLP


class AveragePooling(nn.Module):
    """A pooling to the mean of the events, the same for every candidate.

    Args:
        dim: the width D, of any value.

    Example:
        >>> import torch
        >>> events = torch.tensor([[[2.0], [4.0], [9.0]]])
        >>> AveragePooling(1)(torch.zeros(1, 1, 1), events, torch.tensor([[True, True, False]]))
        tensor([[[3.]]])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, candidates: Tensor, sequence: Tensor, mask: Tensor) -> Tensor:
        candidates, sequence, mask = _aligned(candidates, sequence, mask)
        mean = sequence.sum(-2) / mask.sum(-1, keepdim=True).clamp(min=1)
        return mean.expand_as(candidates)


class DotProductAttention(nn.Module):
    """A target attention without projections, `softmax(q . s / sqrt(D))` (Vaswani et al. 2017, arXiv 1706.03762).

    Args:
        dim: the width D.

    Example:
        >>> import torch
        >>> asked, events = torch.randn(2, 5, 8), torch.randn(2, 30, 8)
        >>> DotProductAttention(8)(asked, events, torch.ones(2, 30, dtype=torch.bool)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = dim**-0.5

    def forward(self, candidates: Tensor, sequence: Tensor, mask: Tensor) -> Tensor:
        if sequence.dim() == 3:  # one product for all candidates of a row
            sequence = sequence.masked_fill(~mask.unsqueeze(-1), 0.0)
            scores, mask = candidates @ sequence.transpose(1, 2), mask.unsqueeze(1)
        else:
            candidates, sequence, mask = _aligned(candidates, sequence, mask)
            scores = (candidates.unsqueeze(-2) * sequence).sum(-1)
        scores = (scores * self.scale).masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1) * mask  # without events all scores are equal: the mask makes them zero
        return weights @ sequence if sequence.dim() == 3 else (weights.unsqueeze(-1) * sequence).sum(-2)


class DINAttention(nn.Module):
    """The activation unit of DIN (Zhou et al. 2018, arXiv 1706.06978, section 4.3).

    A network on candidate, event, difference and product weighs each event. The weights are not normalised, so that the
    sum preserves the strength of an interest.

    Args:
        dim: the width D.
        units: the widths of the network's hidden layers; 36 in the paper's figure 2.
        unit_activation: the activation of the hidden layers, one of `recsys_models.layers.ACTIVATIONS`.

    Example:
        >>> import torch
        >>> asked, events = torch.randn(2, 5, 8), torch.randn(2, 30, 8)
        >>> DINAttention(8)(asked, events, torch.ones(2, 30, dtype=torch.bool)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, dim: int, units: Sequence[int] = (80, 40), unit_activation: str = "prelu") -> None:
        super().__init__()
        self.unit = MLP(4 * dim, units, 1, activation=unit_activation)

    def forward(self, candidates: Tensor, sequence: Tensor, mask: Tensor) -> Tensor:
        shape = candidates.shape
        if sequence.dim() == 4:  # a history for each candidate: rows of one candidate
            candidates, sequence, mask = (
                candidates.flatten(0, 1).unsqueeze(1),
                sequence.flatten(0, 1),
                mask.flatten(0, 1),
            )
        sequence = sequence.masked_fill(~mask.unsqueeze(-1), 0.0)
        weights = self._weights(candidates, sequence).masked_fill(~mask.unsqueeze(1), 0.0)
        return (weights @ sequence).view(shape)

    def _weights(self, candidates: Tensor, sequence: Tensor) -> Tensor:
        """Compute the network's weight of each candidate [B, C, D] and event [B, L, D]: [B, C, L]."""
        # The first layer on (q, s, q - s, q * s) is q (Wq + Wd) + s (Ws - Wd + diag(q) Wp): for each candidate a matrix
        # that all events are multiplied with, and no copy of an event for each candidate.
        first = self.unit[0]
        asked, event, difference, product = first.weight.chunk(4, dim=1)  # pyright: ignore[reportCallIssue, reportArgumentType]
        own = nn.functional.linear(candidates, asked + difference, first.bias)  # pyright: ignore[reportArgumentType]
        matrix = (candidates.unsqueeze(2) * product + (event - difference)).flatten(1, 2)  # [B, C * H, D]
        inner = torch.baddbmm(own.flatten(1).unsqueeze(1), sequence, matrix.transpose(1, 2))
        inner = inner.unflatten(2, (candidates.shape[1], -1))  # [B, L, C, H]
        for layer in list(self.unit)[1:]:
            inner = layer(inner)
        return inner.squeeze(-1).transpose(1, 2)


def _aligned(candidates: Tensor, sequence: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return candidates [B, C, D], the masked sequence [B, 1 or C, L, D] and the mask [B, 1 or C, L]."""
    if sequence.dim() == 3:
        sequence, mask = sequence.unsqueeze(1), mask.unsqueeze(1)
    return candidates, sequence.masked_fill(~mask.unsqueeze(-1), 0.0), mask
