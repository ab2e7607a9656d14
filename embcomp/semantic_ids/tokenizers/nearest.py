"""The nearest code of each vector: the same answer on every device, at any batch size.

Matrix products round differently on CPU and GPU and in batches of other sizes, and float32 rounding can turn a near
tie. So a product in float32 only proposes: codes that its rounding error cannot tell apart are compared again by
distances that are made of element-wise float64 operations in a fixed order, which IEEE 754 determines to the bit. Equal
distances go to the lower code.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

ROWS = 4096  # vectors at a time: their scores stay in the cache
PAIRS = 1 << 22  # numbers at a time in the exact comparison


@torch.no_grad()
def nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    """Return the index of the nearest code of each vector, by Euclidean distance.

    Args:
        vectors: the vectors, float32 [N, d].
        codes: the codes, float32 [K, d], on the same device.

    Returns:
        The indices, int64 [N].

    Example:
        >>> import torch
        >>> nearest(torch.tensor([[0.0, 1.0], [3.0, 3.0]]), torch.tensor([[0.0, 0.0], [2.0, 2.0], [2.0, 2.0]]))
        tensor([0, 1])
    """
    half_squares = (codes.double().square().sum(1) / 2).float()
    longest = float((2 * half_squares.max()).sqrt())
    transposed = codes.t()
    indices = torch.empty(vectors.shape[0], dtype=torch.int64, device=vectors.device)
    with _full_precision(vectors.device):
        for start in range(0, vectors.shape[0], ROWS):
            block = vectors[start : start + ROWS]
            scores = torch.addmm(half_squares, block, transposed, alpha=-1)  # half the squared distance, less |v|^2 / 2
            best, index = scores.min(1)
            # A dot product of d terms errs by at most d 2^-24 |v| |c|, in any order of summation; both scores may err.
            norms = torch.linalg.vector_norm(block, dim=1)
            margin = (2 * (vectors.shape[1] + 4) * 2.0**-24 * longest) * (norms + longest)
            limit = best + margin
            scores.scatter_(1, index.unsqueeze(1), float("inf"))
            tied = (scores.amin(1) <= limit).nonzero().squeeze(1)  # far cheaper than a comparison of all scores
            if tied.numel():
                close = (scores[tied] <= limit[tied].unsqueeze(1)).scatter_(1, index[tied].unsqueeze(1), True)
                index[tied] = _nearest_exactly(block[tied], codes, close)
            indices[start : start + block.shape[0]] = index
    return indices


def _nearest_exactly(vectors: Tensor, codes: Tensor, candidates: Tensor) -> Tensor:
    """The nearest of the candidates, bool [N, K], of each vector; the lowest among equals."""
    rows, columns = candidates.nonzero(as_tuple=True)
    step = max(1, PAIRS // vectors.shape[1])
    distances = torch.cat(
        [squared_distances(vectors[r], codes[c]) for r, c in zip(rows.split(step), columns.split(step), strict=True)]
    )
    least = distances.new_full((vectors.shape[0],), float("inf")).scatter_reduce(0, rows, distances, "amin")
    lowest = columns.new_full((vectors.shape[0],), codes.shape[0])
    is_least = distances == least[rows]
    return lowest.scatter_reduce(0, rows[is_least], columns[is_least], "amin")


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Compute distances of rows in float64, summed by halving columns, in an order that no device changes."""
    terms = (a.double() - b.double()).square()
    while terms.shape[1] > 1:
        half = terms.shape[1] // 2
        terms = torch.cat([terms[:, :half] + terms[:, half : 2 * half], terms[:, 2 * half :]], dim=1)
    return terms.squeeze(1)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Compute float32 products in full precision: no TF32, no bfloat16, no autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
