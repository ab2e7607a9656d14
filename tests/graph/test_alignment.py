import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import embcomp
from embcomp.graph import ClusterMap, Mixture, align, cluster, interactions, remap_, warm_rows
from tests.graph.graphs import blocks, power_law

ROWS = st.integers(-1, 3)


@settings(max_examples=40)
@given(st.lists(ROWS, min_size=1, max_size=12), st.lists(ROWS, min_size=1, max_size=12))
def test_no_renumbering_overlaps_more(before: list[int], after: list[int]) -> None:
    old, new = ClusterMap.of(before, 4), ClusterMap.of(after, 4, labels=torch.tensor([10, 11, 12, 13]))
    found = align(old, new)
    (number,) = {tuple(found.labels.argsort().tolist())}
    assert found.assignment().tolist() == [-1 if row < 0 else number[row] for row in after]
    pairs = [(a, b) for a, b in zip(before, after, strict=False) if a >= 0 and b >= 0]
    best = max(sum(a == order[b] for a, b in pairs) for order in itertools.permutations(range(4)))
    assert sum(a == number[b] for a, b in pairs) == best


def test_a_new_seed_moves_few_ids_once_aligned() -> None:
    edges, _, _ = blocks()
    old, new = cluster(edges, 8), cluster(edges, 8, seed=5)
    found = align(old, new)
    assert torch.equal(found.items.assignment(), old.items.assignment())
    edges = power_law(60, 40, 400)
    old, new = cluster(edges, (9, 8)), cluster(edges, (9, 8), seed=5)
    kept = (align(old.items, new.items).assignment() == old.items.assignment()).sum()
    assert kept > (new.items.assignment() == old.items.assignment()).sum()
    again = align(old, new)
    assert align(again, again).users.assignment().tolist() == again.users.assignment().tolist()
    assert again.extend(edges).items.num_ids == 40  # both sides still know each other's clusters


def test_a_smaller_clustering_leaves_rows_unread() -> None:
    """As hot ids give: those that are alone in their cluster need no row more, and how many they are changes."""
    old = ClusterMap.of([3, 3, 0, 1, 2, -1], 5, 1)
    found = align(old, ClusterMap.of([1, 1, 0, 0, 2, -1], 4, 1))
    assert (found.rows, found.unseen_rows) == (5, 1)
    rows = found.assignment().tolist()
    assert rows[:2] + rows[4:] == [3, 3, 2, -1]
    assert rows[2] == rows[3]
    assert rows[2] in (0, 1)
    (unread,) = set(range(4)) - set(rows)
    assert found.labels[unread] == -1
    edges = interactions((np.array([0, 0, 1, 1]), np.array([2, 6, 4, 6])))
    assert found.extend(edges).assignment()[6] in (rows[2], rows[4])  # nobody joins it


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="old map has 2 rows, 0 of them for unseen ids, the new one 3 and 1"):
        align(ClusterMap.of([0], 2), ClusterMap.of([0], 3, 1))
    with pytest.raises(ValueError, match="4 rows, the old map 2"):
        warm_rows(torch.ones(4, 1), ClusterMap.of([0], 2), ClusterMap.of([0], 2))


def test_warm_rows_are_the_means_of_what_ids_read() -> None:
    old = ClusterMap.of([0, 1, 2, 2, 3, -1], 5, 1)
    new = ClusterMap.of([0, 0, 2, 2, 0, 1, 1], 5, 1)
    weight = torch.randn(5, 3)
    counts = torch.tensor([1.0, 2, 5, 0, 1, 9])
    found = warm_rows(weight, old, new, counts)
    torch.testing.assert_close(found[0], (weight[0] + 2 * weight[1] + weight[3]) / 4)
    assert torch.equal(found[1:], weight[1:])  # 2 by the same ids; the others read by ids without trained rows
    torch.testing.assert_close(warm_rows(weight, old, new)[0], weight[[0, 1, 3]].mean(0))


def test_a_trained_table_takes_a_new_map() -> None:
    old = ClusterMap.of([0, 0, 1, -1], 3)
    emb = embcomp.nn.CompressedEmbedding(4, 8, embcomp.GraphHash(old), padding_idx=1)
    before = emb(torch.arange(4)).detach()
    remap_(emb, ClusterMap.of([0, 0, 1, 2, 1], 3))  # as `extend` does: nothing but new places
    after = emb(torch.arange(5)).detach()
    assert torch.equal(after[:3], before[:3])
    assert torch.equal(after[4], before[2])
    remap_(emb, ClusterMap.of([0, 1, 1, 2, 1], 3))
    torch.testing.assert_close(emb(torch.tensor(2)).detach(), (before[0] + 2 * before[2]) / 3)
    other = embcomp.nn.CompressedEmbedding(5, 8, embcomp.GraphHash(ClusterMap.of([0, 1, 1, 2, 1], 3)))
    other.load_state_dict(emb.state_dict())
    assert torch.equal(other(torch.tensor(2)), emb(torch.tensor(2)))
    with pytest.raises(ValueError, match="the old map 3, the new one 4"):
        remap_(emb, ClusterMap.of([0], 4))
    with pytest.raises(ValueError, match="got a ClusterMap for one of HashingTrick"):
        remap_(embcomp.nn.CompressedEmbedding(5, 8, embcomp.HashingTrick(rows=3)), old)
    assert isinstance(old, ClusterMap)
    assert not isinstance(old, Mixture)
