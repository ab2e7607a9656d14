"""The initial values of rows: the combined vectors get the mean and the deviation of the replaced table."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_FEWEST = 1024  # vectors by which the moments of a rule are known
_BLOCK = 1 << 16  # vectors at a time


@dataclass(frozen=True)
class Moments:
    """The mean and the standard deviation of a table's values. Calling it fills a tensor with normal values of these.

    Attributes:
        mean: the mean; 0 if the measured mean is within the noise of a draw.
        std: the standard deviation of the population.
        count: the number of values they were taken from, which weighs tables that share a store.

    Example:
        >>> Moments(mean=0.5, std=0.1).of_rows("table", summands=4)
        (0.125, 0.05)
    """

    mean: float = 0.0
    std: float = 1.0
    count: int = 0

    def __call__(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            return weight.normal_(self.mean, self.std)

    def of_rows(self, init: str, summands: int = 1) -> tuple[float, float]:
        """The mean and the deviation that a store's rows need, so that the vectors have these moments.

        In a product of two factors, each factor carries the square root of |mean| / rms; only the second has the scale.
        """
        if init == "mean":
            return self.mean, 0.0
        if init == "centred":
            return 0.0, self.std * summands**-0.5
        if init.startswith("chain"):
            return self._of_chain(summands, middle=init == "chain_middle")
        if init not in ("unit", "factor"):
            return self.mean / summands, self.std * summands**-0.5
        size = math.hypot(self.mean, self.std)
        steady = abs(self.mean) / size if size else 0.0
        scale = 1.0 if init == "unit" else math.copysign(size, self.mean)
        return scale * steady**0.5, abs(scale) * (1 - steady) ** 0.5

    def _of_chain(self, rank: int, middle: bool) -> tuple[float, float]:
        """Return the moments of the entries of a core, for products a B c of a row, a matrix and a column.

        The ends have mean square 1 / rank. Without a mean the middle one has the deviation of the product. With one, m,
        the ends have the mean t / rank and the middle m / t^2; that brings m^2 (q^2 - 1) of the variance along, with
        q = 1 / t^2 + 1 - 1 / rank, and q is chosen so that this is a tenth of it.
        """
        if not self.mean:
            return 0.0, self.std if middle else rank**-0.5
        q = math.sqrt(1 + 0.1 * (self.std / self.mean) ** 2)
        square = 1 / (q - 1 + 1 / rank)
        if middle:
            return self.mean / square, self.std * 0.9**0.5
        return square**0.5 / rank, max(0.0, 1 / rank - square / rank**2) ** 0.5

    @property
    def finite(self) -> bool:
        return math.isfinite(self.mean) and math.isfinite(self.std)


Rule = Callable[[Tensor], object]
"""A function that fills a tensor in place, like the `init_fn` of a torchrec table."""


@torch.no_grad()
def moments_of(weight: Tensor, padding_idx: int | None = None) -> Moments:
    """The moments of a weight [num_embeddings, embedding_dim], of any dtype, without its padding row."""
    parts = [weight] if padding_idx is None else [weight[:padding_idx], weight[padding_idx + 1 :]]
    blocks = [block for part in parts for block in part.detach().split(_BLOCK) if block.numel()]
    moments = pooled(_of_block(block.float()) for block in blocks) if blocks else Moments(0.0, 0.0)
    noise = 4 * moments.std / max(1, moments.count) ** 0.5
    return Moments(0.0, moments.std, moments.count) if abs(moments.mean) <= noise else moments


def _of_block(block: Tensor) -> Moments:
    variance, mean = torch.var_mean(block, correction=0)
    return Moments(float(mean), float(variance) ** 0.5, block.numel())


def pooled(parts: Iterable[Moments]) -> Moments:
    """The moments of the values of all parts together."""
    given = list(parts)
    if len(given) == 1:
        return given[0]
    count = sum(each.count for each in given)
    shares = [each.count / count if count else 1 / len(given) for each in given]
    mean = sum(share * each.mean for share, each in zip(shares, given, strict=True))
    variance = sum(share * (each.std**2 + (each.mean - mean) ** 2) for share, each in zip(shares, given, strict=True))
    return Moments(mean, variance**0.5, count)


def shared_rule(rules: Sequence[Rule | None]) -> Rule | None:
    """The initial rule of a store that several tables read: their pooled moments if all are known, else the first."""
    known = [rule for rule in rules if isinstance(rule, Moments)]
    return pooled(known) if known and len(known) == len(rules) else rules[0]


@torch.no_grad()
def draw_rows(weight: Tensor, init: str, summands: int, like: Rule) -> None:
    """Fill the rows of a store.

    Args:
        weight: the rows [rows, dim], filled in place.
        init: the rule, as in `embcomp.methods.base.Store`.
        summands: the number of rows that add up to one coordinate of a vector.
        like: the moments of the vectors, or another rule that draws them.
    """
    if weight.is_meta or not weight.numel():  # a rank may hold no row of a store
        return
    if init == "ones":
        weight.fill_(1.0)
        return
    if not isinstance(like, Moments):
        drawn, scaled = weight, init in ("unit", "mean") or init.startswith("chain")
        if scaled:  # no row has the rule's own numbers, and few rows would not tell its moments
            drawn = weight.new_empty(max(len(weight), _FEWEST), weight.shape[1])
        like(drawn)
        if init == "table" and summands == 1:
            return
        measured = moments_of(drawn)
        if not scaled and not measured.mean:  # keeps the shape of the rule's distribution
            weight.mul_(summands**-0.5)
            return
        if init == "centred":
            weight.sub_(measured.mean).mul_(summands**-0.5)
            return
        if init == "table":
            weight.sub_(measured.mean).mul_(summands**-0.5).add_(measured.mean / summands)
            return
        like = measured
    mean, std = like.of_rows(init, summands)
    weight.normal_(mean, std)
    if init.startswith("chain") and weight.numel() > 1:  # a product of small cores would multiply the noise of each
        measured, off = weight.double().std(correction=0), weight.double().mean()
        weight.copy_((weight - off) * (std / measured.clamp(min=1e-30)) + mean)
