"""The joint refinement of the codebooks of a residual quantizer."""

import torch
from torch import Tensor

from embcomp.ops.kmeans import ROWS, Progress, assign, means, no_progress


def without(vectors: Tensor, centroids: Tensor, index: Tensor) -> Tensor:
    """Subtract its centroid from each vector, float32 [N, d], by blocks that stay in the cache."""
    rest = torch.empty_like(vectors)
    for start in range(0, vectors.shape[0], ROWS):
        rows = slice(start, start + ROWS)
        torch.sub(vectors[rows], centroids.index_select(0, index[rows]), out=rest[rows])
    return rest


@torch.no_grad()
def refine(
    vectors: Tensor, codebooks: Tensor, *, rounds: int, least: float = 0.1, progress: Progress = no_progress
) -> Tensor:
    """Fit each codebook of a residual quantizer again, given those of the other levels.

    Level by level each code moves to the mean of the residuals that the other levels leave to it, which lowers the
    error of greedy fitting, and the items are encoded again. A code with fewer items than `least` times the mean (N /
    K) is dead. It moves to an item that shares all its codes with another item, the farthest first, so that codes
    distinguish items; if there are no such items, it moves to those with the largest error.

    Args:
        vectors: the vectors, float32 [N, d].
        codebooks: the codebooks, float32 [levels, K, d].
        rounds: the number of rounds over all levels.
        least: the threshold of dead codes, see above.
        progress: a function that is told of each round.

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
    """The items that share all codes with another one, farthest first, then those with the largest error."""
    _, group = codes.unique(dim=1, return_inverse=True)
    order = torch.arange(group.numel(), device=codes.device)
    first = order.new_full((int(group.max()) + 1,), group.numel()).scatter_reduce(0, group, order, "amin")
    apart = (rest - rest[first[group]]).square().sum(1)
    error = rest.square().sum(1)
    return torch.where(apart > 0, error.max() + apart, error).topk(number).indices
