"""A pass over all rows before they are encoded, which validates them, counts them and collects the vocabularies."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from data.ids import Field, as_strings, single
from data.schema import DataError, known
from data.source import Source
from data.splits import SPLIT, SPLITS

_TEXT = (pl.String, pl.Boolean, pl.Categorical, pl.Enum)


def check_columns(source: Source) -> dict[str, pl.DataType]:
    """Return the types of the columns. Raise DataError if one is missing or its type does not fit its use."""
    dtypes = dict(source.rows.collect_schema())
    wanted = [source.label, *(f.name for f in source.fields), *source.dense, *source.carried]
    for column in wanted:
        known("column", column, [name for name in dtypes if name != SPLIT])
        if wanted.count(column) > 1:
            raise DataError(f"column {column!r} has more than one use; give each column one")
    for column in (source.label, *source.dense):
        if not (dtypes[column].is_numeric() or dtypes[column] == pl.Boolean):
            raise DataError(f"column {column!r} is {dtypes[column]}, not numbers{_remedy(dtypes[column])}")
    for column in source.carried:
        if not (dtypes[column].is_numeric() or dtypes[column] in (*_TEXT, pl.Date, pl.Datetime)):
            raise DataError(f"column {column!r} is {dtypes[column]}, not numbers, strings or dates")
    for f in source.fields:
        dtype = dtypes[f.name]
        if f.multi_hot and f.name in (source.group, *source.columns):
            raise DataError(f"feature {f.name!r} is multi-hot: neither the group nor one of the columns can be it")
        if isinstance(dtype, pl.List) != f.multi_hot:
            hint = "set multi_hot" if isinstance(dtype, pl.List) else "multi_hot is for lists"
            raise DataError(f"feature {f.name!r} is {dtype}: {hint}")
        inner = single(dtype)
        if not (inner.is_integer() or (inner in _TEXT and not isinstance(f.ids, int))):
            raise DataError(f"feature {f.name!r} with ids={f.ids!r} is {dtype}, which it cannot hold{_remedy(inner)}")
    return dtypes


def _remedy(dtype: pl.DataType) -> str:
    if dtype in (pl.Date, pl.Datetime, pl.Time):
        return '; name a part of it in the schema: of = "COLUMN", part = "hour"'
    if isinstance(dtype, pl.List):
        return "; make it a fixed-size list (pl.Array), of which each entry is a dense column"
    return "; write it as integers or strings" if dtype.is_float() else ""


def survey(source: Source, dtypes: Mapping[str, pl.DataType]) -> tuple[dict[str, int], dict[str, pl.Series]]:
    """Count the rows of each split and collect the vocabularies.

    Raises:
        DataError: a value cannot be trained on, or a split is empty.
    """
    rules = _rules(source, dtypes)
    broken = [wrong.fill_null(True).sum().alias(name) for name, (wrong, _) in rules.items()]
    queries = [source.rows.group_by(SPLIT).agg(pl.len().alias("__rows"), *broken)]
    fields = [f for f in source.fields if f.has_vocabulary]
    # One scan of the source serves all queries.
    overview, *values = pl.collect_all([*queries, *(_values(source.rows, f) for f in fields)], engine="streaming")
    for name, (wrong, rule) in rules.items():
        if overview[name].sum():
            bad = source.rows.with_row_index("__row").filter(wrong.fill_null(True)).select("__row", name)
            row, value = bad.head(1).collect(engine="streaming").row(0)
            raise DataError(f"column {name!r} is {value!r} in row {row} (counted from 0), but {rule}")
    counted = dict(overview.select(SPLIT, "__rows").iter_rows())
    rows = {split: counted.get(SPLITS.index(split), 0) for split in source.splits}
    for split, number in rows.items():
        if not number:
            raise DataError(f"split {split!r} is empty, of {sum(rows.values())} rows in all; give more rows")
    return rows, {f.name: _sorted(v, f, dtypes[f.name]) for f, v in zip(fields, values, strict=True)}


def _rules(source: Source, dtypes: Mapping[str, pl.DataType]) -> dict[str, tuple[pl.Expr, str]]:
    """Return for each column the rows that break its rule (null counts as broken), and the rule."""
    rules = {
        source.label: (
            ~pl.col(source.label).cast(pl.Float64).is_in([0.0, 1.0]),
            "a label is 0 or 1; fill or correct it, or drop the row",
        )
    }
    for column in source.dense:
        finite = pl.col(column).cast(pl.Float32).is_finite()
        rules[column] = (~finite, "dense columns hold finite numbers; fill it or drop the row")
    for column in source.carried:
        rules[column] = (pl.col(column).is_null(), "it must not be missing; fill it or drop the row")
        if dtypes[column] in (pl.UInt64, pl.Int128, pl.UInt128):
            rule = "carried integers must be there and below 2^63; write them as strings"
            rules[column] = (pl.col(column) > 2**63 - 1, rule)
        elif dtypes[column].is_numeric() and not dtypes[column].is_integer() and column == source.group:
            end = 2**24 if dtypes[column] == pl.Float32 else 2**53
            value = pl.col(column).cast(pl.Float64)
            rule = f"a group of floats holds whole numbers up to {end}, beyond which they merge; write integers"
            rules[column] = (~(value.round().eq(value) & (value.abs() <= end)), rule)
    for f in source.fields:
        if not f.has_vocabulary and single(dtypes[f.name]).is_integer():
            end = 2**63 if isinstance(f.ids, str) else f.ids
            rule = f"ids are 0 <= id < {end}; correct it or drop the row"
            if f.multi_hot:
                ids = pl.col(f.name).fill_null([]).list.drop_nulls().list
                rules[f.name] = (ids.min().fill_null(0) < 0) | (ids.max().fill_null(0) > end - 1), rule
            else:
                rules[f.name] = (pl.col(f.name) < 0) | (pl.col(f.name) > end - 1), rule
    return rules


def _values(rows: pl.LazyFrame, f: Field) -> pl.LazyFrame:
    """Return the values that become the vocabulary of a feature, and their occurrences in the train split."""
    rows = rows.filter(pl.col(SPLIT) == 0) if f.ids == "train" else rows
    rows = rows.select(f.name, SPLIT)
    if f.multi_hot:
        rows = rows.explode(f.name, empty_as_null=False, keep_nulls=False).drop_nulls()
    counts = rows.group_by(as_strings(pl.col(f.name)).alias("value")).agg(pl.len(), trained=(pl.col(SPLIT) == 0).sum())
    return counts.filter(pl.col("len") >= f.min_count).select("value", "trained")


def _sorted(values: pl.DataFrame, f: Field, dtype: pl.DataType) -> pl.Series:
    """Sort values in the order of the field; numbers by value, not by their digits; a missing value first."""
    inner = single(dtype)
    key = pl.col("value").cast(inner, strict=False) if inner.is_integer() else pl.col("value")
    by = [-pl.col("trained").cast(pl.Int64)] if f.order == "count" else []
    return values.sort([*by, key], nulls_last=False)["value"]
