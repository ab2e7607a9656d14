"""`rank_features`: the information of each feature of a click log about the label, before any model is trained."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from embcomp.planner.features_counts import POSITIVES, RowSample, ValueCounts, bound
from embcomp.planner.features_noise import entropy
from embcomp.planner.features_ranking import FeatureRanking
from embcomp.planner.features_read import batches
from embcomp.planner.features_redundant import redundant_with
from embcomp.planner.features_score import feature_scores, pair_score, speaks, sure_gain

_SAMPLE = 200_000  # rows on which redundancy is judged


def rank_features(
    clicks: Any,
    *,
    label: str = "label",
    features: Sequence[str] | None = None,
    pairs: bool | int = False,
    least: float = 1e-4,
    max_values: int = 1 << 24,
    seed: int = 0,
) -> FeatureRanking:
    """Rank features by their information about the label, beyond that of noise with as many values.

    The score is that of OutRank (Skrlj and Mramor, RecSys 2023, arXiv 2309.01552): a feature X splits the rows into
    groups, and any split into many small groups seems to explain the label Y. So the score is H(Y | noise) - H(Y | X),
    with noise that splits the rows into groups of the same sizes. OutRank draws the noise once, by shifting labels.
    Here it is the exact expectation over all assignments of the labels, which depends on the sizes alone: the same
    score on average, without the noise of a draw, and valid on logs ordered by time, where a shifted label is not
    noise. A value seen once adds nothing, as in the paper: its entropy is 0 in both terms.

    A feature is useless if noise reaches its score, or if the score is below `least` of H(Y), alone and in every pair
    that was counted. If labels are distributed more evenly than by chance (negatives were drawn for each user, so all
    users have one click rate), the only advice is to look at pairs. Rows are assumed to be independent; if they are not
    (sessions, a drift in time), noise reaches somewhat higher scores. A feature is redundant with another if the other
    determines it (the user determines the city); it may still help if the finer one has few rows per value.

    Everything is counted in one pass, batch by batch. Memory holds 24 bytes for each distinct value of each feature (32
    for each pair), twice that while parts are merged, one batch of 2^19 rows, and a sample of 200,000 to 400,000 rows.
    Values are identified by a hash of 64 bits. Above `max_values` only a random share of the values of the largest
    features is counted, each value in full; the scores are then estimates, marked by "~".

    Args:
        clicks: a path, folder or glob of parquet files, a list of these, or a polars DataFrame or LazyFrame.
        label: the column of labels, 0 and 1 or booleans.
        features: the columns to rank; by default all but the label. A missing value is a value of its own.
        pairs: the number of best pairs to report, by the certain gain of crossing them; True for 10. All pairs are
            counted, which takes F (F - 1) / 2 times as long as one feature.
        least: the share of H(Y) below which a feature is useless, however sure its score.
        max_values: the largest number of distinct values to hold, over all features and pairs.
        seed: the seed of the hashes, which decide what is sampled.

    Raises:
        ValueError: a column does not exist, is nested or holds NaN; labels are missing, other than 0 and 1, or all the
            same; there are no rows or features; a number is out of range; or files cannot be read.
        FileNotFoundError: a path, folder or glob has no parquet files.
        ModuleNotFoundError: polars is missing; the text says how to install it.

    Example:
        >>> import numpy as np, polars as pl, embcomp
        >>> rng = np.random.default_rng(0)
        >>> shop, visit = rng.integers(20, size=5000), rng.integers(2000, size=5000)
        >>> clicked = rng.random(5000) < 0.1 + 0.02 * shop
        >>> ranking = embcomp.rank_features(pl.DataFrame({"shop": shop, "visit": visit, "label": clicked}))
        >>> list(ranking.scores), ranking.useless
        (['shop', 'visit'], ['visit'])
    """
    _check_numbers(pairs, least, max_values)
    names, stream = batches(clicks, label, features, seed)
    single = {name: ValueCounts([name]) for name in names}
    crossed = [ValueCounts(pair) for pair in itertools.combinations(names, 2)] if pairs else []
    sample, rows, positives = RowSample(_SAMPLE, seed + 1), 0, 0
    for batch in stream:
        rows, positives = rows + batch.height, positives + int(batch[POSITIVES].sum())
        sample.add(batch.drop(POSITIVES))
        for counts in (*single.values(), *crossed):
            counts.add(batch)
            bound([*single.values(), *crossed], max_values)
    _check_labels(label, rows, positives)

    scores = feature_scores(list(single.values()), rows, positives, least)
    information, scored_pairs = entropy(positives / rows), []
    for pair in crossed:
        better, other = sorted(pair.keys, key=lambda name: -scores[name].score)
        scored_pairs.append(pair_score(pair, single[better], scores[other], rows, information))
    speaking = {name for pair in scored_pairs if speaks(pair, least) for name in pair.features}
    ranked = [
        replace(score, useless=False, even=False) if score.feature in speaking else score for score in scores.values()
    ]
    ranked.sort(key=lambda score: -score.score)
    useful = [score.feature for score in ranked if not (score.useless or score.even)]
    follows = redundant_with(sample.result(), {score.feature: score.values for score in ranked}, useful)
    ranked = [replace(score, redundant_with=follows.get(score.feature)) for score in ranked]
    best = sorted(scored_pairs, key=lambda pair: -sure_gain(pair))[: 10 if pairs is True else pairs]
    return FeatureRanking(label, rows, positives / rows, information, tuple(ranked), tuple(best))


def _check_numbers(pairs: bool | int, least: float, max_values: int) -> None:
    if not isinstance(pairs, int) or pairs < 0:
        raise ValueError(f"rank_features: pairs={pairs!r} must be a number of pairs, or True for 10")
    if not 0 <= least < 1:
        raise ValueError(f"rank_features: least={least!r} must be a share of H(Y) in [0, 1); 1e-4 is the default")
    if not isinstance(max_values, int) or max_values < 1024:
        raise ValueError(f"rank_features: max_values={max_values!r} must be an integer of at least 1024")


def _check_labels(label: str, rows: int, positives: int) -> None:
    if not rows:
        raise ValueError("rank_features: clicks holds no rows; check the path, or the filter of the frame")
    if positives in (0, rows):
        raise ValueError(
            f"rank_features: all {rows:,} labels of {label!r} are {int(positives > 0)}: nothing to predict; "
            "read rows of both classes"
        )
