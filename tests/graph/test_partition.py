import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embcomp.graph.edges import Edges
from embcomp.graph.moves import Graph, local_moves, local_moves_reference, symmetric
from embcomp.graph.partition import Problem, label_propagation, leiden, louvain, numbered, problem
from tests.graph.graphs import blocks, power_law


def as_networkx(graph: Problem, directed: bool) -> nx.Graph:
    found = nx.DiGraph() if directed else nx.Graph()
    found.add_nodes_from(range(graph.out.size))
    weights = np.ones(graph.sources.size) if graph.weights is None else graph.weights
    found.add_weighted_edges_from(zip(graph.sources.tolist(), graph.targets.tolist(), weights.tolist(), strict=True))
    return found


def sets(labels: np.ndarray) -> list[set[int]]:
    return [set(np.flatnonzero(labels == c).tolist()) for c in np.unique(labels)]


@given(st.integers(0, 1000), st.booleans(), st.floats(0.1, 5), st.integers(1, 12))
def test_quality_is_that_of_networkx(seed: int, weighted: bool, resolution: float, clusters: int) -> None:
    """Barber's modularity is the directed modularity of edges from users to items."""
    edges = power_law(20, 15, 60, seed, weighted)
    barber, newman = problem(edges, "bipartite_modularity"), problem(edges, "modularity")
    labels = np.random.default_rng(seed).integers(0, clusters, barber.out.size).astype(np.int32)
    for graph, directed in ((barber, True), (newman, False)):
        expected = nx.community.modularity(as_networkx(graph, directed), sets(labels), resolution=resolution)
        assert graph.quality(labels, resolution) == pytest.approx(expected)


def test_quality_by_its_definition() -> None:
    edges = power_law(12, 9, 40, 1, weighted=True)
    labels = np.random.default_rng(0).integers(0, 4, 12 + 9)
    for objective, price in (
        ("cpm", lambda n: sum(k * k for k in n) / 2),
        ("balanced", None),
    ):
        graph = problem(edges, objective)
        own = labels[: graph.out.size]
        inside = sum(w for u, i, w in zip(graph.sources, graph.targets, graph.weights, strict=True) if own[u] == own[i])
        if price:
            cost = price(np.bincount(own).tolist())
        else:
            degree = np.bincount(graph.sources, graph.weights, minlength=own.size)
            split = graph.users.size
            cost = sum(
                degree[u] / graph.items.size for u in range(split) for i in range(split, own.size) if own[u] == own[i]
            )
        assert graph.quality(own, 0.7) == pytest.approx((inside - 0.7 * cost) / graph.total, rel=1e-5)


@given(st.integers(0, 1000), st.booleans(), st.floats(0.2, 4), st.integers(1, 6))
def test_compiled_moves_are_the_reference(seed: int, weighted: bool, resolution: float, passes: int) -> None:
    graph = problem(power_law(25, 15, 80, seed, weighted), "bipartite_modularity")
    rng = np.random.default_rng(seed)
    n = graph.out.size
    order, labels = rng.permutation(n).astype(np.int32), rng.integers(0, n, n).astype(np.int32)
    arguments = (graph.graph, graph.scale * resolution, graph.tie, order, passes, labels)
    expected = local_moves_reference(*arguments)
    assert np.array_equal(local_moves(*arguments), expected)
    assert graph.quality(expected, resolution) >= graph.quality(labels, resolution) - 1e-9


def test_a_vertex_leaves_where_it_is_better_alone() -> None:
    """Two pairs that share no edge, in one cluster: whoever moves first takes an empty number."""
    starts, adjacency, weights = symmetric(np.array([0, 1]), np.array([2, 3]), None, 4)
    graph = Graph(starts, adjacency, weights, np.array([1.0, 1, 0, 0]), np.array([0.0, 0, 1, 1]))
    found = local_moves(graph, 0.6, 1e-9, np.arange(4, dtype=np.int32), 9, np.zeros(4, dtype=np.int32))
    assert found[0] == found[2] != found[1] == found[3]


def test_planted_groups_are_found() -> None:
    edges, of_user, of_item = blocks()
    graph = problem(edges, "bipartite_modularity")
    planted = numbered(np.concatenate([of_user[graph.users], of_item[graph.items]]))
    for algorithm in (louvain, leiden):
        assert np.array_equal(algorithm(graph, 1.0, seed=0), planted)
    parts = label_propagation(graph, 1.0, seed=0)  # single moves split a group at times, but never mix two
    assert all(np.unique(planted[parts == c]).size == 1 for c in np.unique(parts))
    assert parts.max() < 8


@pytest.mark.parametrize("objective", ["bipartite_modularity", "modularity"])
def test_as_good_as_networkx(objective) -> None:
    graph = problem(power_law(150, 100, 900, 3, weighted=True), objective)
    theirs = nx.community.louvain_communities(
        as_networkx(graph, objective == "bipartite_modularity"), resolution=2.0, seed=0
    )
    labels = np.empty(graph.out.size, dtype=np.int64)
    for c, members in enumerate(theirs):
        labels[list(members)] = c
    floor = graph.quality(labels, 2.0)
    assert graph.quality(louvain(graph, 2.0, 0), 2.0) >= 0.99 * floor
    assert graph.quality(leiden(graph, 2.0, 0), 2.0) >= floor
    assert graph.quality(leiden(graph, 2.0, 0, louvain(graph, 2.0, 0)), 2.0) >= 0.99 * floor


def partitions(n: int) -> np.ndarray:
    """All ways to group n vertices, as labels [ways, n]."""
    found = [[0]]
    for _ in range(n - 1):
        found = [[*labels, c] for labels in found for c in range(max(labels) + 2)]
    return np.array(found)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([0.7, 1.0, 1.6]))
def test_leiden_finds_the_maximum_of_barbers_modularity(seed: int, weighted: bool, resolution: float) -> None:
    """Igraph's directed Leiden with out- and in-degrees, against all partitions of eight vertices at most."""
    graph = problem(power_law(4, 4, 9, seed, weighted), "bipartite_modularity")
    users, n = graph.users.size, graph.out.size
    b = np.zeros((users, n - users))
    b[graph.sources, graph.targets - users] = 1 if graph.weights is None else graph.weights
    gain = b - resolution * b.sum(1)[:, None] * b.sum(0) / b.sum()
    labels = partitions(n)
    quality = np.einsum("ui,pui->p", gain, labels[:, :users, None] == labels[:, None, users:]) / b.sum()
    found = max(graph.quality(leiden(graph, resolution, s), resolution) for s in range(3))
    assert found == pytest.approx(quality.max(), abs=1e-6)


def test_vertices_are_ids_with_edges() -> None:
    graph = problem(Edges(np.array([1, 4], dtype=np.int32), np.array([2, 2], dtype=np.int32), None, 9, 5), "cpm")
    assert (graph.users.tolist(), graph.items.tolist()) == ([1, 4], [2])
    assert (graph.sources.tolist(), graph.targets.tolist()) == ([0, 1], [2, 2])
