"""Soft clusters: the clusters of an id's neighbours, and of their neighbours."""

import numpy as np
import torch
from scipy.sparse import csr_array

from embcomp.graph.clustering import Clusters
from embcomp.graph.edges import Edges
from embcomp.graph.growth import rows_in
from embcomp.graph.mixtures import Mixture
from embcomp.graph.shares import cluster_shares, own_rows_alone
from embcomp.graph.sides import Side
from embcomp.graph.walks import counts, largest


def mixture(edges: Edges, clusters: Clusters, side: Side, k: int = 4) -> Mixture:
    """Return the k clusters of the largest weight in the neighbourhood of each id.

    With P the random walk from ids to neighbours, R the walk back, Y the cluster of each id and Z that of each
    neighbour (as rows of this side's table), an id's weights are its row of  P Z + P R Y: half come from the clusters
    of its neighbours, half from those of the ids that these interact with, itself included. They are fixed, not
    trained.

    Args:
        edges: the interactions.
        clusters: the clusters of these interactions.
        side: the side of the ids, "users" or "items".
        k: the number of rows of an id.

    Returns:
        A mixture over all ids of that side. Ids without an edge are unseen; ids with a row of their own read only this
        row.

    Example:
        >>> import numpy as np
        >>> from embcomp.graph import cluster, interactions, mixture
        >>> edges = interactions((np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 2, 1])))
        >>> found = mixture(edges, cluster(edges, rows=4), "items", k=2)
        >>> found.rows_of(torch.tensor([2])), found.weights[2]
        (tensor([[1, 0]]), tensor([255,  85], dtype=torch.uint8))
    """
    if k < 1:
        raise ValueError(f"a mixture needs k >= 1, got {k}")
    return Mixture.of(*cluster_shares(edges, clusters, side, k))


def second_clusters(edges: Edges, clusters: Clusters, side: Side = "users") -> Mixture:
    """Return each id's cluster and, with equal weight, that of most of its other neighbours (BACO, arXiv 2604.18351).

    Args:
        edges: the interactions.
        clusters: the clusters of these interactions.
        side: the side of the ids; the paper gives users a second cluster.

    Returns:
        A mixture with k = 2; an id whose neighbours are all in its own cluster reads only this cluster.
    """
    mine, theirs = (clusters.users, clusters.items) if side == "users" else (clusters.items, clusters.users)
    ids, neighbours = edges.ends(side)
    n = edges.num_ids(side)
    first = mine.row_of(torch.arange(n)).numpy()
    voted = rows_in(mine, theirs, neighbours)
    other = (voted >= 0) & (voted != first[ids])
    weights = np.ones(len(edges)) if edges.weights is None else edges.weights
    votes = largest(csr_array((weights[other], (ids[other], voted[other])), shape=(n, mine.own_rows)), 1)
    has = counts(votes) > 0
    rows, share = np.zeros((n, 2), dtype=np.int64), np.zeros((n, 2))
    rows[:, 0], share[:, 0] = np.maximum(first, 0), first >= 0
    rows[has, 1], share[has, 1] = votes.indices, 1.0
    share[first < 0] = 0.0
    own_rows_alone(mine, rows, share)
    return Mixture.of(torch.from_numpy(rows), torch.from_numpy(share), mine)
