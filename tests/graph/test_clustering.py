import random
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embcomp.graph import Clusters, cluster, interactions
from embcomp.graph.partition import Algorithm, Objective, leiden, problem
from embcomp.graph.row_budget import count_rows, to_rows
from tests.graph.graphs import blocks, power_law

PAIRS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), min_size=1, max_size=60)


def edges_of(pairs: list[tuple[int, int]], **more):
    users, items = np.array(pairs).T
    return interactions((users, items), **more)


@settings(max_examples=40)
@given(PAIRS, st.floats(0, 1), st.floats(0, 1), st.sampled_from(["louvain", "label_propagation", "leiden"]))
@example([(0, 0)], 0.0, 0.0, "leiden")
@example([(i, i) for i in range(10)], 0.3, 0.1, "louvain")  # components without an edge between them
@example([(i, 0) for i in range(13)], 0.5, 0.0, "leiden")  # a star
@example([(i, j) for i in range(13) for j in range(10)], 0.4, 0.6, "leiden")  # everybody clicked everything
def test_the_row_budget_is_met_exactly(pairs: list[tuple[int, int]], a: float, b: float, algorithm) -> None:
    edges = edges_of(pairs, num_users=15)
    users, items = np.unique(edges.users).size, np.unique(edges.items).size
    wanted = (1 + int(a * (users - 1)), 1 + int(b * (items - 1)))
    both = cluster(edges, wanted, algorithm=algorithm)
    total = cluster(edges, sum(wanted), algorithm=algorithm)
    assert (both.users.rows, both.items.rows) == wanted
    assert total.users.rows + total.items.rows == sum(wanted)
    for found in (both, total):
        for side, ids in ((found.users, np.unique(edges.users)), (found.items, np.unique(edges.items))):
            rows = side.assignment()
            assert set(rows[rows >= 0].tolist()) == set(range(side.rows))  # no row is empty
            assert (rows >= 0).nonzero()[:, 0].tolist() == ids.tolist()  # isolated ids are unseen


def test_single_ids_are_merged_where_no_edge_saves_a_row() -> None:
    """A star: an item and the user are a row in each table, whatever is merged along an edge."""
    graph = problem(edges_of([(0, item) for item in range(8)]), "bipartite_modularity")
    found = to_rows(graph, np.arange(9, dtype=np.int32), 0.1, 4)
    assert count_rows(graph, found) == (1, 3)


def test_the_margin_costs_little_quality() -> None:
    edges = power_law(300, 200, 2500, 1)
    graph = problem(edges, "bipartite_modularity")
    labels = leiden(graph, 8.0, 0)
    before, rows = graph.quality(labels, 8.0), sum(count_rows(graph, labels))
    for wanted in (rows - 6, rows + 6):
        found = to_rows(graph, labels, 8.0 * graph.scale, wanted)
        assert sum(count_rows(graph, found)) == wanted
        assert graph.quality(found, 8.0) > before - 0.005
        shuffled = np.random.default_rng(0).permutation(labels)  # what chance would do
        assert graph.quality(found, 8.0) > graph.quality(shuffled, 8.0)


def test_the_same_seed_gives_the_same_clusters_whatever_igraph_did_before() -> None:
    edges = power_law(60, 40, 300)
    first = cluster(edges, 20, seed=3)
    random.random()
    cluster(edges, 12)
    again = cluster(edges, 20, seed=3)
    assert torch.equal(first.users.words, again.users.words)
    assert torch.equal(first.items.words, again.items.words)
    assert (first.quality, first.resolution) == (again.quality, again.resolution)


def test_without_a_compiler_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = power_law(60, 40, 300, weighted=True)
    expected = cluster(edges, 20)
    monkeypatch.setattr("embcomp.graph.moves.native.library", lambda: None)
    assert torch.equal(cluster(edges, 20).users.assignment(), expected.users.assignment())


@pytest.mark.parametrize("objective", ["bipartite_modularity", "modularity", "cpm", "balanced"])
def test_every_objective_finds_planted_groups(objective) -> None:
    edges, of_user, of_item = blocks()
    found = cluster(edges, 8, objective=objective)
    assert found.users.assignment().tolist() == of_user.tolist()
    assert found.items.assignment().tolist() == of_item.tolist()
    assert torch.equal(found.users.labels, found.items.labels)
    assert 0 < found.quality < 1


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
@pytest.mark.parametrize("objective", get_args(Objective))
def test_every_objective_with_every_algorithm(objective, algorithm) -> None:
    """Exact rows, the quality that it says, and the same again."""
    edges = power_law(60, 40, 300, weighted=True)
    for rows in (30, (25, 11), (3, 20)):
        found, again = (cluster(edges, rows, objective=objective, algorithm=algorithm, seed=4) for _ in range(2))
        got = (found.users.rows, found.items.rows)
        assert got == rows if isinstance(rows, tuple) else sum(got) == rows
        assert torch.equal(found.users.words, again.users.words)
        assert torch.equal(found.items.words, again.items.words)
        graph = problem(edges, objective)
        labels = [side.labels[side.assignment()[ids]] for side, ids in zip(
            (found.users, found.items), (graph.users, graph.items), strict=True)]  # fmt: skip
        assert graph.quality(torch.cat(labels).numpy(), found.resolution) == pytest.approx(found.quality)


def test_rows_kept_for_unseen_ids() -> None:
    edges = power_law(50, 30, 200)
    found = cluster(edges, (12, 9), unseen_rows=(2, 0))
    assert (found.users.rows, found.users.unseen_rows, int(found.users.assignment().max())) == (12, 2, 9)
    assert (found.items.rows, found.items.unseen_rows) == (9, 0)
    found = cluster(edges, 20, unseen_rows=3)
    assert found.users.rows + found.items.rows == 20
    assert found.users.unseen_rows == found.items.unseen_rows == 3


def test_saved_together(tmp_path) -> None:
    edges = power_law(50, 30, 200)
    found = cluster(edges, 20)
    found.save(tmp_path / "tonight")
    again = Clusters.load(tmp_path / "tonight")
    assert torch.equal(again.users.words, found.users.words)
    assert torch.equal(again.items.labels, found.items.labels)
    assert again.items.coherence == found.items.coherence
    assert (again.quality, again.resolution) == (found.quality, found.resolution)
    cluster(edges, 22).items.save(tmp_path / "tonight" / "items.map")
    with pytest.raises(ValueError, match="different clusterings"):
        Clusters.load(tmp_path / "tonight")


def test_what_cannot_be_met_is_refused() -> None:
    edges = edges_of([(0, 0), (1, 0), (2, 1)], num_users=9)
    for rows, message in [
        (1, "rows=1 .*one row each at least"),
        (6, "rows=6 .*5 at most"),
        ((0, 1), "rows=0 for users.*1 to 3"),
        ((1, 3), "rows=3 for items.*1 to 2"),
        (2.5, "rows must be an integer"),
        ((2,), r"pair of integers, got \(2,\)"),
        ((1, 1, 1), "pair of integers"),
        (True, "rows must be an integer"),
        (-4, "rows=-4"),
    ]:
        with pytest.raises(ValueError, match=message):
            cluster(edges, rows)
    with pytest.raises(ValueError, match="5 kept for unseen"):
        cluster(edges, 6, unseen_rows=(5, 0))
    with pytest.raises(ValueError, match=r"pair of integers, got 4 \(unseen_rows \(1,\)\)"):
        cluster(edges, 4, unseen_rows=(1,))
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        cluster(edges, 4, seed=-1)
    with pytest.raises(ValueError, match="no interactions"):
        cluster(interactions((np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))), 4)
    with pytest.raises(ValueError, match="algorithm must be one of leiden, louvain, label_propagation, got 'x'"):
        cluster(edges, 3, algorithm="x")
    with pytest.raises(ValueError, match="objective must be one of"):
        cluster(edges, 3, objective="x")


def test_every_id_its_row_and_one_row_for_all() -> None:
    edges = power_law(20, 12, 90)
    users, items = np.unique(edges.users).size, np.unique(edges.items).size
    found = cluster(edges, users + items)
    assert (found.users.sizes() == 1).all()
    found = cluster(edges, 2)
    assert set(found.users.assignment().tolist()) <= {0, -1}
    assert found.quality == pytest.approx(1 - found.resolution)


def test_progress_is_shown_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    cluster(power_law(50, 30, 200), 20, progress=True)
    said = capsys.readouterr().err
    assert "resolution" in said
    assert "20 wanted" in said
    cluster(power_law(50, 30, 200), 20)
    assert capsys.readouterr().err == ""
