"""The allotment of bits to groups of values under a limit on their mean."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# The mean squared error of the best uniform grid for values of a normal distribution with deviation 1 (Max 1960, table
# II), by bits.
OF_NORMAL = (1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.001041, 0.0003035, 0.00008714)
_HALVINGS = 100


def allot(costs: Tensor, sizes: Sequence[int], mean: float, turns: Sequence[tuple[int, float]] = ()) -> Tensor:
    """Choose the bits of each group, so that the costs are small and the mean bits of a value at most `mean`.

    With a price p for a bit, each group takes the bits of the least cost + p * bits * size. The price is the
    lowest at which the mean is not exceeded (Everett 1963); no other choice with as few bits costs less. Where a change
    of bits from one group to the next takes bits, too, these have the same price, and do not count for the mean.

    Args:
        costs: the cost of each group with 0, 1, ... bits, [groups, most + 1].
        sizes: the number of values of each group.
        mean: the largest mean of the bits, not negative.
        turns: the number of groups of each stretch of consecutive groups, which together are all, and the bits that a
            change inside it takes. Without them changes take none.

    Raises:
        ValueError: a cost is not finite.

    Returns:
        The bits of each group, int64 [groups].

    Example:
        >>> import torch
        >>> costs = torch.tensor([[9.0, 1, 0], [2, 1, 0.5]])
        >>> allot(costs, [10, 10], mean=0.5)
        tensor([1, 0])
    """
    costs = costs.double().cpu()
    if not bool(costs.isfinite().all()):
        raise ValueError("bits cannot be allotted: the rows hold NaN or infinite values; train again at a lower rate")
    bits = torch.arange(costs.shape[1], dtype=torch.float64, device="cpu")
    weights = torch.tensor(sizes, dtype=torch.float64, device="cpu").unsqueeze(1)
    limit = mean * float(weights.sum()) + 1e-9

    def chosen(price: float) -> Tensor:
        priced = costs + price * bits * weights
        if any(turn for _, turn in turns):
            return _in_runs(priced, [number for number, _ in turns], [price * turn for _, turn in turns])
        return priced.argmin(1)  # the first of equal ones: the fewest bits

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
    return _grown(best, costs, weights.squeeze(1), limit, turns) if turns else best


def _in_runs(costs: Tensor, numbers: Sequence[int], turns: Sequence[float]) -> Tensor:
    """Choose a column of each row so that the costs and the turns, from row to row of a stretch, cost least (Viterbi).

    Args:
        costs: the costs, float64 [rows, columns].
        numbers: the number of rows of each stretch.
        turns: the cost of a turn in each stretch.
    """
    most, columns = max(numbers), costs.shape[1]
    stretches = torch.zeros(len(numbers), most, columns, dtype=torch.float64, device="cpu")
    for stretch, own in zip(stretches, costs.split(list(numbers)), strict=True):
        stretch[: len(own)] = own  # rows that are missing cost nothing, and nobody turns for them
    turn = torch.tensor(turns, dtype=torch.float64, device="cpu").unsqueeze(1)
    least, came = stretches[:, 0], torch.arange(columns, device="cpu").expand(len(numbers), most, columns).clone()
    for row in range(1, most):
        best, at = least.min(1, keepdim=True)
        turned = best + turn < least
        came[:, row] = torch.where(turned, at, came[:, row])
        least = torch.where(turned, best + turn, least) + stretches[:, row]
    chosen = torch.empty(len(numbers), most, dtype=torch.int64, device="cpu")
    chosen[:, -1] = least.argmin(1)
    for row in range(most - 1, 0, -1):
        chosen[:, row - 1] = came[:, row].gather(1, chosen[:, row : row + 1]).squeeze(1)
    return torch.cat([own[:number] for own, number in zip(chosen, numbers, strict=True)])


def _grown(bits: Tensor, costs: Tensor, weights: Tensor, limit: float, turns: Sequence[tuple[int, float]]) -> Tensor:
    """Give groups the bits of a neighbor that has more, those that gain most for a bit first, as long as bits are left.

    With turns prices alone leave bits unused, because many groups change together.
    """
    stretch = torch.repeat_interleave(torch.tensor([number for number, _ in turns], device="cpu"))
    turning = torch.tensor([turn > 0 for _, turn in turns], device="cpu")
    joined = (stretch[1:] == stretch[:-1]) & turning[stretch[1:]]
    group = torch.arange(len(bits), device="cpu")
    while True:
        before = torch.where(F.pad(joined, (1, 0)), bits.roll(1), -1)
        behind = torch.where(F.pad(joined, (0, 1)), bits.roll(-1), -1)
        tries = torch.stack([before, behind])
        more = (tries - bits) * weights
        gain = costs[group, bits] - costs[group, tries.clamp(min=0)]
        possible = (more > 0) & (gain > 0) & (more <= limit - float((bits * weights).sum()))
        if not bool(possible.any()):
            return bits
        best = int(torch.where(possible, gain / more, -1.0).argmax())
        bits[best % len(bits)] = tries.view(-1)[best]


def by_rank(groups: int, most: int) -> Tensor:
    """Return the costs of rounding in groups of equally many ids, the most frequent first, float64 [groups, most + 1].

    A group's cost is its error, for normally distributed values, times its frequency under Zipf's law.
    """
    frequency = 1.0 / (torch.arange(groups, dtype=torch.float64, device="cpu") + 0.5)
    errors = torch.tensor(OF_NORMAL[: most + 1], dtype=torch.float64, device="cpu")
    return frequency.unsqueeze(1) * errors
