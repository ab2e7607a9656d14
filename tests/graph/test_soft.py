from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embcomp.graph import ClusterMap, Mixture, cluster, mixture, second_clusters
from tests.graph.graphs import blocks, power_law


def dense(found: Mixture) -> np.ndarray:
    """The weights of a mixture as a matrix [num_ids, rows], normalised."""
    ids = torch.arange(found.num_ids)
    full = torch.zeros(found.num_ids, found.rows).scatter_add_(1, found.rows_of(ids), found.weights.float())
    return (full / full.sum(1, keepdim=True).clamp(min=1)).numpy()


@settings(max_examples=15)
@given(st.integers(0, 300), st.booleans(), st.integers(1, 5))
def test_weights_are_those_of_the_walks(seed: int, weighted: bool, k: int) -> None:
    """Against the formula with dense matrices."""
    edges = power_law(20, 15, 60, seed, weighted)
    clusters = cluster(edges, 12, algorithm="louvain")
    found = mixture(edges, clusters, "items", k=k)
    walk = np.zeros((15, 20))
    walk[edges.items, edges.users] = 1 if edges.weights is None else edges.weights
    to_items = walk.T / np.maximum(walk.sum(0), 1e-9)[:, None]
    to_users = walk / np.maximum(walk.sum(1), 1e-9)[:, None]
    label = clusters.items.labels.tolist()
    own, theirs = np.zeros((15, len(label))), np.zeros((20, len(label)))
    for i, row in enumerate(clusters.items.assignment().tolist()):
        own[i, row] = row >= 0
    for u, row in enumerate(clusters.users.assignment().tolist()):
        if row >= 0 and clusters.users.labels[row] in label:
            theirs[u, label.index(clusters.users.labels[row])] = 1
    exact = to_users @ (theirs + to_items @ own)
    for id in range(15):
        best = np.sort(exact[id])[::-1][:k]
        assert found.weights[id].tolist() == np.round(255 * best / max(best[0], 1e-9)).tolist() + [0] * (k - best.size)
        for row, weight in zip(found.rows_of(torch.tensor([id]))[0].tolist(), found.weights[id].tolist(), strict=True):
            if weight:
                assert exact[id, row] == pytest.approx(weight / 255 * best[0], abs=best[0] / 500)


def test_blocks_of_ids_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = power_law(200, 150, 2000)
    clusters = cluster(edges, 60)
    whole = mixture(edges, clusters, "users", k=3)
    monkeypatch.setattr("embcomp.graph.walks._BLOCK", 1500)
    again = mixture(edges, clusters, "users", k=3)
    assert torch.equal(again.words, whole.words)
    assert torch.equal(again.weights, whole.weights)


def test_planted_groups_stay_pure() -> None:
    edges, _, of_item = blocks(across=0.0)
    found = mixture(edges, cluster(edges, 8), "items", k=4)
    assert np.array_equal(dense(found), np.eye(4)[of_item])


def test_the_heaviest_of_a_mixture() -> None:
    clusters = ClusterMap.of([0, 1, 2], 3)
    rows, weights = torch.tensor([[2, 0, 1]] * 3), torch.tensor([[0.1, 0.6, 0.3], [0.0, 0, 0], [1.0, 1, 1]])
    found = Mixture.of(rows, weights, clusters)
    assert found.weights.tolist() == [[255, 128, 42], [0, 0, 0], [255, 255, 255]]
    assert found.first(2).rows_of(torch.tensor([0, 1])).tolist() == [[0, 1], [0, 0]]
    assert found.nbytes == 4 * (-(-9 * 2 // 32) + 2) + 9
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"of 3 clusters has no {k}"):
            found.first(k)
    for wrong in (rows + 1, rows - 1, rows.float()):
        with pytest.raises(ValueError, match=r"rows of a mixture must be integers in \[0, 3\)"):
            Mixture.of(wrong, weights, clusters)
    for wrong in (-weights, weights * float("nan"), weights[:2]):
        with pytest.raises(ValueError, match="weights"):
            Mixture.of(rows, wrong, clusters)


def test_ids_with_rows_of_their_own_read_them_alone() -> None:
    edges = power_law(60, 40, 300)
    clusters = cluster(edges, 20).with_own_rows(users=[3, 5])
    for found in (mixture(edges, clusters, "users"), second_clusters(edges, clusters)):
        own = clusters.users.assignment()[[3, 5]]
        assert np.array_equal(dense(found)[[3, 5]], np.eye(clusters.users.rows)[own])
        assert not dense(found)[6:, own].any()


def test_second_clusters_by_brute_force() -> None:
    edges = power_law(40, 30, 200, 2)
    clusters = cluster(edges, 16)
    found = dense(second_clusters(edges, clusters))
    label = {int(v): row for row, v in enumerate(clusters.users.labels)}
    first, items = clusters.users.assignment(), clusters.items.assignment()
    for user in range(40):
        votes = np.zeros(clusters.users.rows)
        for item in edges.items[edges.users == user]:
            row = label.get(int(clusters.items.labels[items[item]]), -1)
            if row >= 0 and row != first[user]:
                votes[row] += 1
        if first[user] < 0:
            assert not found[user].any()
        elif votes.any():
            (second,) = [row for row in np.flatnonzero(found[user]) if row != first[user]]
            assert votes[second] == votes.max()
            assert found[user, second] == found[user, first[user]] == 0.5
        else:
            assert found[user, first[user]] == 1


def test_new_ids_get_their_mixture_and_old_ones_keep_theirs(tmp_path: Path) -> None:
    edges, _, of_item = blocks(across=0.0)
    new = edges.items >= 36
    clusters = cluster(edges.where(~new), 8)
    old = mixture(edges.where(~new), clusters, "items", k=2)
    found = old.extend(edges.where(new), clusters.extend(edges.where(new)))
    assert np.array_equal(dense(found), np.eye(4)[of_item])
    found.save(tmp_path / "item.mix")
    again = Mixture.load(tmp_path / "item.mix")
    assert torch.equal(again.words, found.words)
    assert torch.equal(again.weights, found.weights)
    assert (again.k, again.rows, again.clustering) == (2, 4, clusters.items.clustering)
    with pytest.raises(ValueError, match="the mixture is of clustering"):
        old.extend(edges, cluster(edges, 9))
    with pytest.raises(ValueError, match="k >= 1"):
        mixture(edges, clusters, "items", k=0)
    with pytest.raises(ValueError, match="read 1 to 2 of them, got k=3"):
        old.extend(edges, clusters, k=3)


def test_new_ids_may_read_fewer_clusters() -> None:
    edges, *_ = blocks(across=0.2)
    new = edges.items >= 36
    clusters = cluster(edges.where(~new), 8)
    old = mixture(edges.where(~new), clusters, "items", k=3)
    longer = clusters.extend(edges)
    all_of_them, one = (dense(old.extend(edges, longer, k=k)) for k in (None, 1))
    assert np.array_equal(all_of_them[:36], one[:36])
    assert (one[36:].max(1) == 1).all()
    assert np.array_equal(one[36:].argmax(1), all_of_them[36:].argmax(1))
    assert ((all_of_them[36:] > 0).sum(1) == 3).all()
