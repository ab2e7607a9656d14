"""Contrastive losses between two sets of vectors, where a vector may have many positives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def multi_positive_loss(
    first: Tensor, second: Tensor, groups: Tensor, temperature: float = 0.5, block: int = 256
) -> Tensor:
    """Compute InfoNCE both ways; a vector's group are its positives (Khosla et al. 2020, arXiv 2004.11362, eq. 2).

    With unit vectors a of `first` and b of `second`, and P(i) the members of i's group, one way is `mean_i mean_(p in
    P(i)) -log( exp(a_i . b_p / t) / sum_j exp(a_i . b_j / t) )`. No tensor of all pairs is made: the mean over
    positives is a product with the mean of the group, which is a sum by group, and the sum over j is taken `block`
    vectors at a time and computed once more in the backward pass.

    Args:
        first: the vectors of one side, float `[n, D]`, of any length.
        second: the vectors of the other side, float `[n, D]`.
        groups: the group of each vector, integers `[n]`; all different for one positive each.
        temperature: the temperature t.
        block: the number of vectors at a time; `block * n` values are held.

    Returns:
        The mean of both ways, a scalar.

    Raises:
        ValueError: there are no vectors, the vectors do not fit each other or the groups, or the temperature is not
            positive.

    Example:
        >>> import torch
        >>> vectors = torch.eye(4)
        >>> multi_positive_loss(vectors, vectors, torch.tensor([7, 7, 8, 9]), temperature=1e4)  # as good as log 4
        tensor(1.3862)
    """
    if first.shape != second.shape or groups.shape != first.shape[:1] or not len(groups):
        shapes = [list(given.shape) for given in (first, second, groups)]
        raise ValueError(f"vectors and groups do not fit: first {shapes[0]}, second {shapes[1]}, groups {shapes[2]}")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: choose one above 0")
    first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    _, group_of = groups.unique(return_inverse=True)
    ways = (
        _one_way(first, second, group_of, temperature, block),
        _one_way(second, first, group_of, temperature, block),
    )
    return (ways[0] + ways[1]) / 2


def _one_way(asking: Tensor, asked: Tensor, group_of: Tensor, temperature: float, block: int) -> Tensor:
    sums = torch.zeros_like(asked).index_add(0, group_of, asked)
    sizes = torch.bincount(group_of, minlength=len(asked)).clamp(min=1).unsqueeze(1)
    positive = (asking * (sums / sizes)[group_of]).sum(1) / temperature
    every = [
        checkpoint(_log_sum, chunk, asked, temperature, use_reentrant=False)  # pyright: ignore[reportArgumentType]
        for chunk in asking.split(block)
    ]
    return (torch.cat(every) - positive).mean()


def _log_sum(asking: Tensor, asked: Tensor, temperature: float) -> Tensor:
    return (asking @ asked.T / temperature).logsumexp(1)
