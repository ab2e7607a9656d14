"""The writer of encoded Arrow files, from raw rows.

The files are Arrow IPC, not parquet: a batch is then a gather from mapped memory. Decoding 16,384 rows of each parquet
column would take longer than all other work of the loader.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from data.ids import hashed
from data.schema import Schema
from data.source import Source
from data.splits import SPLIT, SPLITS
from data.survey import check_columns, survey
from embcomp.manifest import checksums, files_below, write_sealed

FORMAT = 5  # raise it when encoded files change
CHUNK_ROWS = 1 << 14


def encode(source: Source, folder: Path, name: str) -> None:
    """Check, encode and write all rows of a source into a new folder, with progress bars on a terminal.

    Raises:
        DataError: rows cannot be trained on.
    """
    folder.mkdir(parents=True)
    dtypes = check_columns(source)
    with _progress() as progress:
        task = progress.add_task(f"{name}: reading values", total=None)
        rows, vocabularies = survey(source, dtypes)
        progress.update(task, description=f"{name}: encoding", total=sum(rows.values()))
        encoded = source.rows.select(
            SPLIT,
            pl.col(source.label).cast(pl.Float32),
            *(f.encode(dtypes[f.name], vocabularies.get(f.name)).alias(f.name) for f in source.fields),
            *(pl.col(column).cast(pl.Float32) for column in source.dense),
            *(_carry(column, dtypes[column], column == source.group) for column in source.carried),
        )
        writers = {split: _Writer(folder / f"{split}.arrow") for split in source.splits}
        for batch in encoded.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True, engine="streaming"):
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
    (folder / "vocabulary").mkdir()
    for feature, values in vocabularies.items():
        values.to_frame("value").write_parquet(folder / "vocabulary" / f"{schema.place(feature)}.parquet")
    (folder / "content").mkdir()
    for feature, vectors in source.content.items():
        np.save(folder / "content" / f"{schema.place(feature)}.npy", vectors)
    if source.truth:
        np.savez(folder / "truth.npz", **source.truth)  # pyright: ignore[reportArgumentType] (older numpy has no allow_pickle)
    facts = {"format": FORMAT, "name": name, "schema": schema.to_dict(), "rows": rows}
    write_sealed(folder / "meta.json", {**facts, "files": checksums(folder, files_below(folder))})


def _carry(column: str, dtype: pl.DataType, is_group: bool) -> pl.Expr:
    """Cast to bool, int64, or float32 for numbers that are not whole; group columns are never rounded."""
    if dtype == pl.Boolean:
        return pl.col(column)
    if dtype in (pl.Date, pl.Datetime):
        return pl.col(column).dt.epoch("us")
    if dtype.is_integer() or (dtype.is_numeric() and is_group):
        return pl.col(column).cast(pl.Int64)
    return pl.col(column).cast(pl.Float32) if dtype.is_numeric() else hashed(pl.col(column))


class _Writer:
    """A writer of frames as record batches of CHUNK_ROWS rows; the last batch may be smaller."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._frames: list[pl.DataFrame] = []
        self._rows = 0
        self._file: pa.RecordBatchFileWriter | None = None

    def add(self, frame: pl.DataFrame) -> None:
        self._frames.append(frame)
        self._rows += len(frame)
        if self._rows >= CHUNK_ROWS:
            whole = pl.concat(self._frames)
            self._rows %= CHUNK_ROWS
            full = len(whole) - self._rows
            self._write(whole[:full])
            self._frames = [whole[full:]]

    def close(self) -> None:
        if self._rows:
            self._write(pl.concat(self._frames))
        if self._file:
            self._file.close()

    def _write(self, frame: pl.DataFrame) -> None:
        table = frame.to_arrow()
        if self._file is None:
            self._file = pa.ipc.new_file(self._path, table.schema)
        self._file.write_table(table.combine_chunks(), max_chunksize=CHUNK_ROWS)


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
