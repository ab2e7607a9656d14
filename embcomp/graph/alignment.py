"""Alignment: a new clustering for a trained table, numbered like the old one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, overload

import numpy as np
import torch

from embcomp.graph.cluster_map import ClusterMap

if TYPE_CHECKING:
    from embcomp.graph.clustering import Clusters


@overload
def align(old: ClusterMap, new: ClusterMap) -> ClusterMap: ...
@overload
def align(old: Clusters, new: Clusters) -> Clusters: ...
def align(old: ClusterMap | Clusters, new: ClusterMap | Clusters) -> ClusterMap | Clusters:
    """Number the rows of a new clustering so that as many ids as possible keep their row.

    The renumbering is an exact maximum weight matching of new and old rows.

    Args:
        old: the map, or both maps, in use.
        new: the same kind, from a new clustering with at most as many rows.

    Returns:
        The new clustering with other row numbers, over as many rows as `old`; no id reads the rows that a smaller
        clustering leaves over.

    Raises:
        ValueError: `new` has more rows, or another number of rows for unseen ids.

    Example:
        >>> from embcomp.graph import ClusterMap, align
        >>> align(ClusterMap.of([0, 0, 1, 2], rows=3), ClusterMap.of([1, 1, 2, 0, 0], rows=3)).assignment()
        tensor([0, 0, 1, 2, 2])
    """
    if isinstance(old, ClusterMap) and isinstance(new, ClusterMap):
        return _aligned(old, new)
    if isinstance(old, ClusterMap) or isinstance(new, ClusterMap):
        raise ValueError("align takes two maps or two Clusters, got one of each")
    return dataclasses.replace(new, users=_aligned(old.users, new.users), items=_aligned(old.items, new.items))


def _aligned(old: ClusterMap, new: ClusterMap) -> ClusterMap:
    spare = old.own_rows - new.own_rows
    if spare < 0 or old.unseen_rows != new.unseen_rows:
        raise ValueError(
            f"the old map has {old.rows} rows, {old.unseen_rows} of them for unseen ids, the new one {new.rows} and "
            f"{new.unseen_rows}: cluster with the old numbers (and give rows of their own to fewer ids), or start with "
            "new rows"
        )
    if spare:
        new = new.remapped(new.assignment(), torch.cat([new.labels, new.labels.new_full((spare,), -1)]))
    both = min(old.num_ids, new.num_ids)
    before, after = old.assignment()[:both].numpy(), new.assignment()[:both].numpy()
    placed = (before >= 0) & (after >= 0)
    number = torch.from_numpy(_matching(before[placed], after[placed], new.own_rows))
    rows = new.assignment()
    labels = torch.empty_like(new.labels)
    labels[number] = new.labels
    return new.remapped(torch.where(rows >= 0, number[rows.clamp(min=0)], -1), labels)


def _matching(before: np.ndarray, after: np.ndarray, rows: int) -> np.ndarray:
    """The old number of each new row; a permutation, int64 [rows].

    scipy needs complete matchings, so every row gets a stand-in to be matched with, and the stand-ins of matched rows
    can be matched, too. All matchings then have 2 * rows pairs, so adding 1 to every weight changes nothing.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    pairs, counts = np.unique(after * rows + before, return_counts=True)
    new, old = pairs // rows, pairs % rows
    each = np.arange(rows)
    left = np.concatenate([new, rows + old, each, rows + each]).astype(np.int32)  # older scipy takes no other
    right = np.concatenate([old, rows + new, rows + each, each]).astype(np.int32)
    weight = np.concatenate([counts + 1, np.ones(new.size + 2 * rows)])
    matched = min_weight_full_bipartite_matching(
        csr_array((weight, (left, right)), shape=(2 * rows, 2 * rows)), maximize=True
    )[1][:rows]
    number = np.where(matched < rows, matched, -1)
    number[number < 0] = np.setdiff1d(each, number)  # rows without overlap take what is left
    return number.astype(np.int64)
