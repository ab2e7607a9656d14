"""Dependences between features: whether A = f(B) holds in a sample of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

_AGREE = 0.98  # of the disagreements that chance would bring, those that must be missing
_EXPECTED = 50  # disagreements by chance, fewer of which say nothing


def redundant_with(rows: pl.DataFrame, values: dict[str, float], told: Sequence[str]) -> dict[str, str]:
    """Return for each feature that follows from another the name of the other.

    If A follows from B, two rows with equal B have equal A; how often they would by chance is known from how often any
    two rows have equal A.

    Args:
        rows: a sample of rows, in random order, with one column of hashes for each feature.
        values: the number of values of each feature.
        told: the features that are informative about the label, the best first; others make nothing redundant.
    """
    import numpy as np

    codes = {name: np.unique(rows[name].to_numpy(), return_inverse=True)[1] for name in told}
    chance = {name: float(((np.bincount(code) / max(len(code), 1)) ** 2).sum()) for name, code in codes.items()}
    follows: dict[str, str] = {}
    # From the fewest values up: the nearest feature that tells all is named, not the finest.
    for other in sorted(told, key=lambda name: values[name]):
        order = np.argsort(codes[other], kind="stable")
        same = np.diff(codes[other][order]) == 0
        for name in told:
            # Of two that follow from each other the better one stays.
            later = told.index(name) > told.index(other)
            if name == other or name in follows or values[name] > 1.001 * values[other]:
                continue
            if values[other] <= 1.001 * values[name] and not later:
                continue
            agree = np.diff(codes[name][order])[same] == 0
            expected = (1 - chance[name]) * agree.size
            if expected >= _EXPECTED and (~agree).sum() <= (1 - _AGREE) * expected:
                follows[name] = other
    return follows
