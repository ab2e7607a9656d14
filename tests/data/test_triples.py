"""Batches of a user, a positive and a negative: each pair once, resumable, uniform negatives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataError
from data.triples import num_batches, triples

EDGES = torch.stack([torch.arange(103) % 40, torch.arange(103)])


@settings(max_examples=25)
@given(st.integers(1, 110), st.integers(0, 5), st.integers(0, 3))
def test_each_pair_once_in_batches_of_almost_one_size(size, seed, epoch):
    batches = list(triples(EDGES, 200, size, seed=seed, epoch=epoch))
    assert len(batches) == num_batches(EDGES, size)
    lengths = [len(batch.users) for batch in batches]
    assert size >= max(lengths) >= min(lengths) >= max(lengths) - 1
    pairs = torch.cat([torch.stack([batch.users, batch.positives]) for batch in batches], dim=1)
    assert sorted(pairs.T.tolist()) == sorted(EDGES.T.tolist())


def test_batches_depend_on_seed_and_epoch_alone():
    def draw(**other):
        return list(triples(EDGES, 200, 10, **{"seed": 1, "epoch": 2, **other}))

    def same(first, second):
        return all(torch.equal(getattr(first, n), getattr(second, n)) for n in ("users", "positives", "negatives"))

    whole = draw()
    for start in (0, 4, len(whole)):
        rest = draw(start_batch=start)
        assert len(rest) == len(whole) - start
        assert all(map(same, rest, whole[start:]))
    for other in ({"seed": 2}, {"epoch": 3}):
        assert not any(torch.equal(a.users, b.users) for a, b in zip(whole, draw(**other), strict=True))
    assert same(whole[0].to("cpu"), whole[0])


def test_negatives_are_uniform_over_all_items():
    edges = torch.zeros(2, 20_000, dtype=torch.int64)
    counts = sum(batch.negatives.bincount(minlength=10) for batch in triples(edges, 10, 999, seed=0))
    assert counts.sum() == 20_000
    # Chi-squared with 9 degrees of freedom is above 27.9 once in a thousand.
    assert ((counts - 2000) ** 2 / 2000).sum() < 27.9


def test_a_batch_holds_something():
    with pytest.raises(DataError, match="batch_size must be at least 1, not 0"):
        num_batches(EDGES, 0)


@pytest.mark.parametrize("parts", [1, 2, 4, 7])
def test_shares_are_equally_large_and_hold_the_batch_together(parts):
    for batch in triples(EDGES, 200, 11, seed=1):
        shares = [batch.share(part, parts) for part in range(parts)]
        assert {len(share) for share in shares} == {-(-len(batch) // parts)}
        for name in ("users", "positives", "negatives"):
            rows = [getattr(share, name)[: len(share) - share.padding] for share in shares]
            assert torch.equal(torch.cat(rows), getattr(batch, name))
        assert {share.total for share in shares} == {len(batch)}
