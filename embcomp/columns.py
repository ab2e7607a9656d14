"""The one reader of parquet data: a single file, the daily files of a log, or a folder that Spark wrote."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

_MAGIC = (b"PAR1", b"PARE")


class ColumnsError(ValueError):
    """The error for files that cannot be read, alone or together; its text names them."""


class MissingColumn(ColumnsError):
    """The error for a column that no file has.

    Attributes:
        column: the name of the column.
        columns: the names of the columns that exist.
    """

    def __init__(self, column: str, columns: Sequence[str]) -> None:
        super().__init__(f"no column {column!r}; there are {', '.join(columns)}")
        self.column, self.columns = column, columns


def parquet_files(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Find the parquet files of a path, a folder, a glob, or several of these.

    Folders are searched recursively, in the order of the names. Names that begin with "." or "_" are skipped: Spark's
    `.crc` files, `_SUCCESS` and `_temporary` hold no data.

    Raises:
        FileNotFoundError: a path does not exist, or a glob or a folder has no parquet files.
        ColumnsError: a file is cut short, compressed as a whole, or not a parquet file.
    """
    files: list[Path] = []
    for path in _parts(source):
        files += _expanded(path)
    for path in files:
        check_parquet(path)
    return files


def check_parquet(path: Path) -> None:
    """Refuse a file that does not begin and end as parquet files do, and say what kind of file it seems to be."""
    with path.open("rb") as file:
        head = file.read(4)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 4, 0))
        tail = file.read(4)
    if size > 8 and head in _MAGIC and tail in _MAGIC:
        return
    if not size:
        said = "is empty; write it again, or leave it out"
    elif head in _MAGIC:
        said = "is cut short or damaged: the end of a parquet file is missing; write it again, or leave it out"
    elif head[:2] == b"\x1f\x8b":
        said = "is gzipped; unpack it (gunzip)"
    elif head == b"PK\x03\x04":
        said = "is a zip archive; unpack it"
    else:
        said = "is not a parquet file; polars converts others: pl.scan_csv(path).sink_parquet('rows.parquet')"
    raise ColumnsError(f"{path} {said}")


def scan(paths: Sequence[Path], columns: Iterable[str]) -> pl.LazyFrame:
    """Return the rows of these columns as a polars LazyFrame, file after file in the given order.

    The files may hold further columns. A column may have several widths: int32 and int64 become int64, integers and
    floats become float64.

    Raises:
        MissingColumn: no file has the column.
        ColumnsError: only some files have a column, its types do not go together, or a file is damaged.
    """
    import polars as pl

    columns = list(dict.fromkeys(columns))
    for name in columns:
        if name == "*" or (name[:1] == "^" and name[-1:] == "$"):
            raise ColumnsError(f"{paths[0]}: column {name!r} has a name that polars reads as a pattern; rename it")
    with readable(paths):
        scans = [(path, _scan_file(path)) for path in paths]
        schemas = [(path, dict(rows.collect_schema())) for path, rows in scans]
    common = {name: _common_dtype(name, schemas) for name in columns}
    frames = []
    # One scan for files of one schema, which polars reads side by side.
    for _, same in groupby(zip(paths, schemas, strict=True), key=lambda pair: list(pair[1][1].items())):
        files, hive = [path for path, _ in same], any(map(_is_hive, paths))
        rows = pl.scan_parquet(files, hive_partitioning=hive, glob=False)
        frames.append(rows.select(pl.col(name).cast(dtype) for name, dtype in common.items()))
    return frames[0] if len(frames) == 1 else pl.concat(frames)


@contextmanager
def readable(paths: Sequence[Path]) -> Iterator[None]:
    """Turn polars' read errors into a ColumnsError that names the file."""
    from polars.exceptions import PolarsError

    try:
        yield
    except PolarsError as error:
        reason = str(error).splitlines()[0]
        bad = paths[0] if len(paths) == 1 else next(filter(is_damaged, paths), None)
        where = str(bad) if bad else f"{paths[0]} and {len(paths) - 1} others"
        raise ColumnsError(f"{where} cannot be read: {reason}; write it again, or leave it out") from error


def _parts(source: Any) -> list[Path]:
    several = [source] if isinstance(source, str | os.PathLike) else list(source)
    return [Path(path) for path in several]


def _expanded(path: Path) -> list[Path]:
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*.parquet") if file.is_file() and _is_data(file, path))
        if not inside:
            raise FileNotFoundError(f"{path} holds no *.parquet file")
        return inside
    if path.exists():
        return [path]
    if glob.has_magic(str(path)):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        matches = [match for match in matches if match.name[:1] not in "._"]
        # A pattern such as `log/*` also matches what lies beside the data.
        wanted = [match for match in matches if match.suffix == ".parquet" or match.is_dir()] or matches
        if wanted:
            return [file for match in wanted for file in _expanded(match)]
        raise FileNotFoundError(f"{path}: no file has such a name")
    raise FileNotFoundError(f"{path}: no such file")


def _is_data(file: Path, folder: Path) -> bool:
    return not any(part[0] in "._" for part in file.relative_to(folder).parts)


def _is_hive(path: Path) -> bool:
    """Return whether folder names hold columns, as in `day=2026-11-01/part-0.parquet`."""
    return any("=" in part for part in path.parts[:-1])


def _scan_file(path: Path) -> pl.LazyFrame:
    import polars as pl

    return pl.scan_parquet(path, hive_partitioning=_is_hive(path), glob=False)


def is_damaged(path: Path) -> bool:
    """Return whether the rows of a parquet file cannot be read. This reads all of them."""
    from polars.exceptions import PolarsError

    try:
        for _ in _scan_file(path).collect_batches(engine="streaming"):
            pass
    except PolarsError:
        return True
    return False


def _common_dtype(name: str, schemas: Sequence[tuple[Path, dict[str, Any]]]) -> Any:
    known = [(path, schema[name]) for path, schema in schemas if name in schema]
    if not known:
        raise MissingColumn(name, list(dict.fromkeys(column for _, schema in schemas for column in schema)))
    if len(known) < len(schemas):
        lacking = next(path for path, schema in schemas if name not in schema)
        raise ColumnsError(f"{lacking} has no column {name!r}, which {known[0][0]} has; add it, or leave the file out")
    first, dtype = known[0]
    for path, other in known[1:]:
        both = _wider(dtype, other)
        if both is None:
            raise ColumnsError(f"column {name!r} is {dtype} in {first} and {other} in {path}; write it with one type")
        dtype = both
    return dtype


def _wider(one: Any, other: Any) -> Any:
    """The type that holds the values of both types; None if there is none."""
    import polars as pl

    if one == other or other == pl.Null:
        return one
    if one == pl.Null:
        return other
    text = (pl.String, pl.Categorical, pl.Enum)
    if one in text and other in text:
        return pl.String()
    lists = (pl.List, pl.Array)
    if isinstance(one, lists) and isinstance(other, lists):
        inner = _wider(one.inner, other.inner)
        if inner is None:
            return None
        same = isinstance(one, pl.Array) and isinstance(other, pl.Array) and one.size == other.size
        return pl.Array(inner, one.size) if same else pl.List(inner)  # type: ignore[union-attr]
    if one.is_temporal() and other.is_temporal():
        return _wider_time(one, other)
    numbers = [dtype for dtype in (one, other) if dtype.is_numeric() or dtype == pl.Boolean]
    if len(numbers) < 2:
        return None
    if not any(dtype.is_float() or dtype.is_decimal() for dtype in numbers):
        narrow = sorted(numbers, key=_bits)
        if {narrow[0].is_signed_integer(), narrow[1].is_signed_integer()} == {
            True,
            False,
        } and pl.Boolean not in numbers:
            return pl.Int64()  # an unsigned value above 2^63 is refused when it is read
        return narrow[-1]
    return pl.Float64()


def _wider_time(one: Any, other: Any) -> Any:
    import polars as pl

    units = ("ms", "us", "ns")
    dates = [dtype for dtype in (one, other) if dtype == pl.Datetime]
    if not all(dtype in (pl.Datetime, pl.Date) for dtype in (one, other)) or len({d.time_zone for d in dates}) > 1:
        return None
    unit = max((dtype.time_unit for dtype in dates), key=units.index)
    return pl.Datetime(unit, dates[0].time_zone)


def _bits(dtype: Any) -> int:
    import polars as pl

    if dtype == pl.Boolean:
        return 1
    return int("".join(filter(str.isdigit, str(dtype))))
