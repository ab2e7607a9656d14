"""The schema of a click data set: its label, features, dense columns and group."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any


class DataError(ValueError):
    """Data or arguments are not valid; the message names the place, the value and the remedy."""


def known(kind: str, name: str, names: Collection[str]) -> str:
    """Return `name` if it is one of `names`. Raise DataError with the nearest of them if not."""
    if not isinstance(name, str) or name not in names:
        near = get_close_matches(str(name), list(names), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names) or 'none'}"
        raise DataError(f"unknown {kind} {name!r}: {hint}")
    return name


@dataclass(frozen=True)
class Feature:
    """A categorical feature.

    Attributes:
        name: the column of the data, and key of the KeyedJaggedTensor.
        num_embeddings: the number of ids, 0 <= id < num_embeddings; None for an open id space (any non-negative int64).
        multi_hot: True if the column holds a list of ids per row, possibly empty.
    """

    name: str
    num_embeddings: int | None
    multi_hot: bool = False


@dataclass(frozen=True)
class Schema:
    """The columns of an encoded data set.

    Attributes:
        label: the column of 0 and 1.
        features: the categorical features, in the order of the KeyedJaggedTensor's keys.
        dense: the float columns, in the order of `Batch.dense`.
        group: the column by which metrics are grouped (a feature or one of `columns`), or None.
        columns: further columns that batches carry for evaluation; the model does not read them.
    """

    label: str
    features: tuple[Feature, ...]
    dense: tuple[str, ...] = ()
    group: str | None = None
    columns: tuple[str, ...] = ()

    @property
    def feature_names(self) -> list[str]:
        return [feature.name for feature in self.features]

    @property
    def carried(self) -> tuple[str, ...]:
        """The columns that `Batch.columns` holds: the group first, then `columns`."""
        return tuple(dict.fromkeys(([self.group] if self.group else []) + list(self.columns)))

    def feature(self, name: str) -> Feature:
        return self.features[self.place(name)]

    def place(self, name: str) -> int:
        """Return the number of a feature."""
        for index, feature in enumerate(self.features):
            if feature.name == name:
                return index
        raise DataError(f"no feature {name!r}; the features are {', '.join(self.feature_names)}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Schema:
        return cls(
            label=values["label"],
            features=tuple(Feature(**feature) for feature in values["features"]),
            dense=tuple(values["dense"]),
            group=values["group"],
            columns=tuple(values["columns"]),
        )
