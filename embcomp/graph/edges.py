"""`interactions`: from a log of clicks, in memory or in files of any size, to the edges of the user-item graph."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl

from embcomp.columns import parquet_files, readable, scan
from embcomp.graph.sides import Side, check_side

MAX_IDS = 2**31


@dataclass(frozen=True, eq=False)
class Edges:
    """User-item pairs, each once, ordered by user and item.

    Attributes:
        users: the users, int32 [E].
        items: the items, int32 [E].
        weights: the weights, float32 [E], above 0; None if every edge weighs 1.
        num_users: the bound of the user ids; users without an edge are isolated.
        num_items: the bound of the item ids.
    """

    users: np.ndarray = field(repr=False)
    items: np.ndarray = field(repr=False)
    weights: np.ndarray | None = field(repr=False)
    num_users: int
    num_items: int

    def __len__(self) -> int:
        return self.users.size

    def ends(self, side: Side) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of that side, and those of the other side, edge by edge."""
        check_side(side)
        return (self.users, self.items) if side == "users" else (self.items, self.users)

    def num_ids(self, side: Side) -> int:
        """Return `num_users` or `num_items`."""
        check_side(side)
        return self.num_users if side == "users" else self.num_items

    def degrees(self, side: Side) -> np.ndarray:
        """Return the summed weight of the edges of each id, float64 [num_ids]."""
        return np.bincount(self.ends(side)[0], self.weights, minlength=self.num_ids(side)).astype(np.float64)

    def where(self, kept: np.ndarray) -> Edges:
        """Return the edges that a bool array [E] marks; the numbers of ids stay."""
        weights = None if self.weights is None else self.weights[kept]
        return Edges(self.users[kept], self.items[kept], weights, self.num_users, self.num_items)

    def most_frequent(self, side: Side, n: int) -> np.ndarray:
        """Return the `n` ids of that side with the largest degrees (above zero), int64, ascending; ties by id."""
        degrees = self.degrees(side)
        order = np.argsort(-degrees, kind="stable")[: min(n, int((degrees > 0).sum()))]
        return np.sort(order).astype(np.int64)


def interactions(
    source: Any,
    *,
    user: str = "user_id",
    item: str = "item_id",
    weight: str | None = None,
    label: str | None = None,
    min_label: float | None = None,
    time: str | None = None,
    half_life: float | timedelta | None = None,
    num_users: int | None = None,
    num_items: int | None = None,
) -> Edges:
    """Read interactions and merge the repeated ones.

    Files are streamed: only the distinct pairs are held in memory.

    Args:
        source: a polars LazyFrame or another data frame (polars, pandas, pyarrow); a parquet path, folder or glob, or
            several of these; two arrays (users, items); or a mapping from column names to arrays, which may also hold
            weights, labels and times.
        user: the column of user ids, integers in [0, 2^31).
        item: the column of item ids, integers in [0, 2^31).
        weight: the column of weights, finite and not negative. The weights of a repeated pair are added up; a sum of 0
            is no edge. Without `weight` and `half_life` a pair counts once, however often it occurs.
        label: the column of labels or ratings, numbers or booleans: only interactions with a positive label are kept.
        min_label: the smallest label to keep, instead of any above 0 (4 of 5 stars, say).
        time: the column of times, numbers or datetimes.
        half_life: the time before the latest interaction after which an interaction weighs half, in the unit of the
            column; for datetimes a timedelta or seconds.
        num_users: the number of users; by default one more than the largest id.
        num_items: the number of items; by default one more than the largest id.

    Raises:
        ValueError: ids are negative, missing, not integers, or 2^31 and above; weights, labels or times are missing,
            NaN, infinite or not numbers, or weights are negative; a column is missing; half_life is given without time,
            time without half_life, or min_label without label; a file is not parquet or is damaged, or the columns of
            files do not go together.

    Example:
        >>> import numpy as np
        >>> from embcomp.graph import interactions
        >>> edges = interactions((np.array([0, 0, 2, 0]), np.array([1, 0, 1, 1])))
        >>> len(edges), edges.users, edges.items, edges.num_users
        (3, array([0, 0, 2], dtype=int32), array([0, 1, 1], dtype=int32), 3)
    """
    columns = [name for name in (user, item, weight, label, time) if name is not None]
    with _frame(source, user, item, columns) as frame:
        return _edges_of(frame, user, item, weight, label, min_label, time, half_life, num_users, num_items)


def _edges_of(
    frame: pl.LazyFrame,
    user: str,
    item: str,
    weight: str | None,
    label: str | None,
    min_label: float | None,
    time: str | None,
    half_life: float | timedelta | None,
    num_users: int | None,
    num_items: int | None,
) -> Edges:
    schema = frame.collect_schema()
    _check_columns(schema, (user, item), (weight, label), time)
    if min_label is not None and label is None:
        raise ValueError(f"interactions: min_label={min_label} needs a column of labels")
    age = None if time is None and half_life is None else _half_lives(schema, time, half_life)
    if label is not None:
        value = pl.col(label).cast(pl.Float64)
        _check_labels(frame, value, label)
        frame = frame.filter(value > 0 if min_label is None else value >= min_label)
    parts: list[pl.Expr] = []
    if weight is not None:
        parts.append(pl.col(weight).cast(pl.Float64))
    if age is not None:
        latest = frame.select(age.max()).collect(engine="streaming").item()
        parts.append(((age - latest) * np.log(2.0)).exp())
    frame = frame.select(pl.col(user).alias("user"), pl.col(item).alias("item"), *_product(parts))
    _check(frame, user, item, f"{weight or ''}{' and ' if weight and half_life else ''}{time if half_life else ''}")
    grouped = frame.group_by("user", "item").agg(*[pl.col("weight").sum() for _ in parts[:1]])
    table = grouped.collect(engine="streaming")
    edges = _edges(table, num_users, num_items)
    if age is not None and 2 * len(edges) < table.height:
        warnings.warn(
            f"interactions: after half_life={half_life}, {table.height - len(edges)} of {table.height} pairs have "
            "weight 0 and are left out; with datetimes a number means seconds (use a timedelta for days)",
            stacklevel=2,
        )
    return edges


@contextmanager
def _frame(source: Any, user: str, item: str, columns: Sequence[str]) -> Iterator[pl.LazyFrame]:
    """Give the rows of any source; while they are read, errors of files name the file."""
    paths = [source] if isinstance(source, str | os.PathLike) else source
    if isinstance(paths, Sequence) and paths and all(isinstance(path, str | os.PathLike) for path in paths):
        if any("://" in os.fspath(path) for path in paths):  # of a store that polars knows how to reach
            yield pl.scan_parquet([os.fspath(path) for path in paths])
            return
        try:
            files = parquet_files(paths)
            frame = scan(files, columns)
        except ValueError as error:
            raise ValueError(f"interactions: {error}") from error
        with readable(files):
            yield frame
        return
    yield _frame_in_memory(source, user, item)


def _frame_in_memory(source: Any, user: str, item: str) -> pl.LazyFrame:
    if isinstance(source, pl.LazyFrame):
        return source
    if hasattr(source, "columns") and hasattr(source, "__arrow_c_stream__"):
        return pl.DataFrame(source).lazy()
    columns = source if isinstance(source, dict) else None
    if isinstance(source, tuple) and len(source) == 2:
        columns = {user: source[0], item: source[1]}
    if columns is None:
        raise ValueError(
            "interactions: expected a data frame, a parquet path, two arrays or a dict of arrays, "
            f"got {type(source).__name__}"
        )
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    lengths = {name: values.shape for name, values in arrays.items()}
    if len(set(lengths.values())) != 1 or any(len(shape) != 1 for shape in lengths.values()):
        raise ValueError(f"interactions: arrays must be of one length and dimension, got {lengths}")
    return pl.LazyFrame(arrays)


def _check_columns(schema: pl.Schema, ids: Sequence[str], numbers: Sequence[str | None], time: str | None) -> None:
    for column in [name for name in (*ids, *numbers, time) if name is not None]:
        if column not in schema:
            raise ValueError(f"interactions: there is no column {column!r}; there are {list(schema)}")
    for column in ids:
        if not schema[column].is_integer():
            raise ValueError(
                f"interactions: ids of {column!r} must be integers, got {schema[column]}; number them from 0 and keep "
                "the table of numbers (the tutorial on click logs shows how)"
            )
    for column in numbers:
        if column is not None and not (schema[column].is_numeric() or schema[column] == pl.Boolean):
            raise ValueError(f"interactions: {column!r} must hold numbers, got {schema[column]}; cast it")


def _half_lives(schema: pl.Schema, time: str | None, half_life: float | timedelta | None) -> pl.Expr:
    """The column of times, in units of half-lives."""
    span = half_life.total_seconds() if isinstance(half_life, timedelta) else half_life
    if time is None or span is None or not 0 < span < math.inf:
        raise ValueError(f"interactions: half_life={half_life} needs a column of times (got {time}) and a span above 0")
    if schema[time] in (pl.Date, pl.Datetime):
        return pl.col(time).dt.epoch("us") / (1e6 * span)
    if not schema[time].is_numeric() or isinstance(half_life, timedelta):
        wanted = "dates or datetimes" if isinstance(half_life, timedelta) else "numbers, dates or datetimes"
        raise ValueError(f"interactions: {time!r} must hold {wanted}, got {schema[time]}; cast it")
    return pl.col(time).cast(pl.Float64) / span


def _product(parts: list[pl.Expr]) -> list[pl.Expr]:
    if not parts:
        return []
    product = parts[0]
    for factor in parts[1:]:
        product = product * factor
    # Weights of 24 bits add up exactly in 53: the sum is the same in whatever order threads add.
    return [product.cast(pl.Float32).cast(pl.Float64).alias("weight")]


def _check_labels(frame: pl.LazyFrame, value: pl.Expr, label: str) -> None:
    counts = frame.select(missing=value.null_count(), nan=value.is_nan().sum()).collect(engine="streaming")
    missing, nan = counts.row(0)
    if missing or nan:
        raise ValueError(
            f"interactions: {missing + nan} labels of {label!r} are {'missing' if missing else 'NaN'}; "
            "drop these rows, or fill them with 0 to leave them out"
        )


def _check(frame: pl.LazyFrame, user: str, item: str, weight: str) -> None:
    """Check extremes and missing values in one pass over the columns."""
    names = frame.collect_schema().names()
    asked = [f(pl.col(n)).alias(f"{n}.{k}") for n in names for k, f in _EXTREMES.items()]
    if "weight" in names:
        asked.append((~pl.col("weight").is_finite()).sum().alias("weight.infinite"))
    extremes = frame.select(asked).collect(engine="streaming").row(0, named=True)
    for name, column in (("user", user), ("item", item), ("weight", weight)):
        if name not in names:
            continue
        if extremes[f"{name}.missing"]:
            raise ValueError(f"interactions: {extremes[f'{name}.missing']} values of {column!r} are missing")
        if name == "weight" and extremes["weight.infinite"]:
            bad = extremes["weight.infinite"]
            raise ValueError(f"interactions: {bad} weights from {column!r} are NaN, infinite or beyond a float32")
        if extremes[f"{name}.min"] is not None and extremes[f"{name}.min"] < 0:
            raise ValueError(f"interactions: {column!r} has a negative value, {extremes[f'{name}.min']}")
        if name != "weight" and extremes[f"{name}.max"] is not None and extremes[f"{name}.max"] >= MAX_IDS:
            raise ValueError(
                f"interactions: {column!r} has the id {extremes[f'{name}.max']}, but maps are arrays over all ids "
                "and hold ids below 2^31; number the ids from 0 (the tutorial on click logs shows how)"
            )


_EXTREMES = {"min": pl.Expr.min, "max": pl.Expr.max, "missing": pl.Expr.null_count}


def _edges(table: pl.DataFrame, num_users: int | None, num_items: int | None) -> Edges:
    weights = None
    if "weight" in table.columns:
        table = table.with_columns(pl.col("weight").cast(pl.Float32)).filter(pl.col("weight") > 0)
        weights = table["weight"].to_numpy()
        if not np.isfinite(weights).all():
            raise ValueError("interactions: the weights of a pair add up to more than a float32 holds; scale them down")
    users, items = table["user"].cast(pl.Int32).to_numpy(), table["item"].cast(pl.Int32).to_numpy()
    sizes = []
    for name, ids, given in (("num_users", users, num_users), ("num_items", items, num_items)):
        needed = int(ids.max()) + 1 if ids.size else 0
        if given is not None and (isinstance(given, bool) or not isinstance(given, int | np.integer)):
            raise ValueError(f"interactions: {name} must be an integer, got {given!r}")
        if given is not None and not needed <= given <= MAX_IDS:
            limit = f"there is an id {needed - 1}" if 0 <= given < needed else "it must lie in [0, 2^31]"
            raise ValueError(f"interactions: {name}={given}, but {limit}")
        sizes.append(needed if given is None else int(given))
    order = np.argsort(users.astype(np.int64) * sizes[1] + items)
    return Edges(users[order], items[order], None if weights is None else weights[order], *sizes)
