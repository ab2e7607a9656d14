"""The result of `rank_features`: a table to print, names, JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from embcomp.files import StrPath, write


@dataclass(frozen=True)
class FeatureScore:
    """The information of one feature about the label.

    Attributes:
        feature: the name of the column.
        values: the number of its values, a missing value included.
        score: H(Y | noise of the same partition sizes) - H(Y | X), in bits per row; below 0 if X tells less than noise.
        share: the score divided by H(Y).
        sureness: the distance of the score from noise, in standard deviations of noise; 0 for noise itself.
        redundant_with: a better or finer feature that determines this one, or None.
        useless: True if a model seems to lose nothing by dropping it.
        even: True if labels are distributed over its values more evenly than by chance, as when negatives were drawn
            for each user; its score then tells nothing about its use, which only pairs show.
        exact: True if all values were counted, rather than a random share of them.
    """

    feature: str
    values: int
    score: float
    share: float
    sureness: float
    redundant_with: str | None
    useless: bool
    even: bool
    exact: bool


@dataclass(frozen=True)
class PairScore:
    """The information that two features carry together beyond each alone.

    Attributes:
        features: the names of the two features.
        values: the number of pairs of values that occur.
        gain: the information of one within the values of the other, beyond noise, minus its own score, in bits per row.
            Below 0 if they repeat each other, or if their pairs are too rare.
        share: the gain divided by H(Y).
        sureness: the gain in standard deviations of noise.
        exact: True if all values and pairs of values were counted.
    """

    features: tuple[str, str]
    values: int
    gain: float
    share: float
    sureness: float
    exact: bool


@dataclass(frozen=True)
class FeatureRanking:
    """The features of a log, the best first; see `rank_features`.

    Attributes:
        label: the name of the label's column.
        rows: the number of rows read.
        click_rate: the share of labels that are 1.
        entropy: H(Y), bits per row: the information of a perfect model.
        features: the score of each feature, the highest first.
        pairs: the best pairs, by their certain gain; empty unless requested.
    """

    label: str
    rows: int
    click_rate: float
    entropy: float
    features: tuple[FeatureScore, ...]
    pairs: tuple[PairScore, ...] = ()

    @property
    def scores(self) -> dict[str, float]:
        """The score in bits by the name of the feature, the best first."""
        return {score.feature: score.score for score in self.features}

    @property
    def useless(self) -> list[str]:
        """The features that a model can do without, those with the most values first."""
        scores = [score for score in self.features if score.useless]
        return [score.feature for score in sorted(scores, key=lambda score: -score.values)]

    @property
    def advice(self) -> str:
        """The advice about useless features, and about those that cannot be judged; "" if there are none."""
        said = []
        if self.useless:
            values = sum(score.values for score in self.features if score.useless)
            rows = f"{values:,} row" + ("s" if values > 1 else "")
            crossed = "" if self.pairs else "; pairs=10 tells first whether they speak together with another feature"
            said.append(
                f"Drop {', '.join(self.useless)}: {rows} of tables that tell nothing of {self.label!r}{crossed}."
            )
        if even := [score.feature for score in self.features if score.even]:
            more = "" if self.pairs else "; pairs=10 shows what they say beside others"
            said.append(
                f"No advice on {', '.join(even)}: labels are spread over the values more evenly than chance would, as "
                f"where negatives were drawn for each of them{more}."
            )
        return "\n".join(said)

    def __str__(self) -> str:
        lines = [
            f"{self.rows:,} rows, {self.click_rate:.2%} of {self.label!r} are 1: H(Y) = {self.entropy:.4f} bits",
            "",
        ]
        table = [("feature", "values", "bits", "of H(Y)", "redundant with", "useless")]
        for score in self.features:
            about = "" if score.exact else "~"
            bits = f"{about}{score.score:.5f}"
            cells = (f"{about}{score.values:,}", bits, f"{score.share:.2%}", score.redundant_with or "-")
            table.append((score.feature, *cells, "yes" if score.useless else "?" if score.even else "no"))
        lines += _aligned(table, left=(0, 4))
        if self.pairs:
            table = [("pair", "values", "gain", "of H(Y)")]
            for pair in self.pairs:
                about = "" if pair.exact else "~"
                gain = (f"{about}{pair.gain:.5f}", f"{pair.share:.2%}")
                table.append((" x ".join(pair.features), f"{about}{pair.values:,}", *gain))
            lines += ["", *_aligned(table, left=(0,))]
        return "\n".join([*lines, *(["", self.advice] if self.advice else [])])

    def save(self, path: StrPath) -> None:
        """Write the ranking as JSON, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        write(path, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: StrPath) -> FeatureRanking:
        """Read what `save` wrote.

        Raises:
            ValueError: the file holds something else; the text names it.
        """
        try:
            saved = json.loads(Path(path).read_text())
            features = tuple(FeatureScore(**score) for score in saved.pop("features"))
            pairs = tuple(PairScore(**pair | {"features": tuple(pair["features"])}) for pair in saved.pop("pairs"))
            return cls(**saved, features=features, pairs=pairs)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path} holds no ranking of features, as FeatureRanking.save writes it: {error}"
            ) from error


def _aligned(table: list[tuple[str, ...]], left: tuple[int, ...]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
