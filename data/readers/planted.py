"""Synthetic clicks with many features, some without effect, which a planner of bytes should detect.

The generative model: F features have vocabularies from 3 to `largest` ids, each larger than the last by the same
factor. Ids are drawn by a power law, P(rank r) ~ r^-exponent, from ranks that are a random permutation. Every third
feature, from the largest down, has no effect, until there are `useless` of them. Each other feature adds an effect,
N(0, strength^2) for each id, and an interaction with the next one, u_a . v_b in `directions` dimensions, whose standard
deviation is `strength`, too. A click is drawn from sigmoid(bias + all effects), with the bias such that the mean of the
sigmoid over the rows is `click_rate`.

The data set `heavy-tail` is drawn from the same model, with ten features that all have an effect. Its ids are those
that occur, in any split and without a threshold, as in the comparison of Zhang et al. 2024 (arXiv 2311.15578): most are
seen fewer than five times in training, so that rows of their own learn noise.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, replace

import numpy as np
import polars as pl

from data.ids import Field
from data.schema import DataError
from data.source import Source
from data.splits import with_split


@dataclass(frozen=True, kw_only=True)
class Config:
    """The parameters of the model that this module describes.

    Raises:
        DataError: fewer than two features have an effect, a vocabulary is below 3, or a click rate is outside of (0,
            1).
    """

    num_rows: int = 400_000
    features: int = 26
    useless: int = 8
    largest: int = 1_000_000
    exponent: float = 1.1
    strength: float = 0.4
    directions: int = 2
    click_rate: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.features - self.useless < 2 or self.useless > (self.features + 2) // 3 or self.useless < 0:
            raise DataError(
                f"useless={self.useless} of {self.features} features: at most a third of them, and two others at least"
            )
        if self.largest < 3 or self.num_rows < 1 or self.directions < 1:
            raise DataError("largest must be at least 3, num_rows and directions at least 1")
        if not 0 < self.click_rate < 1:
            raise DataError(f"click_rate must be above 0 and below 1, not {self.click_rate}")

    @property
    def sizes(self) -> dict[str, int]:
        """The number of ids of each feature, by name, the smallest first."""
        steps = max(self.features - 1, 1)
        return {f"f{k:02}": round(3 * (self.largest / 3) ** (k / steps)) for k in range(self.features)}

    @property
    def silent(self) -> list[str]:
        """The features without effect."""
        return list(self.sizes)[::-1][::3][: self.useless]


def generate(config: Config) -> pl.DataFrame:
    """Draw clicks: a column for each feature, `label` and `probability`.

    >>> generate(Config(num_rows=100, features=4, useless=1, largest=50)).columns
    ['f00', 'f01', 'f02', 'f03', 'label', 'probability']
    """
    rng = np.random.default_rng([config.seed, 0])
    columns = {name: _ids(rng, size, config) for name, size in config.sizes.items()}
    score = np.zeros(config.num_rows)
    useful = [name for name in columns if name not in config.silent]
    for name in useful:
        score += config.strength * rng.standard_normal(config.sizes[name])[columns[name]]
    for a, b in itertools.pairwise(useful):
        left, right = (rng.standard_normal((config.sizes[name], config.directions))[columns[name]] for name in (a, b))
        score += config.strength / np.sqrt(config.directions) * (left * right).sum(1)
    bias = _bias(score, config.click_rate)
    probability = 1 / (1 + np.exp(-score - bias))
    label = (rng.random(config.num_rows) < probability).astype(np.int8)
    return pl.DataFrame(columns).with_columns(label=label, probability=probability)


def read(*, split: str = "random", **config: float) -> Source:
    """Return generated clicks as a source, split at random or in their order; ids are those of the generator."""
    settings = Config(**config)  # type: ignore[arg-type]
    rows = generate(settings).with_row_index("time").with_columns(pl.col("time").cast(pl.Float64))
    return Source(
        with_split(rows.lazy(), settings.num_rows, split, settings.seed),
        tuple(Field(name, size) for name, size in settings.sizes.items()),
        label="label",
        columns=("time", "probability"),
    )


OPTIONS = {"split": "random", **asdict(Config())}
HEAVY_TAIL = {
    **OPTIONS,
    **{"num_rows": 120_000, "features": 10, "useless": 0, "largest": 200_000, "exponent": 1.05},
}
"""The options of `heavy-tail`: more than four in five of its ids are seen fewer than five times in training."""


def read_heavy_tail(**options: float) -> Source:
    """Return generated clicks as `read` does, with a vocabulary of the ids that occur in any split."""
    source = read(**options)  # type: ignore[arg-type]
    return replace(source, fields=tuple(Field(field.name, "all") for field in source.fields))


def _ids(rng: np.random.Generator, size: int, config: Config) -> np.ndarray:
    upto = np.cumsum(np.arange(1.0, size + 1) ** -config.exponent)
    rank = np.minimum(np.searchsorted(upto, rng.random(config.num_rows) * upto[-1], side="right"), size - 1)
    return rng.permutation(size)[rank]


def _bias(score: np.ndarray, rate: float) -> float:
    """Return the constant for which the mean probability is `rate`, by bisection."""
    low, high = -float(score.max()) - 20, -float(score.min()) + 20
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 / (1 + np.exp(-score - middle))).mean() < rate else (low, middle)
    return (low + high) / 2
