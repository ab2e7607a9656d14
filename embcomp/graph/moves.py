"""Local moves of label propagation and Louvain: each vertex joins the neighbouring cluster of the largest gain."""

import ctypes
from dataclasses import dataclass

import numpy as np

from embcomp.ops import native

Adjacency = tuple[np.ndarray, np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Graph:
    """A symmetric graph without loops, and the volumes of its vertices.

    Attributes:
        starts: the start of each vertex's neighbours in `adjacency`, int64 [n + 1].
        adjacency: the neighbours, int32.
        weights: the weights of the edges in `adjacency`, float32; None if all weigh 1.
        out: the volume of each vertex as the source of an edge, float64 [n].
        inn: the volume of each vertex as the target of an edge, float64 [n].
    """

    starts: np.ndarray
    adjacency: np.ndarray
    weights: np.ndarray | None
    out: np.ndarray
    inn: np.ndarray


def symmetric(sources: np.ndarray, targets: np.ndarray, weights: np.ndarray | None, n: int) -> Adjacency:
    """Return starts, neighbours and weights (or None) of the graph with these edges in both directions; no loops."""
    ends = np.concatenate([sources, targets])
    order = np.argsort(ends, kind="stable")
    starts = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(ends, minlength=n), out=starts[1:])
    adjacency = np.concatenate([targets, sources]).astype(np.int32)[order]
    both = None if weights is None else np.concatenate([weights, weights]).astype(np.float32)[order]
    return starts, adjacency, both


def local_moves(
    graph: Graph, gamma: float, tie: float, order: np.ndarray, passes: int, labels: np.ndarray
) -> np.ndarray:
    """Move vertices between clusters in several passes; see embcomp/native/graph.cpp for the rule.

    Args:
        graph: the graph.
        gamma: the price of volume: the gain of joining c is  weight of edges to c - gamma (out_v In_c + in_v Out_c).
        tie: the difference of gains below which they are equal.
        order: the order in which the vertices move, int32 [n].
        passes: the maximum number of passes; there are fewer if a pass moves no vertex.
        labels: the initial labels, integers [n], each in [0, n).

    Returns:
        The new labels, int32 [n].

    Raises:
        ValueError: an array does not fit; the text names it.
    """
    if labels.dtype.kind not in "iu":  # 1.5 would become 1
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    labels = labels.astype(np.int32)  # a copy
    lib = native.library()
    if lib is None:
        return local_moves_reference(graph, gamma, tie, order, passes, labels)
    arrays = _arrays(graph, order, labels)
    pointers = [ctypes.c_void_p(None if a is None else a.ctypes.data) for a in arrays]
    native.within_memory(
        lib.local_moves,
        ctypes.c_size_t(labels.size), *pointers[:5], ctypes.c_double(gamma), ctypes.c_double(tie), pointers[5],
        ctypes.c_size_t(passes), ctypes.c_void_p(labels.ctypes.data),
    )  # fmt: skip
    return labels


def _arrays(graph: Graph, order: np.ndarray, labels: np.ndarray) -> list[np.ndarray | None]:
    """The arrays in the form for C++. Raise ValueError if they do not fit each other."""
    n, edges = labels.size, graph.adjacency.size
    wanted: list[tuple[str, np.ndarray | None, type, int, int | None]] = [
        ("starts", graph.starts, np.int64, n + 1, edges + 1),
        ("adjacency", graph.adjacency, np.int32, edges, n),
        ("weights", graph.weights, np.float32, edges, None),
        ("out", graph.out, np.float64, n, None),
        ("inn", graph.inn, np.float64, n, None),
        ("order", order, np.int32, n, n),
        ("labels", labels, np.int32, n, n),
    ]
    arrays: list[np.ndarray | None] = []
    for name, array, dtype, length, below in wanted:
        if array is not None:
            fits = array.dtype == dtype or (name == "order" and array.dtype.kind in "iu")
            if array.shape != (length,) or not fits:
                raise ValueError(f"{name} must be {dtype.__name__} [{length}], got {array.dtype} {list(array.shape)}")
            if below is not None and length and not 0 <= array.min() <= array.max() < below:
                raise ValueError(f"{name} must lie in [0, {below}), got [{array.min()}, {array.max()}]")
            array = np.ascontiguousarray(array, dtype=dtype)
        arrays.append(array)
    if (np.diff(graph.starts) < 0).any():
        raise ValueError("starts must never fall")
    return arrays


def local_moves_reference(
    graph: Graph, gamma: float, tie: float, order: np.ndarray, passes: int, labels: np.ndarray
) -> np.ndarray:
    """Compute `local_moves` in Python: its definition, which is used without a compiler."""
    n = labels.size
    label = labels.tolist()
    out, inn = graph.out.tolist(), graph.inn.tolist()
    out_of = np.bincount(labels, graph.out, minlength=n).tolist()
    in_of = np.bincount(labels, graph.inn, minlength=n).tolist()
    members = np.bincount(labels, minlength=n).tolist()
    empty = [c for c in range(n - 1, -1, -1) if not members[c]]
    starts, adjacency = graph.starts.tolist(), graph.adjacency.tolist()
    weights = None if graph.weights is None else graph.weights.tolist()
    active = [True] * n
    for _ in range(passes):
        moved = False
        for v in order.tolist():
            if not active[v]:
                continue
            active[v] = False
            own = label[v]
            out_of[own] -= out[v]
            in_of[own] -= inn[v]
            edge_to: dict[int, float] = {}
            for j in range(starts[v], starts[v + 1]):
                c = label[adjacency[j]]
                edge_to[c] = edge_to.get(c, 0.0) + (1.0 if weights is None else weights[j])
            best, most = own, edge_to.get(own, 0.0) - gamma * (out[v] * in_of[own] + inn[v] * out_of[own])
            for c, edges in edge_to.items():
                gain = edges - gamma * (out[v] * in_of[c] + inn[v] * out_of[c])
                if gain > most + tie:
                    best, most = c, gain
            if most < -tie and members[own] > 1:
                best = empty.pop()
            out_of[best] += out[v]
            in_of[best] += inn[v]
            if best == own:
                continue
            members[best] += 1
            members[own] -= 1
            if not members[own]:
                empty.append(own)
            label[v] = best
            moved = True
            for j in range(starts[v], starts[v + 1]):
                if label[adjacency[j]] != best:
                    active[adjacency[j]] = True
        if not moved:
            break
    return np.array(label, dtype=np.int32)
