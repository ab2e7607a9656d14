"""k-means, and the joint refinement of the codebooks of a residual quantizer."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.semantic_ids.nearest import ROWS

SEEDING = 1 << 14  # vectors among which the first centroids are drawn
Progress = Callable[[int, int, str], None]
"""(steps done, steps at most, text) -> None."""


def unheard(done: int, total: int, text: str) -> None:
    """A progress that nobody hears."""


def assign(vectors: Tensor, centroids: Tensor, by_direction: bool = False) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each vector, int64 [N], and half the squared distance less |v|^2 / 2, float32 [N].

    For training: near ties fall by rounding. `by_direction`: the centroid of the largest cosine, and -|v| times that.
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


def without(vectors: Tensor, centroids: Tensor, index: Tensor) -> Tensor:
    """Each vector less its centroid, float32 [N, d]; by blocks that stay in the cache."""
    rest = torch.empty_like(vectors)
    for start in range(0, vectors.shape[0], ROWS):
        part = slice(start, start + ROWS)
        torch.sub(vectors[part], centroids.index_select(0, index[part]), out=rest[part])
    return rest


def means(vectors: Tensor, index: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the vectors of each centroid, and how many there are; a centroid without vectors stays."""
    counts = torch.bincount(index, minlength=centroids.shape[0])
    starts = counts.cumsum(0) - counts
    new = F.embedding_bag(index.argsort(), vectors, starts, mode="mean")
    return torch.where((counts == 0).unsqueeze(1), centroids, new), counts


@torch.no_grad()
def kmeans(
    vectors: Tensor, k: int, *, iterations: int, tolerance: float, seed: int, progress: Progress = unheard
) -> Tensor:
    """Lloyd's algorithm from k-means++ seeds (Arthur and Vassilvitskii 2007); empty clusters move to the worst vectors.

    The first clusters are those of the seeds by distance or by direction, whichever lie closer to their means.

    Args:
        vectors: float32 [N, d], N >= k.
        k: centroids.
        iterations: at most so many.
        tolerance: stop when an iteration lowers the error by less than this share.
        seed: of the first centroids.
        progress: told of each iteration.

    Returns:
        float32 [k, d].

    Raises:
        ValueError: fewer than k different vectors.
    """
    centroids = _start(vectors, _seed(vectors, k, seed))
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
    """The means of the clusters of the seeds, float32 [k, d]: by distance or by direction, the lower error of the two.

    Where residuals are all but orthogonal, every one of them is closest to the seed of the smallest norm, and k-means
    ends with one cluster and k - 1 lonely vectors, at an error that looks no worse. Directions have no such favourite.
    """
    starts = [means(vectors, assign(vectors, seeds, by_direction)[0], seeds) for by_direction in (False, True)]
    # The error of a clustering about its means is the sum of |v|^2 less this.
    explained = [float((counts * centroids.double().square().sum(1)).sum()) for centroids, counts in starts]
    return starts[0 if explained[0] >= explained[1] else 1][0]


def _seed(vectors: Tensor, k: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(vectors.shape[0], generator=generator)[: max(SEEDING, 4 * k)].to(vectors.device)
    vectors = vectors[chosen] if chosen.numel() < vectors.shape[0] else vectors
    squares = vectors.square().sum(1)
    rounding = 1e-6 * squares  # distances below this are zero
    centroids = vectors.new_empty(k, vectors.shape[1])
    distances = torch.ones_like(squares)
    for i in range(k):
        total = distances.cumsum(0, dtype=torch.float64)
        if float(total[-1]) == 0:
            raise ValueError(f"there are only {i} different vectors for {k} codes: choose a smaller codebook_size")
        point = torch.rand(1, generator=generator, dtype=torch.float64).to(total.device) * total[-1]
        pick = torch.searchsorted(total, point, right=True).clamp_(max=total.numel() - 1)
        centroids[i] = vectors[pick].squeeze(0)
        to_new = squares - 2 * (vectors @ centroids[i]) + centroids[i].square().sum()
        to_new = torch.where(to_new <= rounding, 0.0, to_new)
        distances = to_new if i == 0 else torch.minimum(distances, to_new)
    return centroids


@torch.no_grad()
def refine(
    vectors: Tensor, codebooks: Tensor, *, rounds: int, least: float = 0.1, progress: Progress = unheard
) -> Tensor:
    """Fits each codebook of a residual quantizer again, given those of the other levels.

    Level by level each code moves to the mean of what the other levels leave to it, which goes below the error of
    greedy fitting, and the items are encoded again. A code with fewer items than `least` times the mean (N / K) is
    dead. It moves to an item that shares all its codes with another item, the farthest first, so that codes are spent
    on telling items apart; and where there are no such items, to those with the largest error.

    Args:
        vectors: float32 [N, d].
        codebooks: float32 [levels, K, d].
        rounds: over all levels.
        least: see above.
        progress: told of each round.

    Returns:
        The new codebooks.
    """
    codebooks = codebooks.clone()
    levels, size = codebooks.shape[:2]
    codes = torch.empty(levels, vectors.shape[0], dtype=torch.int64, device=vectors.device)
    rests = [vectors] * (levels + 1)  # what each level sees, and what the last one leaves

    def encode_from(level: int) -> None:
        for i in range(level, levels):
            codes[i], _ = assign(rests[i], codebooks[i])
            rests[i + 1] = without(rests[i], codebooks[i], codes[i])

    encode_from(0)
    for done in range(rounds):
        for level in range(levels):
            own = rests[-1] + codebooks[level][codes[level]]
            new, counts = means(own, codes[level], codebooks[level])
            dead = (counts < least * vectors.shape[0] / size).nonzero().squeeze(1)[: vectors.shape[0]]
            if dead.numel():
                new[dead] = own[_worst(codes, rests[-1], dead.numel())]
            codebooks[level] = new
            encode_from(level)
        error = float(rests[-1].square().sum(dtype=torch.float64)) / vectors.shape[0]
        progress(done + 1, rounds, f"all levels together, error {error:.4g}")
    return codebooks


def _worst(codes: Tensor, rest: Tensor, number: int) -> Tensor:
    """Items that share all codes with another one, the farthest from it first, then those with the largest error."""
    _, group = codes.unique(dim=1, return_inverse=True)
    order = torch.arange(group.numel(), device=codes.device)
    first = order.new_full((int(group.max()) + 1,), group.numel()).scatter_reduce(0, group, order, "amin")
    apart = (rest - rest[first[group]]).square().sum(1)
    error = rest.square().sum(1)
    return torch.where(apart > 0, error.max() + apart, error).topk(number).indices
