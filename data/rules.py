"""The rules of a schema that convert columns to ids and numbers: fill values, parts of dates, fixed-size lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from data.schema import DataError, known

# Part of a date -> (how many ids it has, None where they have no end; the ids, from 0).
PARTS: dict[str, tuple[int | None, Callable[[pl.Expr], pl.Expr]]] = {
    "minute": (60, lambda time: time.dt.minute()),
    "hour": (24, lambda time: time.dt.hour()),
    "weekday": (7, lambda time: time.dt.weekday() - 1),  # 0 is Monday
    "is_weekend": (2, lambda time: time.dt.weekday() >= 6),
    "day": (31, lambda time: time.dt.day() - 1),
    "month": (12, lambda time: time.dt.month() - 1),
    "year": (None, lambda time: time.dt.year()),
}
_NEEDS_TIME = ("minute", "hour")
KEYS = ("of", "part", "fill")


@dataclass(frozen=True)
class Rule:
    """A rule that makes a column of the data set from one of the file.

    Attributes:
        name: the name of the column that is made.
        of: the column of the file.
        part: the part of its dates, a key of PARTS.
        fill: the value for missing values and NaN.
    """

    name: str
    of: str
    part: str | None = None
    fill: int | float | str | None = None

    @classmethod
    def read(cls, where: str, name: str, settings: Mapping[str, Any]) -> Rule:
        """Read the rule from the settings of a column."""
        rule = cls(name, **{"of": name, **{key: settings[key] for key in KEYS if key in settings}})
        if not isinstance(rule.of, str):
            raise DataError(f"{where}: of must be the name of a column, not {rule.of!r}")
        if rule.part is not None:
            known(f"part in {where}", rule.part, PARTS)
        finite = not isinstance(rule.fill, float) or math.isfinite(rule.fill)
        if isinstance(rule.fill, bool) or not isinstance(rule.fill, int | float | str | None) or not finite:
            raise DataError(f"{where}: fill must be a finite number or a string, not {rule.fill!r}")
        return rule

    def column(self, dtype: pl.DataType) -> pl.Expr:
        """Return the column, made from one of this type."""
        values = pl.col(self.of)
        if self.part is not None:
            if dtype not in (pl.Date, pl.Datetime, pl.Time) or (dtype == pl.Time and self.part not in _NEEDS_TIME):
                raise DataError(f"column {self.of!r} is {dtype}; {self.part!r} is a part of dates and times")
            if dtype == pl.Date and self.part in _NEEDS_TIME:
                raise DataError(f"column {self.of!r} holds dates alone, which have no {self.part}")
            values = PARTS[self.part][1](values).cast(pl.Int32)
        elif isinstance(dtype, pl.Array):
            values = values.cast(pl.List(dtype.inner))
        if self.fill is not None:
            if dtype.is_float():
                values = values.fill_nan(None)
            if dtype.is_numeric() == isinstance(self.fill, str) and self.part is None:
                raise DataError(f"column {self.of!r} is {dtype}; fill={self.fill!r} is of another type")
            values = values.fill_null(pl.lit(self.fill))
        return values.alias(self.name)

    def dense(self, dtype: pl.DataType) -> list[pl.Expr]:
        """Return the dense columns; a fixed-size list of n numbers gives n columns, `name[0]` to `name[n - 1]`."""
        if not isinstance(dtype, pl.Array) or self.part is not None:
            return [self.column(dtype)]
        entries = [(f"{self.name}[{index}]", pl.col(self.of).arr.get(index)) for index in range(dtype.size)]
        if self.fill is None:
            return [entry.alias(name) for name, entry in entries]
        plain = [entry.cast(pl.Float64).fill_nan(None).fill_null(float(self.fill)) for _, entry in entries]
        return [entry.alias(name) for (name, _), entry in zip(entries, plain, strict=True)]
