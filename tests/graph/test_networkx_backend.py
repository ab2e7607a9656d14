"""networkx's own Louvain through `cluster(backend=...)`, against igraph's modularity and ours."""

import igraph
import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embcomp.graph import cluster
from embcomp.graph.networkx_backend import networkx_partition
from embcomp.graph.partition import Problem, problem
from tests.graph.graphs import blocks, power_law


def igraph_modularity(graph: Problem, labels: np.ndarray, resolution: float, directed: bool) -> float:
    pairs = zip(graph.sources.tolist(), graph.targets.tolist(), strict=True)
    found = igraph.Graph(n=graph.out.size, edges=list(pairs), directed=directed)
    return found.modularity(labels.tolist(), weights=graph.weights, resolution=resolution, directed=directed)


@settings(max_examples=6)
@given(st.integers(0, 1000), st.booleans(), st.floats(0.5, 4), st.sampled_from(["bipartite_modularity", "modularity"]))
def test_it_maximises_what_igraph_measures(seed: int, weighted: bool, resolution: float, objective) -> None:
    graph = problem(power_law(20, 15, 60, seed, weighted), objective)
    labels = networkx_partition(graph, objective, "louvain", "networkx")(graph, resolution, seed)
    barber = objective == "bipartite_modularity"
    found = igraph_modularity(graph, labels, resolution, directed=barber)
    assert graph.quality(labels, resolution) == pytest.approx(found, abs=1e-6)
    assert found >= igraph_modularity(graph, np.arange(labels.size), resolution, directed=barber)  # where it started


@pytest.mark.parametrize("rows", [35, (12, 9)])
def test_rows_are_exact_and_clusters_as_good_as_igraphs(rows) -> None:
    edges, *_ = blocks()
    theirs, ours = cluster(edges, rows, backend="networkx", algorithm="louvain"), cluster(edges, rows)
    found = (theirs.users.rows, theirs.items.rows)
    assert found == rows if isinstance(rows, tuple) else sum(found) == rows
    graph = problem(edges, "bipartite_modularity")
    labels = [
        np.append(c.users.labels[c.users.assignment()], c.items.labels[c.items.assignment()]) for c in (theirs, ours)
    ]
    at_one = [graph.quality(part, 1.0) for part in labels]
    assert at_one[0] > 0.9 * at_one[1]
    again = cluster(edges, rows, backend="networkx", algorithm="louvain")
    assert again.users.assignment().equal(theirs.users.assignment())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"objective": "cpm"}, "cannot serve objective='cpm'"),
        ({"algorithm": "label_propagation"}, "no resolution"),
        ({"algorithm": "leiden"}, "algorithm='leiden' on objective='bipartite_modularity'"),
        ({"algorithm": "leiden", "objective": "modularity"}, "algorithm='louvain' alone"),
        ({"backend": "gephi"}, "backend='gephi' cannot run"),
    ],
)
def test_what_it_cannot_do_is_said(wrong: dict[str, str], says: str) -> None:
    edges, *_ = blocks(groups=2, users=4, items=4)
    with pytest.raises(ValueError, match=says):
        cluster(edges, 4, **{"backend": "networkx", "algorithm": "louvain", **wrong})


def test_other_back_ends_go_through_networkx(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def louvain_communities(found, *, backend, **settings):
        asked.append((backend, found.is_directed()))
        return [{node} for node in found]

    monkeypatch.setattr(nx.community, "louvain_communities", louvain_communities)
    edges, *_ = blocks(groups=2, users=4, items=4)
    found = cluster(edges, 4, backend="fast", algorithm="louvain")
    assert found.users.rows + found.items.rows == 4  # merged from single ids
    assert set(asked) == {("fast", True)}
