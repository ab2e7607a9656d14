"""The raw rows that a reader returns, to be encoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from data.ids import Field
from data.splits import SPLITS


@dataclass(frozen=True)
class Source:
    """The raw rows, and the use of each column.

    Attributes:
        rows: the label, raw feature values, dense and further columns, and SPLIT (UInt8, index into SPLITS).
        fields: the features, in the order of the schema.
        splits: the splits that must hold rows.
        content: vectors that describe the ids, float32 [num_embeddings, dim], by feature.
        truth: the quantities that a generator has planted.
    """

    rows: pl.LazyFrame
    fields: tuple[Field, ...]
    label: str
    dense: tuple[str, ...] = ()
    group: str | None = None
    columns: tuple[str, ...] = ()
    splits: tuple[str, ...] = SPLITS
    content: Mapping[str, np.ndarray] = field(default_factory=dict)
    truth: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def carried(self) -> tuple[str, ...]:
        """The group and further columns, without those that are features."""
        features = {f.name for f in self.fields}
        names = ([self.group] if self.group else []) + list(self.columns)
        return tuple(name for name in dict.fromkeys(names) if name not in features)
