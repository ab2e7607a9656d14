"""A reader of delimited text, which is lazy and checks every line."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import polars as pl

from data.schema import DataError

_LINE = "line_number"
_MARK = "\ufeff"


def scan_delimited(
    path: Path, separator: str, schema: Mapping[str, pl.DataType | type[pl.DataType]], *, header: bool = False
) -> pl.LazyFrame:
    """Scan a text file without quoting, lazily; an empty field is null, in a column of strings the empty string.

    Args:
        path: the file, in UTF-8; it may be gzipped, and begin with a byte order mark.
        separator: one or more characters.
        schema: the columns, in the order of the fields, with their types.
        header: True if the first line must hold the column names.

    Raises:
        DataError: the file does not exist, or has another encoding or header. While rows are read: a line has another
            number of fields, or a field is not of its type; the error names the file and the line.
    """
    if not path.is_file():
        raise DataError(f"no file {path}")
    first, marked = _first_line(path)
    if header:
        names = first.split(separator)
        if names != list(schema):
            raise DataError(f"{path}:1: the header is {separator.join(names)!r}, not {separator.join(schema)!r}")
    lines = pl.scan_lines(path, name="line", row_index_name=_LINE, row_index_offset=1)
    if header:
        lines = lines.filter(pl.col(_LINE) > 1)

    def parse(lines: pl.DataFrame) -> pl.DataFrame:
        line = pl.col("line").str.strip_chars_end("\r")
        if marked:
            line = line.str.strip_prefix(_MARK)
        fields = lines.select(
            _LINE,
            line.str.count_matches(separator, literal=True).alias("separators"),
            line.str.split_exact(separator, len(schema) - 1).struct.rename_fields(list(schema)).alias("fields"),
        )
        wrong = fields.filter(pl.col("separators") != len(schema) - 1).drop("fields")
        for number, separators in wrong.head(1).rows():
            raise DataError(f"{path}:{number}: {separators + 1} fields, not {len(schema)}; correct or remove the line")
        raw = fields.unnest("fields")
        typed = raw.select(pl.col(name).cast(dtype, strict=False) for name, dtype in schema.items())
        for name, dtype in schema.items():
            if dtype != pl.String and typed[name].has_nulls():
                bad = raw.filter(typed[name].is_null() & (raw[name] != "")).select(_LINE, name)
                for number, value in bad.head(1).rows():
                    raise DataError(f"{path}:{number}: {name} is {value!r}, not {dtype}; correct or remove the line")
        return typed

    return lines.map_batches(parse, schema=dict(schema), streamable=True, validate_output_schema=False)


def count_rows(path: Path, *, header: bool = False) -> int:
    """Return the number of lines after the header."""
    if not path.is_file():
        raise DataError(f"no file {path}")
    return pl.scan_lines(path).select(pl.len()).collect(engine="streaming").item() - header


def text_file(folder: Path, name: str) -> Path:
    """Return a text file of a folder, or its gzipped form, `train.csv.gz` or, as on Kaggle, `train.gz`."""
    path = folder / name
    packed = (path.with_name(f"{name}.gz"), path.with_suffix(".gz"))
    return next((other for other in (path, *packed) if other.is_file()), path)


def check_utf8(path: Path) -> None:
    """Raise DataError with the first line that is not UTF-8."""
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: not UTF-8 (byte 0x{line[error.start]:02x}); convert the file, for example by "
                    "`iconv -f latin1 -t utf-8`"
                ) from None


def _first_line(path: Path) -> tuple[str, bool]:
    """Return the first line, and whether a byte order mark stood before it."""
    with _opened(path) as file:
        raw = file.readline(1 << 20)
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is UTF-16; convert the file by `iconv -f utf-16 -t utf-8`")
    if raw[:4] == b"PK\x03\x04":
        raise DataError(f"{path} is a zip archive; unpack it")
    try:
        line = raw.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        check_utf8(path)
        raise
    return line.removeprefix(_MARK), line.startswith(_MARK)


def _opened(path: Path) -> IO[bytes]:
    """Return the bytes of a file, gzipped or not, whatever its name."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")  # type: ignore[return-value]
