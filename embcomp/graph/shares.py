"""The share of each cluster in an id's neighbourhood, from which mixtures are made."""

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from embcomp.graph.cluster_map import ClusterMap, Side
from embcomp.graph.clustering import Clusters
from embcomp.graph.edges import Edges
from embcomp.graph.growth import rows_in
from embcomp.graph.walks import counts, largest, neighbourhoods, row_of_entry


def cluster_shares(edges: Edges, clusters: Clusters, side: Side, k: int) -> tuple[Tensor, Tensor, ClusterMap]:
    """Return the k clusters of the largest weight in the neighbourhood of each id (see `embcomp.graph.mixture`).

    Returns:
        The rows, int64 [ids, k]; their weights, float64 [ids, k], all 0 for an unseen id; and the map of these rows.
    """
    mine, theirs = (clusters.users, clusters.items) if side == "users" else (clusters.items, clusters.users)
    ids, neighbours = edges.ends(side)
    n, m = edges.num_ids(side), edges.num_ids("items" if side == "users" else "users")
    weights = np.ones(len(edges)) if edges.weights is None else edges.weights.astype(np.float64)
    seen = csr_array((weights, (ids, neighbours)), shape=(n, m))
    shared = np.append(mine.labels.numpy() >= 0, False)  # the last for ids without a row, -1
    own = mine.row_of(torch.arange(n)).numpy()
    of_id, of_neighbour = np.where(shared[own], own, -1), rows_in(mine, theirs, np.arange(m))
    rows, share = np.zeros((n, k), dtype=np.int64), np.zeros((n, k))
    for start, weighed in neighbourhoods(seen, seen, of_id, of_neighbour, mine.own_rows):
        kept = largest(weighed, k)
        at = start + row_of_entry(kept)
        rank = np.arange(kept.nnz) - np.repeat(np.asarray(kept.indptr)[:-1], counts(kept))
        rows[at, rank], share[at, rank] = kept.indices, kept.data
    own_rows_alone(mine, rows, share)
    return torch.from_numpy(rows), torch.from_numpy(share), mine


def own_rows_alone(mine: ClusterMap, rows: np.ndarray, share: np.ndarray) -> None:
    """Reduce ids that have a row of their own to that row, in place."""
    first = mine.row_of(torch.arange(rows.shape[0])).numpy()
    alone = (first >= 0) & (mine.labels.numpy()[first] < 0)
    share[alone] = 0.0
    rows[alone, 0], share[alone, 0] = first[alone], 1.0
