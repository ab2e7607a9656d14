"""The scores from counts: of one feature, and of a feature within the values of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from embcomp.planner.features_counts import POSITIVES, ROWS, ValueCounts
from embcomp.planner.features_noise import Groups, Moments, beyond, entropy
from embcomp.planner.features_ranking import FeatureScore, PairScore

if TYPE_CHECKING:
    import polars as pl

_SURE = 3.3  # standard deviations: one useless feature in 2,000 passes
_SURE_PAIR = 5.0  # there are many pairs
_WHOLE, _WHOLE_ROWS, _DEALT = "\0whole", "\0whole rows", "\0dealt"


def feature_scores(counts: Sequence[ValueCounts], rows: int, positives: int, least: float) -> dict[str, FeatureScore]:
    """Compute the score of each feature, by its name."""
    information = entropy(positives / rows)
    log = torch.tensor([rows]), torch.tensor([positives])
    sizes = torch.cat([_column(each.merged(), ROWS).unique() for each in counts]).unique()
    table = Moments.of(sizes, *(each.expand(len(sizes)) for each in log))
    scores = {}
    for each in counts:
        frame = each.result()
        held = _column(frame, ROWS)
        groups = Groups(held, _column(frame, POSITIVES), torch.zeros_like(held), *log, each.share)
        bits, _, sureness = beyond(groups, table[torch.searchsorted(sizes, held)])
        score = bits / rows
        scores[each.keys[0]] = FeatureScore(
            feature=each.keys[0],
            values=round(len(held) / each.share),
            score=score,
            share=score / information,
            sureness=sureness,
            redundant_with=None,
            useless=-_SURE < sureness < _SURE or 0 <= score < least * information,
            even=sureness <= -_SURE,
            exact=each.share == 1,
        )
    return scores


def pair_score(pair: ValueCounts, better: ValueCounts, other: FeatureScore, rows: int, information: float) -> PairScore:
    """Compute the information of the other feature within each value of the better one, minus its own score.

    The noise assigns labels within each value of the better feature, so the information of that feature is not part of
    the pair's gain.
    """
    import polars as pl

    name = better.keys[0]
    wholes = better.result().filter(pl.col(POSITIVES).is_between(0, pl.col(ROWS), closed="none"))
    wholes = wholes.rename({ROWS: _WHOLE_ROWS, POSITIVES: _DEALT}).with_row_index(_WHOLE)
    cells = pair.result().join(wholes, on=name, maintain_order="left")
    share, gain, deviation = pair.share * better.share, -other.score, 0.0
    if cells.height:
        whole, context = _column(cells, _WHOLE).long(), (_column(wholes, _WHOLE_ROWS), _column(wholes, _DEALT))
        groups = Groups(_column(cells, ROWS), _column(cells, POSITIVES), whole, *context, share)
        bits, deviation, _ = beyond(groups, Moments.of(groups.sizes, *(each[whole] for each in context)))
        gain, deviation = gain + bits / rows, deviation / rows
    return PairScore(
        features=(pair.keys[0], pair.keys[1]),
        values=round(len(pair.merged()) / pair.share),
        gain=gain,
        share=gain / information,
        sureness=gain / deviation if deviation else 0.0,
        exact=share == 1,
    )


def sure_gain(pair: PairScore) -> float:
    """Return the gain minus what noise might add, so that pairs with many values do not win by chance."""
    return pair.gain * (1 - _SURE_PAIR / pair.sureness) if pair.sureness else pair.gain


def speaks(pair: PairScore, least: float) -> bool:
    """Return whether the features of a pair carry information together that neither carries alone."""
    return pair.sureness >= _SURE_PAIR and pair.share >= least


def _column(rows: pl.DataFrame, name: str) -> Tensor:
    return torch.from_numpy(rows[name].to_numpy().copy())
