"""The information that groups of rows carry under noise, when labels are assigned at random.

A group of `n` rows with `k` positive labels, among rows whose share of positives is p, carries

    D(k, n, p) = k log2(k / (n p)) + (n - k) log2((n - k) / (n (1 - p)))

bits; over all groups of a feature X these add up to rows * (H(Y) - H(Y | X)). Under noise `k` is hypergeometric.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 1 << 21  # terms at once


@dataclass(frozen=True)
class Groups:
    """The groups of rows within wholes, in which labels are assigned: the log, or the rows of one value of a feature.

    Attributes:
        sizes: the rows of each group, int64 [V].
        positives: the positive labels of each group, int64 [V].
        whole: the whole of each group, int64 [V].
        rows: the rows of each whole, int64 [W].
        dealt: the positive labels of each whole, int64 [W], above 0 and below `rows`.
        share: the share of all groups, drawn at random, that these are.
    """

    sizes: Tensor
    positives: Tensor
    whole: Tensor
    rows: Tensor
    dealt: Tensor
    share: float


@dataclass(frozen=True)
class Moments:
    """The moments of each group's D under noise, float64 [V].

    Attributes:
        mean: the exact mean, for labels assigned without replacement.
        variance: the variance, for labels drawn independently.
        slope: the covariance of D and k, for labels drawn independently.
    """

    mean: Tensor
    variance: Tensor
    slope: Tensor

    def __getitem__(self, at: Tensor) -> "Moments":
        return Moments(self.mean[at], self.variance[at], self.slope[at])

    @classmethod
    def of(cls, sizes: Tensor, rows: Tensor, dealt: Tensor) -> "Moments":
        """Sum over all `k` that are not extremely rare: O(sqrt(n)) terms for each distinct size and whole."""
        kinds, kind = (rows * (rows.max() + 1) + dealt).unique(return_inverse=True)
        base = int(sizes.max()) + 1
        distinct, at = (kind * base + sizes).unique(return_inverse=True)
        n, kind = distinct % base, distinct // base
        whole, some = kinds // (rows.max() + 1), kinds % (rows.max() + 1)
        return _moments(n, whole[kind], some[kind])[at]


def beyond(groups: Groups, moments: Moments) -> tuple[float, float, float]:
    """Return the information of groups about the label beyond noise, and its significance.

    Returns:
        The bits over all groups; their standard deviation under noise; and their distance from noise in standard
        deviations of a normal distribution.
    """
    sizes, positives, wholes = groups.sizes.double(), groups.positives.double(), len(groups.rows)
    rate = (groups.dealt.double() / groups.rows)[groups.whole]
    told, mean = float(_bits(positives, sizes, rate).sum()), float(moments.mean.sum())

    def of_wholes(values: Tensor) -> Tensor:
        return torch.zeros(wholes, dtype=torch.float64).index_add_(0, groups.whole, values)

    # The part of D that is linear in k says nothing: over all groups of a whole it adds up to 0.
    spread, slope = of_wholes(sizes * rate * (1 - rate)), of_wholes(moments.slope)
    told -= float((slope / spread * of_wholes(positives - sizes * rate)).nan_to_num().sum())
    number = of_wholes(torch.ones_like(sizes))
    left = (of_wholes(moments.variance) - (slope**2 / spread).nan_to_num()) * (1 - 1 / number).clamp(min=0)
    variance = float(left.sum())
    if variance <= 1e-12 * max(mean, 1.0) ** 2:  # rounding: one group in each whole, or none of two rows
        return (told - mean) / groups.share, 0.0, 0.0
    sureness = (told - mean) / math.sqrt(variance) if groups.share < 1 else _as_normal(told, mean, variance)
    return (told - mean) / groups.share, math.sqrt(variance) / groups.share, sureness


def entropy(rate: float) -> float:
    """The entropy in bits of a label that is 1 at this rate."""
    return -sum(p * math.log2(p) for p in (rate, 1 - rate) if p > 0)


def _bits(positives: Tensor, sizes: Tensor, rate: Tensor) -> Tensor:
    others = sizes - positives
    nats = torch.xlogy(positives, positives / (sizes * rate)) + torch.xlogy(others, others / (sizes * (1 - rate)))
    return nats / math.log(2)


def _moments(sizes: Tensor, rows: Tensor, dealt: Tensor) -> Moments:
    rate = dealt.double() / rows
    center = sizes * rate
    reach = 9 * (center * (1 - rate)).sqrt() + 20
    low = (center - reach).floor().clamp(min=0).long()
    widths = torch.minimum((center + reach).ceil().long(), sizes) - low + 1
    chunk = (widths.cumsum(0) - 1) // _CHUNK
    _, parts = chunk.unique_consecutive(return_counts=True)
    columns = zip(*(each.split(parts.tolist()) for each in (sizes, rows, dealt, low, widths)), strict=True)
    chunks = [_moments_of(*column) for column in columns]
    return Moments(*(torch.cat(column) for column in zip(*chunks, strict=True)))


def _moments_of(
    sizes: Tensor, rows: Tensor, dealt: Tensor, low: Tensor, widths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    group = torch.repeat_interleave(torch.arange(len(sizes)), widths)
    k = (torch.arange(len(group)) - (widths.cumsum(0) - widths - low)[group]).double()
    n, rows, dealt = (each[group].double() for each in (sizes, rows, dealt))
    rate = dealt / rows
    bits = _bits(k, n, rate)
    ways = -torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    drawn = _normalized(ways + k * rate.log() + (n - k) * (-rate).log1p(), group, len(sizes))
    left, others = dealt - k, rows - dealt - (n - k)
    ways = ways - torch.lgamma(left.clamp(min=0) + 1) - torch.lgamma(others.clamp(min=0) + 1)
    without = _normalized(ways.masked_fill((left < 0) | (others < 0), -math.inf), group, len(sizes))

    def expected(values: Tensor, weights: Tensor) -> Tensor:
        return torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, group, values * weights)

    off = bits - expected(bits, drawn)[group]
    return expected(bits, without), expected(off**2, drawn), expected(off * (k - n * rate), drawn)


def _normalized(logits: Tensor, group: Tensor, number: int) -> Tensor:
    """The softmax within each group."""
    top = torch.full((number,), -math.inf, dtype=torch.float64).scatter_reduce_(0, group, logits, "amax")
    weights = (logits - top[group]).exp()
    return weights / torch.zeros(number, dtype=torch.float64).index_add_(0, group, weights)[group]


def _as_normal(value: float, mean: float, variance: float) -> float:
    """Convert a gamma variable to standard deviations, by Wilson and Hilferty: information of few groups is skewed."""
    ninth = variance / (9 * mean**2)
    return (math.copysign(abs(value / mean) ** (1 / 3), value) - (1 - ninth)) / math.sqrt(ninth)
