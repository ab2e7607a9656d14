"""The allotment of bits to groups of values under a limit on their mean."""

from collections.abc import Sequence

import torch
from torch import Tensor

# The mean squared error of the best uniform grid for values of a normal distribution with deviation 1 (Max 1960, table
# II), by bits.
OF_NORMAL = (1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.001041, 0.0003035, 0.00008714)
_HALVINGS = 100


def allot(costs: Tensor, sizes: Sequence[int], mean: float) -> Tensor:
    """Choose the bits of each group, so that the costs are small and the mean bits of a value at most `mean`.

    With a price p for a bit, each group takes the bits of the least cost + p * bits * size. The price is the
    lowest at which the mean is not exceeded (Everett 1963); no other choice with as few bits costs less.

    Args:
        costs: the cost of each group with 0, 1, ... bits, [groups, most + 1].
        sizes: the number of values of each group.
        mean: the largest mean of the bits, not negative.

    Returns:
        The bits of each group, int64 [groups].

    Example:
        >>> import torch
        >>> costs = torch.tensor([[9.0, 1, 0], [2, 1, 0.5]])
        >>> allot(costs, [10, 10], mean=0.5)
        tensor([1, 0])
    """
    costs = costs.double().cpu()
    bits = torch.arange(costs.shape[1], dtype=torch.float64, device="cpu")
    weights = torch.tensor(sizes, dtype=torch.float64, device="cpu").unsqueeze(1)
    limit = mean * float(weights.sum()) + 1e-9

    def chosen(price: float) -> Tensor:
        return (costs + price * bits * weights).argmin(1)  # the first of equal ones: the fewest bits

    def fits(choice: Tensor) -> bool:
        return float((bits[choice].unsqueeze(1) * weights).sum()) <= limit

    best = chosen(0.0)
    if fits(best):
        return best
    low, high = 0.0, 1.0
    while not fits(best := chosen(high)):
        low, high = high, high * 4.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if fits(choice := chosen(middle)):
            high, best = middle, choice
        else:
            low = middle
    return best


def by_rank(groups: int, most: int) -> Tensor:
    """Return the costs of rounding in groups of equally many ids, the most frequent first, float64 [groups, most + 1].

    A group's cost is its error, for normally distributed values, times its frequency under Zipf's law.
    """
    frequency = 1.0 / (torch.arange(groups, dtype=torch.float64, device="cpu") + 0.5)
    errors = torch.tensor(OF_NORMAL[: most + 1], dtype=torch.float64, device="cpu")
    return frequency.unsqueeze(1) * errors
