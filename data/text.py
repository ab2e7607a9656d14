"""Delimited text, read lazily and checked line by line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from data.schema import DataError

_LINE = "line_number"


def scan_delimited(
    path: Path, separator: str, schema: Mapping[str, pl.DataType | type[pl.DataType]], *, header: bool = False
) -> pl.LazyFrame:
    """Lazy rows of a text file without quoting; an empty field is null, in a column of strings the empty string.

    Args:
        path: the file.
        separator: one or more characters.
        schema: the columns, in the order of the fields, with their types.
        header: the first line must hold the column names.

    Raises:
        DataError: no such file, another header; while rows are read: a line with another number of fields or a field
            that is not of its type, with the file's name and the line's number.
    """
    if not path.is_file():
        raise DataError(f"no file {path}")
    if header:
        with path.open(encoding="utf-8") as file:
            names = file.readline().rstrip("\r\n").split(separator)
        if names != list(schema):
            raise DataError(f"{path}:1: the header is {separator.join(names)!r}, not {separator.join(schema)!r}")
    lines = pl.scan_lines(path, name="line", row_index_name=_LINE, row_index_offset=1)
    if header:
        lines = lines.filter(pl.col(_LINE) > 1)

    def parse(lines: pl.DataFrame) -> pl.DataFrame:
        line = pl.col("line").str.strip_chars_end("\r")
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
    """Number of lines after the header."""
    if not path.is_file():
        raise DataError(f"no file {path}")
    return pl.scan_lines(path).select(pl.len()).collect(engine="streaming").item() - header
