"""The clustering of the user-item graph at one resolution: objectives, and the algorithms that maximise them.

The vertices are the users with an edge, then the items with one. With W the weight of the edges inside clusters and
Out_c, In_c the volumes of a cluster, every objective has the form  quality = (W - gamma sum_c Out_c In_c) / m.
"""

import itertools
import random
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from embcomp.extras import install
from embcomp.graph.edges import Edges
from embcomp.graph.moves import Graph, local_moves, symmetric

Objective = Literal["bipartite_modularity", "modularity", "cpm", "balanced"]
Algorithm = Literal["leiden", "louvain", "label_propagation"]
PROPAGATION_PASSES = 5
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Problem:
    """A graph to cluster.

    Attributes:
        users: the ids of the users with an edge: vertices 0, 1, ...
        items: the ids of the items with an edge: the vertices after those of the users.
        sources: the user's vertex of each edge, int32 [E].
        targets: the item's vertex of each edge, int32 [E].
        weights: the weight of each edge, float32 [E]; None for 1.
        out: the volume that a vertex adds to Out of its cluster, float64 [n].
        inn: the volume that a vertex adds to In of its cluster, float64 [n].
        scale: the factor in gamma = scale * resolution.
    """

    users: np.ndarray
    items: np.ndarray
    sources: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None
    out: np.ndarray
    inn: np.ndarray
    scale: float

    @cached_property
    def graph(self) -> Graph:
        """The same edges in both directions, for local moves."""
        return Graph(*symmetric(self.sources, self.targets, self.weights, self.out.size), self.out, self.inn)

    def forget_graph(self) -> None:
        """Free the memory of `graph`; it is made again at the next access."""
        self.__dict__.pop("graph", None)

    @property
    def total(self) -> float:
        """The summed weight of the edges, m."""
        return float(self.sources.size if self.weights is None else self.weights.sum(dtype=np.float64))

    @property
    def tie(self) -> float:
        """The difference of gains that may come from rounding."""
        return 1e-9 * self.total / self.sources.size

    def inside(self, labels: np.ndarray) -> float:
        """Return the weight of the edges within clusters, W."""
        same = labels[self.sources] == labels[self.targets]
        return float(same.sum() if self.weights is None else self.weights[same].sum(dtype=np.float64))

    def quality(self, labels: np.ndarray, resolution: float) -> float:
        """Return (W - gamma sum_c Out_c In_c) / m."""
        volume = np.bincount(labels, self.out) @ np.bincount(labels, self.inn)
        return (self.inside(labels) - self.scale * resolution * float(volume)) / self.total


def problem(edges: Edges, objective: Objective) -> Problem:
    """Make the graph of these edges with the volumes of an objective; see `embcomp.graph.cluster` for the formulas."""
    has_user, has_item = (np.bincount(ends, minlength=n) > 0 for ends, n in
                          ((edges.users, edges.num_users), (edges.items, edges.num_items)))  # fmt: skip
    users, items = np.flatnonzero(has_user), np.flatnonzero(has_item)
    n = users.size + items.size
    sources = (np.cumsum(has_user, dtype=np.int32) - 1)[edges.users]
    targets = (np.cumsum(has_item, dtype=np.int32) - 1 + users.size).astype(np.int32)[edges.items]
    by_user = np.bincount(sources, edges.weights, minlength=n).astype(np.float64)
    by_item = np.bincount(targets, edges.weights, minlength=n).astype(np.float64)
    m = by_user.sum()
    if objective == "bipartite_modularity":
        out, inn, scale = by_user, by_item, 1 / m
    elif objective == "modularity":
        out = inn = by_user + by_item
        scale = 1 / (4 * m)
    elif objective == "cpm":
        out = inn = np.ones(n)
        scale = 1 / 2
    elif objective == "balanced":
        out, inn = by_user, np.concatenate([np.zeros(users.size), np.ones(items.size)])
        scale = 1 / items.size
    else:
        raise ValueError(f"objective must be one of {', '.join(get_args(Objective))}, got {objective!r}")
    return Problem(users, items, sources, targets, edges.weights, out, inn, scale)


def louvain(problem: Problem, resolution: float, seed: int, levels: int = 100, passes: int = 100) -> np.ndarray:
    """Make local moves, then the same on the graph of clusters, until none moves (Blondel et al. 2008). int32 [n]."""
    rng = np.random.default_rng(seed)
    gamma, graph = problem.scale * resolution, problem.graph
    sources, targets, weights = problem.sources, problem.targets, problem.weights
    member = np.arange(graph.out.size, dtype=np.int32)
    for _ in range(levels):
        n = graph.out.size
        order = rng.permutation(n).astype(np.int32)
        labels = numbered(local_moves(graph, gamma, problem.tie, order, passes, np.arange(n, dtype=np.int32)))
        member = labels[member]
        clusters = int(labels.max()) + 1
        if clusters == n:
            break
        sources, targets, weights = _aggregated(labels[sources], labels[targets], weights, clusters)
        out, inn = np.bincount(labels, graph.out), np.bincount(labels, graph.inn)
        graph = Graph(*symmetric(sources, targets, weights, clusters), out, inn)
    return member


def _aggregated(
    sources: np.ndarray, targets: np.ndarray, weights: np.ndarray | None, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The edges between different clusters, each pair once."""
    low, high = np.minimum(sources, targets), np.maximum(sources, targets)
    between = low != high
    key = low[between].astype(np.int64) * n + high[between]
    given = None if weights is None else weights[between]
    if given is None:
        pairs, summed = np.unique(key, return_counts=True)
    else:
        pairs, pair_of_edge = np.unique(key, return_inverse=True)
        summed = np.bincount(pair_of_edge, given, minlength=pairs.size)
    return (pairs // n).astype(np.int32), (pairs % n).astype(np.int32), summed.astype(np.float32)


def label_propagation(problem: Problem, resolution: float, seed: int) -> np.ndarray:
    """Make five passes of local moves in random order, without levels (BACO, arXiv 2604.18351). int32 [n]."""
    return louvain(problem, resolution, seed, levels=1, passes=PROPAGATION_PASSES)


def leiden(problem: Problem, resolution: float, seed: int, start: np.ndarray | None = None) -> np.ndarray:
    """Run igraph's Leiden with edges from users to items (Traag et al. 2019). Returns labels, int32 [n].

    Args:
        problem: the graph.
        resolution: the resolution of the objective.
        seed: the seed of igraph's generator, which is restored afterwards.
        start: the labels to improve, int [n]; by default each vertex is a cluster.

    The volumes become the out- and in-weights of vertices.
    """
    try:
        import igraph
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"algorithm='leiden': {error}: {install('graph')}") from error
    blocks = range(0, problem.sources.size, _BLOCK)  # whole lists of Python numbers would be larger than the graph
    ends = (problem.sources, problem.targets)
    pairs = (zip(*(end[i : i + _BLOCK].tolist() for end in ends), strict=True) for i in blocks)
    graph = igraph.GraphBase(n=problem.out.size, edges=itertools.chain.from_iterable(pairs), directed=True)
    igraph.set_random_number_generator(random.Random(seed))
    try:
        labels, _ = graph.community_leiden(
            edge_weights=problem.weights,
            node_weights=problem.out,
            node_in_weights=problem.inn,
            resolution=problem.scale * resolution,
            n_iterations=2 if start is None else 1,
            initial_membership=start,
        )
    finally:
        igraph.set_random_number_generator(random)
    return numbered(np.asarray(labels, dtype=np.int32))


def numbered(labels: np.ndarray) -> np.ndarray:
    """Number labels 0, 1, ... in the order of their first vertex, int32."""
    _, first, position = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(first.size, dtype=np.int32)
    rank[np.argsort(first)] = np.arange(first.size, dtype=np.int32)
    return rank[position]
