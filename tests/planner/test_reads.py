"""Collisions: what ids that share rows do to each other, beside a sum over all ids."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import embcomp
from embcomp.planner.reads import MEASURED, TRAINED, Reads


def by_id(counts, share: float, width: int) -> float:
    """The sum that the docstring describes, one id at a time."""
    whole, found = counts.sum().item(), 0.0
    for n in counts[counts > 0].tolist():
        p = n / whole
        found += p * min(1.0, n / width / TRAINED) ** 2 * max(0.0, (p * share * len(counts)) ** -0.5 - 1)
    return found / MEASURED


@given(st.integers(0, 1000), st.floats(0.001, 0.999), st.sampled_from([4, 16, 64]), st.floats(0, 3))
def test_groups_of_ids_stand_for_their_ids(seed, share, width, skew):
    random = torch.Generator().manual_seed(seed)
    counts = (1000 * (torch.rand(300, generator=random) + 1e-3) ** -skew).round().long() - 1000 * (seed % 2)
    counts = counts.clamp(min=0)
    counts[0] += 1
    assert Reads.of(counts).collisions(share, width) == pytest.approx(by_id(counts, share, width), rel=0.15, abs=0.02)


def test_ids_that_are_read_equally_often():
    assert Reads.of(torch.full((500,), 10_000)).collisions(0.25, 16) == pytest.approx(1 / MEASURED)
    assert Reads(0.0).collisions(0.25, 16) == pytest.approx(1.0)  # unknown counts
    assert Reads.of(torch.full((500,), 10_000)).collisions(1.0, 16) == 0.0


def test_rows_for_the_ids_that_are_read_are_enough():
    """Of a million ids a thousand have all look-ups: two thousand rows are as good as two for each of these."""
    counts = torch.zeros(1_000_000, dtype=torch.int64)
    counts[::1000] = 5000
    assert Reads.of(counts).collisions(0.002, 16) == 0.0
    assert Reads.of(counts).collisions(0.00025, 16) == pytest.approx(1 / MEASURED)


def test_ids_that_are_hardly_read_lose_nothing():
    few, many = (Reads.of(torch.full((5000,), n)).collisions(0.1, 16) for n in (2, 2000))
    assert few < 0.001 * many


@pytest.mark.parametrize("count", ["served", "training"])
def test_more_bytes_are_not_expected_to_lose_more(count):
    """Most ids are never read, and rows that are never read make the grid of few bits coarser."""
    often = torch.arange(1, 20_001).double() ** -1.1
    ids = torch.multinomial(often, 30_000, replacement=True, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(ids, minlength=20_000)
    tables = [embcomp.Table("shop", 20_000, 8), embcomp.Table("city", 500, 8)]
    shares = (2, 5, 10, 20, 30, 50, 80)
    choices = [embcomp.choose(tables, f"{share}%", count=count, counts={"shop": counts}) for share in shares]
    losses = [choice.loss for choice in choices]
    assert all(later <= earlier + 1e-4 for earlier, later in itertools.pairwise(losses))
    assert losses[1] < 0.005 or count == "training"  # about as many rows as ids that are read, in 4 bits
