"""Assignments of vectors to centroids that use all centroids about equally often."""

import math

import torch
from torch import Tensor

from embcomp.ops.kmeans import means

BATCH = 4096  # vectors that are balanced among themselves


def transport(costs: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Compute the transport plan of least cost between equal marginals, smoothed by its entropy (Cuturi 2013).

    Sinkhorn's iterations are done in logarithms, so that a small `epsilon` does not underflow.

    Args:
        costs: the cost of each pair, float [N, K].
        epsilon: the weight of the entropy, in units of the costs.
        iterations: the number of iterations.

    Returns:
        The logarithm of the plan, [N, K]; each column of the plan sums to 1 / K, and each row nearly to 1 / N.

    Example:
        >>> import torch
        >>> plan = transport(torch.tensor([[0.0, 1.0], [0.0, 2.0]]), epsilon=0.1, iterations=50).exp()
        >>> plan.round(decimals=2)  # the vector that would lose more stays
        tensor([[0.0100, 0.5000],
                [0.4900, 0.0000]])
    """
    log = -costs / epsilon
    rows, columns = costs.shape
    for _ in range(iterations):
        log = log - torch.logsumexp(log, 1, keepdim=True) - math.log(rows)
        log = log - torch.logsumexp(log, 0, keepdim=True) - math.log(columns)
    return log


def balanced_assign(vectors: Tensor, centroids: Tensor, *, epsilon: float = 0.01, iterations: int = 50) -> Tensor:
    """Assign vectors to near centroids so that all centroids get about equally many (Zhan et al. 2022, section 4.2).

    Squared distances are centred and scaled to [-1, 1] in each batch of `BATCH` vectors, and each vector goes to the
    centroid of the largest share in its row of the transport plan.

    Args:
        vectors: the vectors, float32 [N, d], in random order.
        centroids: the centroids, float32 [K, d].
        epsilon: the weight of the entropy, in units of the scaled distances; the smaller, the nearer the centroids.
        iterations: the number of Sinkhorn iterations.

    Returns:
        The index of each vector's centroid, int64 [N].
    """
    index = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    # Equal batches: a last one of a few vectors would be spread over all centroids.
    batches = max(1, round(len(vectors) / BATCH))
    for batch in torch.arange(len(vectors), device=vectors.device).tensor_split(batches):
        costs = torch.cdist(vectors[batch], centroids).square()
        low, high = costs.aminmax()
        costs = (costs - (low + high) / 2) / ((high - low) / 2).clamp(min=1e-30)
        index[batch] = transport(costs, epsilon, iterations).argmax(1)
    return index


def balance(vectors: Tensor, centroids: Tensor, *, rounds: int = 5, seed: int = 0) -> Tensor:
    """Move centroids to the means of balanced clusters, `rounds` times (RepCONC, Zhan et al. 2022, arXiv 2110.05789).

    Args:
        vectors: the vectors, float32 [N, d].
        centroids: the centroids of k-means, float32 [K, d].
        rounds: the number of rounds.
        seed: the seed of the batches.

    Returns:
        The new centroids, float32 [K, d].
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(rounds):
        order = torch.randperm(len(vectors), generator=generator, device="cpu").to(vectors.device)
        shuffled = vectors[order]
        centroids, _ = means(shuffled, balanced_assign(shuffled, centroids), centroids)
    return centroids
