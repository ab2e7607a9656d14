"""The rows that `rank_features` reads, batch by batch, and the input that it refuses."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from embcomp.columns import parquet_files, readable, scan
from embcomp.extras import install
from embcomp.planner.features_counts import POSITIVES

if TYPE_CHECKING:
    import polars as pl

BATCH = 1 << 19


def batches(
    clicks: Any, label: str, features: Sequence[str] | None, seed: int
) -> tuple[list[str], Iterator[pl.DataFrame]]:
    """Return the names of the features, and batches of rows: their hashes, and POSITIVES, the labels, int64."""
    try:
        import polars as pl
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"rank_features: {error}: {install('graph')}") from None
    files = None
    if isinstance(clicks, pl.DataFrame | pl.LazyFrame):
        frame = clicks.lazy()
        schema = frame.collect_schema()
        names = _names(schema.names(), label, features)
    else:
        if not _are_paths(clicks):
            raise ValueError(
                "rank_features: clicks must be a path, folder or glob of parquet files, a list of these, or a polars "
                f"frame, got {type(clicks).__name__}; pl.DataFrame(clicks) converts other frames"
            )
        files = parquet_files(clicks)
        with readable(files):
            columns = pl.scan_parquet(files[0], glob=False).collect_schema().names()
        if features is not None:  # columns that only the names of folders hold are read where they are named
            columns += [n for n in (label, *features) if any(f"{n}=" in part for part in files[0].parts)]
        names = _names(columns, label, features)
        frame = scan(files, [*names, label])
        schema = frame.collect_schema()
    _check_types(schema, label, names)
    return names, _hashed(frame, schema, label, names, seed, nullcontext() if files is None else readable(files))


def _are_paths(clicks: Any) -> bool:
    several = [clicks] if isinstance(clicks, str | os.PathLike) else clicks
    return (
        isinstance(several, list | tuple) and bool(several) and all(isinstance(p, str | os.PathLike) for p in several)
    )


def _names(columns: Sequence[str], label: str, features: Sequence[str] | None) -> list[str]:
    if isinstance(features, str):
        raise ValueError(f"rank_features: features={features!r} must be a list of names; write [{features!r}]")
    for name in (label, *(features or ())):
        if name not in columns:
            near = difflib.get_close_matches(str(name), columns, 1, 0.5)
            what = f"label={name!r}" if name == label else f"features: {name!r}"
            meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, columns))}"
            raise ValueError(f"rank_features: {what} is not a column; {meant}")
    if features is None:
        features = [name for name in columns if name != label]
    if label in features:
        raise ValueError(f"rank_features: features holds the label {label!r} itself; leave it out")
    if not features:
        raise ValueError(f"rank_features: no features: there is no column but the label {label!r}; name some")
    return list(dict.fromkeys(features))


def _check_types(schema: pl.Schema, label: str, names: Iterable[str]) -> None:
    import polars as pl

    dtype = schema[label]
    if not (dtype.is_numeric() or dtype == pl.Boolean):
        raise ValueError(
            f"rank_features: label {label!r} is {dtype}, not 0 and 1; say what a positive is: "
            f"(pl.col({label!r}) == 'yes').cast(pl.Int8), say"
        )
    for name in names:
        if schema[name].is_nested() or schema[name] == pl.Object:
            raise ValueError(
                f"rank_features: column {name!r} is nested ({schema[name]}); rank one value of it, such as "
                f"pl.col({name!r}).list.first() or .list.len(), or leave it out of features="
            )


def _hashed(
    frame: pl.LazyFrame, schema: pl.Schema, label: str, names: list[str], seed: int, errors: Any
) -> Iterator[pl.DataFrame]:
    import polars as pl

    text = (pl.Categorical, pl.Enum)
    plain = [pl.col(name).cast(pl.String) if schema[name] in text else pl.col(name) for name in names]
    floats = [name for name in names if schema[name].is_float()]
    with errors:
        stream = frame.select(*plain, label).collect_batches(chunk_size=BATCH, maintain_order=True, engine="streaming")
        for rows in stream:
            if not rows.height:
                continue
            for name in floats:
                if rows[name].is_nan().any():
                    raise ValueError(
                        f"rank_features: column {name!r} holds NaN; pl.col({name!r}).fill_nan(None) makes it a missing "
                        "value, which counts as a value of its own"
                    )
            hashes = rows.select(pl.col(name).hash(seed) for name in names)
            yield hashes.with_columns(_labels(rows[label]).alias(POSITIVES))


def _labels(labels: pl.Series) -> pl.Series:
    import polars as pl

    if labels.null_count():
        raise ValueError(
            f"rank_features: {labels.null_count()} labels of {labels.name!r} are missing; "
            f"drop these rows: clicks.drop_nulls({labels.name!r})"
        )
    odd = labels.cast(pl.Float64).is_in([0.0, 1.0])
    if not odd.all():
        value = labels.filter(~odd)[0]
        raise ValueError(
            f"rank_features: label {labels.name!r} holds {value!r}, not only 0 and 1; say what a positive is: "
            f"(pl.col({labels.name!r}) >= 4).cast(pl.Int8), say"
        )
    return labels.cast(pl.Int64)
