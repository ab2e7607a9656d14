import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embcomp.graph import ClusterMap, cluster, interactions
from embcomp.graph.growth import coherence
from tests.graph.graphs import blocks, power_law


def split_off(edges, of_item: np.ndarray, held: np.ndarray):
    """Edges without the held items, and those of the held items alone."""
    mask = np.isin(edges.items, held)
    return edges.where(~mask), edges.where(mask)


def test_new_ids_join_their_neighbours() -> None:
    edges, _, of_item = blocks(users=12, items=12)
    held = np.arange(40, 48)
    old_edges, new_edges = split_off(edges, of_item, held)
    old = cluster(old_edges, 8)
    assert (old.items.assignment()[held] == -1).all()
    for new in (
        old.items.extend(new_edges, old.users),
        old.items.extend(edges),  # without the users' map, by the other items that their users clicked
        old.extend(new_edges).items,
    ):
        assert new.assignment().tolist() == of_item.tolist()
        assert (new.rows, new.labels.tolist()) == (old.items.rows, old.items.labels.tolist())


@settings(max_examples=25)
@given(st.integers(0, 500), st.booleans(), st.integers(0, 2))
def test_no_placed_id_ever_moves(seed: int, weighted: bool, kept: int) -> None:
    edges = power_law(40, 25, 150, seed, weighted)
    early = edges.where(np.random.default_rng(seed).random(len(edges)) < 0.5)
    old = cluster(early, 14 + 2 * kept, unseen_rows=kept, algorithm="louvain")
    later = power_law(44, 29, 200, seed + 1, weighted)
    new, alone = old.extend(later), old.items.extend(later)
    for before, after, n in ((old.users, new.users, 44), (old.items, new.items, 29), (old.items, alone, 29)):
        rows = before.assignment()
        assert torch.equal(after.assignment()[: rows.numel()][rows >= 0], rows[rows >= 0])
        assert (after.num_ids, after.rows, after.unseen_rows) == (n, before.rows, kept)
        assert int(after.assignment().max()) < after.own_rows


def test_the_rule_by_brute_force() -> None:
    """Most weight, then the smaller cluster, then the first."""
    users = ClusterMap.of([0, 0, 1, 2], 3, side="users", clustering="c", labels=torch.tensor([5, 6, 8]))
    items = ClusterMap.of([1, 1, 0, -1], 2, side="items", clustering="c", labels=torch.tensor([5, 6]))

    def row(log: list[tuple[int, float]]) -> int:
        table = {"user_id": np.array([u for u, _ in log]), "item_id": np.full(len(log), 3), "w": [w for _, w in log]}
        return int(items.extend(interactions(table, weight="w"), users).assignment()[3])

    assert row([(0, 1.0), (1, 1.0), (2, 1.5)]) == 0
    assert row([(0, 1.0), (1, 0.2), (2, 1.5)]) == 1
    assert row([(0, 1.0), (2, 1.0)]) == 0  # item row 0 (cluster 5) holds one item, row 1 two
    assert row([(3, 9.0), (2, 1.0)]) == 1  # cluster 8 has no items
    assert row([(3, 9.0)]) == -1


@given(st.integers(0, 300), st.booleans())
def test_a_new_id_goes_where_its_neighbours_and_theirs_are(seed: int, weighted: bool) -> None:
    """Against dense matrices:  P Z + P R Y, the heaviest row, among equals the smallest."""
    edges = power_law(12, 9, 40, seed, weighted)
    users, items = (np.random.default_rng(seed).integers(-1, 4, n) for n in (12, 9))
    mine = ClusterMap.of(items, 4, clustering="c")
    found = mine.extend(edges, ClusterMap.of(users, 4, side="users", clustering="c")).assignment()
    table = np.zeros((9, 12))
    np.add.at(table, (edges.items, edges.users), 1.0 if edges.weights is None else edges.weights)
    one = np.eye(5)[:, :4]  # the last row, -1, is empty
    back = table.T / np.maximum(table.sum(0), 1e-9)[:, None]
    weight = table @ (one[users] + back @ one[items]) / np.maximum(table.sum(1), 1e-9)[:, None]
    sizes = mine.sizes().numpy()
    for item in np.flatnonzero(items < 0):
        best = min(range(4), key=lambda row: (-round(weight[item, row], 9), sizes[row], row))
        assert found[item] == (best if weight[item, best] > 0 else -1)


def test_nobody_joins_the_row_of_a_hot_id() -> None:
    old = ClusterMap.of([0, 0, 1, -1], 3, labels=torch.tensor([0, 1, 2])).with_own_rows([2])
    edges = interactions((np.array([0, 0, 0, 1, 1]), np.array([2, 2, 3, 0, 1])))
    assert old.assignment()[2] == 1  # alone before, so it keeps its row
    hot = ClusterMap.of([0, 1, 1, -1], 2).with_own_rows([2])
    assert hot.extend(edges).assignment().tolist() == [0, 1, 2, -1]


def test_new_users_of_new_items() -> None:
    edges, of_user, of_item = blocks(users=10, items=10)
    new = (edges.users >= 36) | (edges.items >= 36)
    old = cluster(edges.where(~new), 8)
    found = old.extend(edges.where(new))
    assert found.users.assignment().tolist() == of_user.tolist()
    assert found.items.assignment().tolist() == of_item.tolist()


@given(st.integers(0, 300), st.integers(1, 5))
def test_coherence_is_the_chance_to_meet_again(seed: int, rows: int) -> None:
    edges = power_law(8, 10, 30, seed)
    row_of_id = np.random.default_rng(seed).integers(-1, rows, 10)
    met, seen = 0.0, 0
    for u, i in zip(edges.users, edges.items, strict=True):
        others = [j for v, j in zip(edges.users, edges.items, strict=True) if v == u and j != i]
        if others:
            seen += 1
            met += np.mean([row_of_id[i] >= 0 and row_of_id[i] == row_of_id[j] for j in others])
    assert coherence(edges, "items", row_of_id) == pytest.approx(met / seen if seen else 0.0)


def test_drift_grows_with_what_has_changed() -> None:
    edges, _, _ = blocks(users=20)
    found = cluster(edges, 8)
    assert found.items.drift(edges) == pytest.approx(0)
    same, _, _ = blocks(users=20, seed=1)
    assert found.items.drift(same) < 0.1
    rng = np.random.default_rng(0)
    shuffled = interactions((edges.users, rng.permutation(edges.num_items)[edges.items]))
    assert found.items.drift(shuffled) > 0.5
    new_ids = interactions((edges.users, edges.items + edges.num_items))
    assert found.items.drift(new_ids) == 1
    with pytest.raises(ValueError, match="not made by `cluster`"):
        ClusterMap.of([0], 1).drift(edges)


def test_drift_since_another_day_knows_nothing_of_the_first() -> None:
    """Clusters of chance fit what they were made from and nothing else; so no other day has drifted from another."""
    first, monday, friday = (power_law(400, 300, 3000, seed) for seed in range(3))
    found = cluster(first, (200, 150))
    assert found.items.drift(monday) > 0.5
    assert found.items.drift(friday, since=monday) < 0.3
    by_hand = [coherence(day, "items", found.items.assignment().numpy()) for day in (friday, monday)]
    assert found.items.drift(friday, since=monday) == pytest.approx(max(0, 1 - by_hand[0] / by_hand[1]))
    plain = ClusterMap.of(found.items.assignment(), 150)
    assert plain.drift(monday, since=friday) == pytest.approx(max(0, 1 - by_hand[1] / by_hand[0]))


def test_maps_that_do_not_belong_together_are_refused() -> None:
    edges = power_law(40, 25, 150)
    one, two = cluster(edges, 10), cluster(edges, 11)
    for other in (one.items, two.users):
        with pytest.raises(ValueError, match="the other side's map of the same clustering"):
            one.items.extend(edges, other)
