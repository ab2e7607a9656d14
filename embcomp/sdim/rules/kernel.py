"""The rule "kernel": every event counts, with a learned weight for the number of bits of a group that differ."""

import math
from typing import Any

import torch
from torch import Tensor

from embcomp.sdim.rules.base import Read, Rule

MOST_BITS = 8
"""The most bits of a group: its buckets are mixed by a matrix [2^hash_width, 2^hash_width]."""


class Kernel(Rule):
    """The weighted sum over groups and events, by distance in bits, divided by the number of groups and events."""

    @classmethod
    def start(cls, hash_width: int) -> Tensor:
        if hash_width > MOST_BITS:
            raise ValueError(f"SDIM: rule 'kernel' takes a hash_width of at most {MOST_BITS}, got {hash_width}")
        return torch.ones(hash_width + 1)

    @property
    def weights(self) -> Tensor:
        """The weight of each distance, float [hash_width + 1]."""
        assert self.weight is not None
        return self.weight

    def of_buckets(self, sums: Tensor, counts: Tensor, read: Read) -> Tensor:
        # Every bucket becomes the weighted sum of all buckets of its group, so that one row is enough.
        mixed = self.weights.to(sums.dtype)[_distances(self.hash_width, sums.device)] @ sums
        return read((mixed / (_events(counts) * sums.shape[1]).view(-1, 1, 1, 1)).to(sums.dtype))

    def query_settings(self, counts: Tensor) -> dict[str, Any]:
        return {"weights": self.weights.detach().float() / (_events(counts) * counts.shape[1]).unsqueeze(1)}

    def expected(self, sums: Tensor, total: Tensor, events: Tensor) -> Tensor:
        return sums / events.clamp(min=1)[:, None, None]

    def event_weight(self, angle: Tensor) -> Tensor:
        bits = self.hash_width
        chances = [math.comb(bits, d) * (1 - angle) ** (bits - d) * angle**d for d in range(bits + 1)]
        return sum((w * p for w, p in zip(self.weights, chances, strict=True)), torch.zeros_like(angle))


def _events(counts: Tensor) -> Tensor:
    """Return the number of events of each history, at least 1: [B]. Every group counts all of them."""
    return counts[:, 0].sum(1).clamp(min=1)


def _distances(hash_width: int, device: torch.device) -> Tensor:
    """Return the number of bits in which two buckets differ: int64 [2^hash_width, 2^hash_width]."""
    buckets = torch.arange(2**hash_width, device=device)
    differ = buckets.unsqueeze(1) ^ buckets
    return sum(((differ >> bit) & 1 for bit in range(hash_width)), torch.zeros_like(differ))
