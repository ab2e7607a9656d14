"""Attention over the few events of a long history that a search selects for each candidate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from embcomp.sdim.projection import DenseProjection
from recsys_models.attention import DINAttention, DotProductAttention

ATTENTIONS: dict[str, type[nn.Module]] = {"din": DINAttention, "dot": DotProductAttention}


class Search(nn.Module):
    """The base of searches: it selects the `top` events of highest relevance, and attends to these.

    Args:
        dim: the width D.
        top: the number of selected events.
        attention: the attention, a key of `ATTENTIONS`.
        **options: further arguments of the attention.

    Shapes: candidates `[B, C, D]`, sequence `[B, L, D]`, mask `[B, L]` -> `[B, C, D]`.
    """

    def __init__(self, dim: int, top: int = 50, attention: str = "din", **options: Any) -> None:
        super().__init__()
        if attention not in ATTENTIONS:
            raise ValueError(f"attention {attention!r} is unknown: choose one of {', '.join(ATTENTIONS)}")
        if top < 1:
            raise ValueError(f"top is {top}: give at least 1 event")
        self.top = top
        self.attention = ATTENTIONS[attention](dim, **options)

    def attend(self, candidates: Tensor, sequence: Tensor, relevance: Tensor) -> Tensor:
        """Attend to the events of highest relevance, int64 `[B, C, L]`; events below zero are not selected."""
        highest, events = relevance.topk(min(self.top, relevance.shape[-1]), dim=-1)
        rows = torch.arange(len(sequence), device=sequence.device)[:, None, None]
        return self.attention(candidates, sequence[rows, events], highest >= 0)


class SIM(Search):
    """A search-based interest model with hard search (Pi et al. 2020, arXiv 2006.05639, section 3.2).

    It selects the latest events of the candidate's category. See `Search` for the arguments.

    Example:
        >>> import torch
        >>> asked, events = torch.randn(2, 5, 8), torch.randn(2, 30, 8)
        >>> same = torch.rand(2, 5, 30) < 0.2  # whether candidate and event share their category
        >>> SIM(8, top=10)(asked, events, torch.ones(2, 30, dtype=torch.bool), same).shape
        torch.Size([2, 5, 8])
    """

    def forward(self, candidates: Tensor, sequence: Tensor, mask: Tensor, same: Tensor) -> Tensor:
        latest = torch.arange(sequence.shape[1], device=sequence.device)
        return self.attend(candidates, sequence, torch.where(same & mask.unsqueeze(1), latest, -1))


class ETA(Search):
    """An end-to-end target attention (Chen et al. 2021, arXiv 2108.04468).

    It selects the events whose SimHash differs from the candidate's in the fewest bits.

    Args:
        dim: the width D.
        top: the number of selected events.
        num_hashes: the number of bits.
        seed: the seed of the hashes, which are fixed and saved with the model.
        **options: further arguments, see `Search`.

    Example:
        >>> import torch
        >>> asked, events = torch.randn(2, 5, 8), torch.randn(2, 30, 8)
        >>> ETA(8, top=10)(asked, events, torch.ones(2, 30, dtype=torch.bool)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, dim: int, top: int = 50, num_hashes: int = 48, seed: int = 0, **options: Any) -> None:
        super().__init__(dim, top, **options)
        self.projection = DenseProjection(dim, num_hashes, seed)

    def forward(self, candidates: Tensor, sequence: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():
            asked, events = self._signs(candidates), self._signs(sequence)
            agree = (asked @ events.transpose(1, 2)).long() + asked.shape[-1]  # twice the bits in common
            relevance = agree.masked_fill(~mask.unsqueeze(1), -1)
        return self.attend(candidates, sequence, relevance)

    def _signs(self, vectors: Tensor) -> Tensor:
        return torch.where(self.projection(vectors) > 0, 1.0, -1.0)
