"""New interactions on an old clustering: placing new ids, and measuring how well the interactions still fit."""

from typing import Protocol

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from embcomp.graph.edges import Edges
from embcomp.graph.sides import Side
from embcomp.graph.walks import largest, neighbourhoods, row_of_entry


class Rows(Protocol):
    """The part of a `ClusterMap` that is read here."""

    @property
    def num_ids(self) -> int: ...
    @property
    def side(self) -> Side: ...
    @property
    def clustering(self) -> str: ...
    @property
    def coherence(self) -> float: ...
    @property
    def labels(self) -> Tensor: ...
    def row_of(self, ids: Tensor) -> Tensor: ...
    def assignment(self) -> Tensor: ...
    def sizes(self) -> Tensor: ...


def coherence(edges: Edges, side: Side, row_of_id: np.ndarray) -> float:
    """Return the probability that an interaction's id shares its row with that of another one of the same neighbour.

    With n_v the edges of neighbour v and n_vr those of them whose id is in row r, it is  sum_vr n_vr (n_vr - 1) / (n_v
    - 1), divided by the number of edges of neighbours that have two or more. Ids in no row (-1) share no row. It is 0
    if there are no such neighbours.
    """
    ids, neighbours = edges.ends(side)
    degree = np.bincount(neighbours)
    pairs = degree[neighbours] > 1
    rows = row_of_id[ids[pairs]]
    neighbours = neighbours[pairs]
    if not rows.size:
        return 0.0
    placed = rows >= 0
    key = neighbours[placed].astype(np.int64) * (int(rows.max(initial=0)) + 1) + rows[placed]
    groups, together = np.unique(key, return_counts=True)
    of_group = degree[groups // (int(rows.max(initial=0)) + 1)]
    return float((together * (together - 1) / (of_group - 1)).sum() / rows.size)


def drift(old: Rows, new_edges: Edges, since: Edges | None) -> float:
    """Measure the drift of new interactions; see `ClusterMap.drift`."""
    if since is None and not old.clustering:
        raise ValueError(
            f"the map of {old.side} was not made by `cluster`: there is no fit to compare with; give `since`"
        )

    def fit(edges: Edges) -> float:
        return coherence(edges, old.side, old.row_of(torch.arange(edges.num_ids(old.side))).numpy())

    before = old.coherence if since is None else fit(since)
    return float(np.clip(1 - fit(new_edges) / before, 0, 1)) if before else 0.0


def placed(old: Rows, new_edges: Edges, other: Rows | None) -> np.ndarray | None:
    """Return the row of every id, int64, for `ClusterMap.extend`; None if there is nothing to place."""
    if other is not None and (other.side == old.side or other.clustering != old.clustering):
        raise ValueError(
            f"a map of {old.side} (clustering {old.clustering!r}) cannot be extended by a map of {other.side} "
            f"(clustering {other.clustering!r}): give the other side's map of the same clustering"
        )
    ids, neighbours = new_edges.ends(old.side)
    row_of_id = np.full(max(old.num_ids, new_edges.num_ids(old.side)), -1, dtype=np.int64)
    row_of_id[: old.num_ids] = old.assignment().numpy()
    new = row_of_id[ids] < 0
    if not new.any() and row_of_id.size == old.num_ids:
        return None
    asked = np.zeros(new_edges.num_ids("items" if old.side == "users" else "users"), dtype=bool)
    asked[neighbours[new]] = True
    sizes = old.sizes().numpy()
    # A row that belongs to one id takes no others.
    shared = np.where(np.append(old.labels.numpy() >= 0, False)[row_of_id], row_of_id, -1)
    if other is None:
        votes = asked[neighbours] & (shared[ids] >= 0)
        row_of_neighbour = np.full(asked.size, -1, dtype=np.int64)
        weights = None if new_edges.weights is None else new_edges.weights[votes]
        np.put(row_of_neighbour, *_majority(neighbours[votes], shared[ids[votes]], weights, sizes))
    else:
        row_of_neighbour = rows_in(old, other, np.arange(asked.size))
    near, unplaced = asked[neighbours], np.unique(ids[new])
    weights = np.ones(len(new_edges)) if new_edges.weights is None else new_edges.weights.astype(np.float64)
    seen = csr_array((weights[near], (ids[near], neighbours[near])), shape=(row_of_id.size, asked.size))
    # Rows numbered by how many ids they have: `largest` breaks ties by the number.
    order = np.argsort(sizes, kind="stable")
    rank = np.append(np.argsort(order), -1)
    for start, weighed in neighbourhoods(seen[unplaced], seen, rank[shared], rank[row_of_neighbour], sizes.size):
        weighed.data = np.round(weighed.data, 12)  # what is equal but for rounding
        best = largest(weighed, 1)
        row_of_id[unplaced[start + row_of_entry(best)]] = order[best.indices]
    return row_of_id


def rows_in(mine: Rows, other: Rows, ids: np.ndarray) -> np.ndarray:
    """Return the row of this side's table that stands for the cluster of ids of the other side; -1 if there is none."""
    own, theirs = mine.labels.numpy(), other.labels.numpy()
    row_of_label = np.full(max(own.max(initial=-1), theirs.max(initial=-1)) + 1, -1, dtype=np.int64)
    row_of_label[own[own >= 0]] = np.flatnonzero(own >= 0)
    rows = other.row_of(torch.from_numpy(ids.astype(np.int64))).numpy()
    labels = np.where(rows >= 0, theirs[rows], -1)
    return np.where(labels >= 0, row_of_label[labels], -1)


def _majority(
    ids: np.ndarray, rows: np.ndarray, weights: np.ndarray | None, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each id once, with its row of largest weight; of equals the row with the fewest ids, then the first."""
    key, key_of_entry = np.unique(ids.astype(np.int64) * sizes.size + rows, return_inverse=True)
    weight = np.bincount(key_of_entry, weights, minlength=key.size)
    id, row = key // sizes.size, key % sizes.size
    order = np.lexsort((row, sizes[row], -weight, id))
    first = np.append(True, id[order][1:] != id[order][:-1])[: order.size]
    return id[order][first], row[order][first]
