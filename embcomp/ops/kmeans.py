"""The k-means algorithm."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 4096  # vectors at a time: their scores stay in the cache
SEEDING = 1 << 14  # vectors among which the first centroids are drawn
Progress = Callable[[int, int, str], None]
"""A function that is told (steps done, maximum of steps, text)."""


def no_progress(done: int, total: int, text: str) -> None:
    """Ignore progress."""


def assign(vectors: Tensor, centroids: Tensor, by_direction: bool = False) -> tuple[Tensor, Tensor]:
    """Return the nearest centroid of each vector, int64 [N], and |v - c|^2 / 2 - |v|^2 / 2, float32 [N].

    It is meant for training: rounding decides near ties. With `by_direction` it returns the centroid of the largest
    cosine, and -|v| times that cosine.
    """
    if by_direction:
        centroids = F.normalize(centroids)
    half_squares = centroids.new_zeros(centroids.shape[0]) if by_direction else centroids.square().sum(1) / 2
    index = torch.empty(vectors.shape[0], dtype=torch.int64, device=vectors.device)
    score = torch.empty(vectors.shape[0], device=vectors.device)
    for start in range(0, vectors.shape[0], ROWS):
        block = vectors[start : start + ROWS]
        scores = torch.addmm(half_squares, block, centroids.t(), alpha=-1)
        torch.min(scores, 1, out=(score[start : start + ROWS], index[start : start + ROWS]))
    return index, score


def means(vectors: Tensor, index: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of the vectors of each centroid, and their number; a centroid without vectors stays."""
    counts = torch.bincount(index, minlength=centroids.shape[0])
    starts = counts.cumsum(0) - counts
    new = F.embedding_bag(index.argsort(), vectors, starts, mode="mean")
    return torch.where((counts == 0).unsqueeze(1), centroids, new), counts


@torch.no_grad()
def kmeans(
    vectors: Tensor,
    k: int,
    *,
    iterations: int,
    tolerance: float,
    seed: int,
    progress: Progress = no_progress,
    fewer: bool = False,
) -> Tensor:
    """Run Lloyd's algorithm from k-means++ seeds (Arthur and Vassilvitskii 2007).

    Empty clusters move to the worst vectors. The first clusters are those of the seeds by distance or by direction,
    whichever have the lower error.

    Args:
        vectors: the vectors, float32 [N, d].
        k: the number of centroids.
        iterations: the maximum number of iterations.
        tolerance: the relative decrease of the error below which the iteration stops.
        seed: the seed of the first centroids.
        progress: a function that is told of each iteration.
        fewer: True to return fewer centroids if there are fewer than k different vectors.

    Returns:
        The centroids, float32 [k, d].

    Raises:
        ValueError: there are fewer than k different vectors, and `fewer` is not set.
    """
    centroids = _start(vectors, _seed(vectors, k, seed, fewer))
    squares = torch.linalg.vector_norm(vectors, dim=1).square()
    before = float("inf")
    for iteration in range(iterations):
        index, score = assign(vectors, centroids)
        distances = (2 * score + squares).clamp_(min=0)
        error = float(distances.sum(dtype=torch.float64))
        progress(iteration + 1, iterations, f"error {error / vectors.shape[0]:.4g}")
        centroids, counts = means(vectors, index, centroids)
        empty = (counts == 0).nonzero().squeeze(1)
        if empty.numel():
            centroids[empty] = vectors[distances.topk(empty.numel()).indices]
        elif before - error < tolerance * before:
            break
        before = error
    return centroids


def _start(vectors: Tensor, seeds: Tensor) -> Tensor:
    """The means of the seeds' clusters, float32 [k, d]: by distance or by direction, whichever has the lower error.

    If vectors are nearly orthogonal, all of them are closest to the seed of the smallest norm, and k-means ends with
    one large cluster and k - 1 single vectors, at an error that looks no worse. Directions do not have this problem.
    """
    starts = [means(vectors, assign(vectors, seeds, by_direction)[0], seeds) for by_direction in (False, True)]
    # The error of a clustering about its means is the sum of |v|^2 less this.
    explained = [float((counts * centroids.double().square().sum(1)).sum()) for centroids, counts in starts]
    return starts[0 if explained[0] >= explained[1] else 1][0]


def _seed(vectors: Tensor, k: int, seed: int, fewer: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(vectors.shape[0], generator=generator, device="cpu")[: max(SEEDING, 4 * k)].to(
        vectors.device
    )
    vectors = vectors[chosen] if chosen.numel() < vectors.shape[0] else vectors
    squares = vectors.square().sum(1)
    rounding = 1e-6 * squares  # distances below this are zero
    centroids = vectors.new_empty(k, vectors.shape[1])
    distances = torch.ones_like(squares)
    for i in range(k):
        total = distances.cumsum(0, dtype=torch.float64)
        if float(total[-1]) == 0:
            if fewer:
                return centroids[:i]
            raise ValueError(f"there are only {i} different vectors for {k} codes: choose a smaller codebook_size")
        point = torch.rand(1, generator=generator, dtype=torch.float64, device="cpu").to(total.device) * total[-1]
        pick = torch.searchsorted(total, point, right=True).clamp_(max=total.numel() - 1)
        centroids[i] = vectors[pick].squeeze(0)
        to_new = squares - 2 * (vectors @ centroids[i]) + centroids[i].square().sum()
        to_new = torch.where(to_new <= rounding, 0.0, to_new)
        distances = to_new if i == 0 else torch.minimum(distances, to_new)
    return centroids
