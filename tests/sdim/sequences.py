"""Sequences with holes in all forms that `SDIM` takes, and the formula written out."""

import pytest
import torch

from embcomp.sdim import SDIM
from embcomp.sdim.reference import pool_reference
from embcomp.sdim.rules import RULES

every_rule = pytest.mark.parametrize("rule", RULES)


def clustered(batch: int, length: int, dim: int, seed: int = 0, candidates: int = 1):
    """Events around a few directions, candidates near some of them; a mask with holes."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(batch, 4, dim, generator=g)
    which = torch.randint(0, 4, (batch, length), generator=g)
    sequence = centres.gather(1, which[..., None].expand(-1, -1, dim)) + 0.5 * torch.randn(
        batch, length, dim, generator=g
    )
    asked = centres[:, :1] + 0.5 * torch.randn(batch, candidates, dim, generator=g)
    mask = torch.rand(batch, length, generator=g) < 0.8
    return asked, sequence, mask


def codes(sdim: SDIM, vectors: torch.Tensor) -> torch.Tensor:
    """Bits by the definition: sign(R x), tau to a number, the first bit the lowest."""
    bits = (sdim.projection(vectors) > 0).long().unflatten(-1, (sdim.groups, sdim.hash_width))
    return sum(bits[..., i] * 2**i for i in range(sdim.hash_width))


def make(*args, rule="l2", **options) -> SDIM:
    """With weights that tell the distances apart, as training leaves them."""
    sdim = SDIM(*args, rule=rule, **options)
    with torch.no_grad():
        for weight in sdim.parameters():
            weight.copy_(torch.linspace(8, -1, len(weight)))
    return sdim


def reference(sdim: SDIM, asked, sequence, mask) -> torch.Tensor:
    weight = getattr(sdim, "weight", None)
    return pool_reference(codes(sdim, asked), codes(sdim, sequence), sequence, mask, sdim.rule, weight)


def jagged(sequence: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.cat((torch.zeros(1, dtype=torch.int64), mask.sum(1)))
    return sequence[mask], lengths.cumsum(0)


def by_item(sequence: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The same events as places [B, L] in a matrix of vectors, in another order and with rows that nobody reads."""
    vectors = torch.cat((sequence.flatten(0, 1), sequence.new_full((2, sequence.shape[2]), torch.nan)))
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
    return vectors[order], order.argsort()[: len(vectors) - 2].view(sequence.shape[:2])
