"""Ids as they occur: a few often, most seldom."""

import torch
from torch import Tensor


def zipf_ids(generator: torch.Generator, size: int, count: int, exponent: float = 1.05) -> Tensor:
    """`count` ids below `size` with power-law frequencies, int64, spread over the id space by a fixed permutation."""
    cumulative = (torch.arange(1, size + 1, dtype=torch.float64) ** -exponent).cumsum(0)
    drawn = torch.rand(count, generator=generator, dtype=torch.float64) * cumulative[-1]
    ranks = torch.searchsorted(cumulative, drawn).clamp_(max=size - 1)
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[ranks]
