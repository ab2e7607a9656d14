"""Ids with power-law frequencies."""

import torch
from torch import Tensor


def zipf_ids(generator: torch.Generator, size: int, count: int, exponent: float = 1.05) -> Tensor:
    """Draw `count` ids below `size`, int64, with power-law frequencies, spread over the ids by a fixed permutation."""
    cumulative = (torch.arange(1, size + 1, dtype=torch.float64) ** -exponent).cumsum(0)
    drawn = torch.rand(count, generator=generator, dtype=torch.float64) * cumulative[-1]
    ranks = torch.searchsorted(cumulative, drawn).clamp_(max=size - 1)
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[ranks]
