"""Raw rows -> a folder of encoded parquet files, written once.

    <cache>/<name>-<key>/  train.parquet valid.parquet test.parquet  meta.json
                           vocabulary/<feature>.parquet  content/<feature>.npy  truth.npz

The key is a checksum of the options and of the names, sizes and times of the source files. The folder appears
complete or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from data.ids import Field, as_strings
from data.schema import DataError, Schema
from data.splits import SPLIT, SPLITS

FORMAT = 1  # raise it when encoded files change
ROW_GROUP = 1 << 16
_QUIET_ROWS = 2_000_000


@dataclass(frozen=True)
class Source:
    """What a reader gives.

    Attributes:
        rows: label, raw feature values, dense and further columns, and `split` (UInt8, index into SPLITS).
        fields: the features, in the order of the schema.
        splits: the splits that must hold rows.
        content: feature -> float32 [num_embeddings, dim], vectors that describe the ids.
        truth: what a generator knows about its data.
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
        features = {f.name for f in self.fields}
        names = ([self.group] if self.group else []) + list(self.columns)
        return tuple(name for name in dict.fromkeys(names) if name not in features)


def prepared(
    name: str,
    cache: str | Path | None,
    options: Mapping[str, Any],
    files: Sequence[Path],
    read: Callable[[], Source],
) -> Path:
    """Folder of the encoded data, made by `read` where it is not there yet.

    Args:
        cache: folder of all encoded data, by default `embcomp` in the user's cache folder.
        options: everything that the rows depend on beside the files, as JSON.
        files: source files, which must exist.
    """
    for file in files:
        if not file.is_file():
            raise DataError(f"no file {file}; `python -m data fetch {name}` says where to get it")
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = json.dumps([FORMAT, name, dict(options), states], sort_keys=True, default=str)
    root = Path(cache).expanduser() if cache else cache_folder()
    folder = root / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not folder.is_dir():
                part = folder.with_suffix(".part")
                shutil.rmtree(part, ignore_errors=True)  # of a run that was killed: the lock is ours
                try:
                    write(read(), part, name)
                    os.replace(part, folder)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
    return folder


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embcomp"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write(source: Source, folder: Path, name: str) -> None:
    """Check, encode and write all rows of a source."""
    folder.mkdir(parents=True)
    dtypes = _check_columns(source)
    with _progress(name) as progress:
        task = progress.add_task(f"{name}: reading values", total=None)
        rows, vocabularies = _survey(source, dtypes)
        total = sum(rows.values())
        progress.update(task, description=f"{name}: encoding", total=total, visible=total > _QUIET_ROWS)
        encoded = source.rows.select(
            pl.col(SPLIT),
            pl.col(source.label).cast(pl.Float32),
            *(f.encode(dtypes[f.name], vocabularies.get(f.name)).alias(f.name) for f in source.fields),
            *(pl.col(column).cast(pl.Float32) for column in source.dense),
            *(_carry(column, dtypes[column]) for column in source.carried),
        )
        writers = {split: _Writer(folder / f"{split}.parquet") for split in source.splits}
        for batch in encoded.collect_batches(chunk_size=ROW_GROUP, maintain_order=True, engine="streaming"):
            for split, writer in writers.items():
                writer.add(batch.filter(pl.col(SPLIT) == SPLITS.index(split)).drop(SPLIT))
            progress.advance(task, len(batch))
        for writer in writers.values():
            writer.close()
    schema = Schema(
        label=source.label,
        features=tuple(f.feature(vocabularies.get(f.name)) for f in source.fields),
        dense=source.dense,
        group=source.group,
        columns=source.columns,
    )
    for kind, values in [("vocabulary", vocabularies), ("content", source.content)]:
        (folder / kind).mkdir()
        for feature, value in values.items():
            if isinstance(value, pl.Series):
                value.to_frame("value").write_parquet(folder / kind / f"{feature}.parquet")
            else:
                np.save(folder / kind / f"{feature}.npy", value)
    if source.truth:
        np.savez(folder / "truth.npz", **source.truth)
    oov = [f.name for f in source.fields if f.out_of_vocabulary]
    meta = {"name": name, "schema": schema.to_dict(), "rows": rows, "out_of_vocabulary": oov}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


class _Writer:
    """Writes frames as row groups of ROW_GROUP rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._frames: list[pl.DataFrame] = []
        self._rows = 0
        self._file: pq.ParquetWriter | None = None

    def add(self, frame: pl.DataFrame) -> None:
        self._frames.append(frame)
        self._rows += len(frame)
        if self._rows >= ROW_GROUP:
            whole = pl.concat(self._frames)
            for start in range(0, self._rows - ROW_GROUP + 1, ROW_GROUP):
                self._write(whole[start : start + ROW_GROUP])
            self._frames = [whole[self._rows - self._rows % ROW_GROUP :]]
            self._rows %= ROW_GROUP

    def close(self) -> None:
        if self._rows:
            self._write(pl.concat(self._frames))
        if self._file:
            self._file.close()

    def _write(self, frame: pl.DataFrame) -> None:
        table = frame.to_arrow()
        if self._file is None:
            self._file = pq.ParquetWriter(self.path, table.schema, compression="lz4")
        self._file.write_table(table, row_group_size=ROW_GROUP)


def _check_columns(source: Source) -> dict[str, pl.DataType]:
    dtypes = dict(source.rows.collect_schema())
    wanted = [source.label, *(f.name for f in source.fields), *source.dense, *source.carried]
    for column in wanted:
        if column not in dtypes:
            raise DataError(f"no column {column!r}; the columns are {', '.join(c for c in dtypes if c != SPLIT)}")
    for f in source.fields:
        dtype = dtypes[f.name]
        if isinstance(dtype, pl.List) != f.multi_hot:
            hint = "set multi_hot" if isinstance(dtype, pl.List) else "leave multi_hot out"
            raise DataError(f"feature {f.name!r} has type {dtype}: {hint}")
        inner = dtype.inner if isinstance(dtype, pl.List) else dtype
        fits = inner.is_integer() or (not isinstance(f.ids, int) and inner == pl.String) or f.has_vocabulary
        if not fits or inner.is_float() or inner.is_nested():
            raise DataError(f"feature {f.name!r} with ids={f.ids!r} cannot hold {dtype}: use integers or strings")
    return dtypes


def _carry(column: str, dtype: pl.DataType) -> pl.Expr:
    if dtype.is_integer() or dtype == pl.Boolean:
        return pl.col(column).cast(pl.Int64)
    if dtype.is_float():
        return pl.col(column).cast(pl.Float32)
    return Field(column, "raw").encode(pl.String(), None) if dtype == pl.String else pl.col(column).to_physical()


def _survey(source: Source, dtypes: Mapping[str, pl.DataType]) -> tuple[dict[str, int], dict[str, pl.Series]]:
    """One pass over the rows: rows per split, vocabularies, and a refusal of values that cannot be trained on."""
    rows, label = source.rows, pl.col(source.label)
    bad = {source.label: (label.is_null() | ~label.is_in([0, 1]), "must be 0 or 1")}
    for column in source.dense:
        value = pl.col(column).cast(pl.Float32)
        bad[column] = (value.is_null() | ~value.is_finite(), "must be a finite number; fill or drop the row")
    for f in source.fields:
        if not f.has_vocabulary and dtypes[f.name] not in (pl.String, pl.List(pl.String)):
            end = 2**63 if f.ids == "raw" else f.ids

            def outside(value: pl.Expr, end: int = int(end)) -> pl.Expr:
                return value.is_null() | (value < 0) | (value > end - 1)

            column = pl.col(f.name)
            wrong = column.list.eval(outside(pl.element())).list.any() if f.multi_hot else outside(column)
            bad[f.name] = (wrong.fill_null(False), f"must be an id, 0 <= id < {end}")
    queries = [
        rows.group_by(SPLIT).agg(pl.len(), *(wrong.sum().alias(f"bad {name}") for name, (wrong, _) in bad.items()))
    ]
    fields = [f for f in source.fields if f.has_vocabulary]
    for f in fields:
        seen = rows.filter(pl.col(SPLIT) == 0) if f.ids == "train" else rows
        values = seen.select(f.name)
        if f.multi_hot:
            values = values.explode(f.name, empty_as_null=False, keep_nulls=False).drop_nulls()
        counts = values.group_by(as_strings(pl.col(f.name)).alias("value")).len()
        queries.append(counts.filter(pl.col("len") >= f.min_count).select("value"))
    overview, *values = pl.collect_all(queries, engine="streaming")
    for name, (wrong, rule) in bad.items():
        if overview[f"bad {name}"].sum():
            row = (
                rows.with_row_index("row").filter(wrong).select("row", name).head(1).collect(engine="streaming").row(0)
            )
            raise DataError(f"column {name!r}, row {row[0]} (counted from 0): {row[1]!r} {rule}")
    counted = dict(overview.select(SPLIT, "len").iter_rows())
    num_rows = {split: counted.get(SPLITS.index(split), 0) for split in source.splits}
    for split, number in num_rows.items():
        if not number:
            raise DataError(f"split {split!r} is empty: {sum(num_rows.values())} rows in all; give more rows")
    return num_rows, {f.name: _sorted(v["value"], dtypes[f.name]) for f, v in zip(fields, values, strict=True)}


def _sorted(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Vocabulary in the order of the values: of numbers, not of their digits; a missing value first."""
    inner = dtype.inner if isinstance(dtype, pl.List) else dtype
    key = values.cast(inner, strict=False) if inner.is_integer() else values  # type: ignore[arg-type]
    return values.to_frame("value").with_columns(key=key).sort("key", nulls_last=False)["value"]


def _progress(name: str) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
