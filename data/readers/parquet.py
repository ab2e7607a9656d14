"""The reader of any parquet files, with a schema that the user gives as a dict or a TOML file.

    label = "clicked"
    group = "user"                 # optional
    dense = ["price"]              # optional; a fixed-size list of n numbers gives n columns
    columns = ["shown_at"]         # optional, carried for evaluation; dates as microseconds since 1970
    split = "random"               # random | time (the order of the rows), where the files are not train, valid, test
    seed = 0

    [features.user]                # a vocabulary of the values in train, integers or strings
    min_count = 5
    order = "count"                # numbered by the occurrences in train; value (default), in their own order
    [features.item]
    ids = "raw"                    # train (default) | all | raw | the number of ids where values are ids
    [features.tags]
    multi_hot = true               # the column holds lists
    [features.hour]                # a part of a date: minute, hour, weekday, is_weekend, day, month or year
    of = "shown_at"
    part = "hour"

    [dense.age]                    # in the place of a list of names, a table for each dense column:
    fill = 0.0                     # what stands for missing values and NaN, here and in features; `of` and `part` too

A folder with `train.parquet`, `valid.parquet` and `test.parquet` keeps its splits, which may be folders of files; any
other folder, glob, or one file, is read as a whole, in the order of the file names, and split 80/10/10.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import polars as pl

from data.ids import Field
from data.rules import KEYS, PARTS, Rule
from data.schema import DataError, known
from data.source import Source
from data.splits import SPLIT, SPLITS, with_split
from data.values import no_settings
from embcomp.columns import MissingColumn, parquet_files, scan

_KEYS = {"label": str, "group": str, "dense": (list, dict), "columns": list, "split": str, "seed": int}
_KEYS["features"] = dict
_FIELD_KEYS = {f.name for f in dataclass_fields(Field)} - {"name"}


def files(folder: Path) -> list[Path]:
    """Return the parquet files of a folder or a glob, or the one file."""
    return [path for paths in _splits(folder).values() for path in paths]


def resolve(options: dict[str, Any]) -> dict[str, Any]:
    """Replace the name of the schema's file by its content. Raise DataError for unknown keys."""
    schema = options["schema"]
    if not isinstance(schema, (str, Path)):
        return {"schema": _checked(schema)}
    try:
        return {"schema": _checked(tomllib.loads(Path(schema).read_text(encoding="utf-8")))}
    except FileNotFoundError:
        raise DataError(f"no schema file {schema}") from None
    except (OSError, ValueError) as error:  # a folder, not UTF-8, not TOML, no schema
        raise DataError(f"schema file {schema}: {getattr(error, 'strerror', None) or error}") from None


def read(folder: Path, *, schema: dict[str, Any]) -> Source:
    splits = _splits(folder)
    features = {name: Rule.read(f"features.{name}", name, settings) for name, settings in schema["features"].items()}
    dense = [Rule.read(f"dense.{name}", name, settings) for name, settings in _dense(schema).items()]
    carried = [name for name in (schema.get("group"), *schema.get("columns", ())) if name and name not in features]
    plain = list(dict.fromkeys([schema["label"], *carried]))
    rules = [*features.values(), *dense]
    try:
        rows = scan(files(folder), [*plain, *(rule.of for rule in rules)])
    except MissingColumn as error:
        known("column", error.column, error.columns)
        raise
    dtypes = rows.collect_schema()
    dense_columns = [column for rule in dense for column in rule.dense(dtypes[rule.of])]
    made = [*(rule.column(dtypes[rule.of]) for rule in features.values()), *dense_columns]
    if len(splits) > 1:
        frames = [scan(paths, dtypes).cast(dtypes) for paths in splits.values()]
        rows = pl.concat([frame.with_columns(pl.lit(i, pl.UInt8).alias(SPLIT)) for i, frame in enumerate(frames)])
    else:
        number = rows.select(pl.len()).collect(engine="streaming").item()
        rows = with_split(rows, number, schema.get("split", "random"), schema.get("seed", 0))
    names = [column.meta.output_name() for column in dense_columns]
    _check_once([*plain, *features, *names])
    return Source(
        rows.select(SPLIT, *plain, *made),
        tuple(_field(name, settings) for name, settings in schema["features"].items()),
        label=schema["label"],
        dense=tuple(names),
        group=schema.get("group"),
        columns=tuple(schema.get("columns", ())),
    )


def _splits(folder: Path) -> dict[str, list[Path]]:
    """Return the files by split, if there is a file or folder for each of SPLITS; else all files under ""."""
    if folder.is_dir():
        for end in (".parquet", ""):
            paths = {split: folder / f"{split}{end}" for split in SPLITS}
            if all(path.exists() for path in paths.values()):
                return {split: parquet_files(path) for split, path in paths.items()}
    return {"": parquet_files(folder)}


def _dense(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of each dense column."""
    dense = schema.get("dense", ())
    if isinstance(dense, dict):
        return dense
    _check_once(dense)
    return {name: {} for name in dense}


def _field(name: str, settings: dict[str, Any]) -> Field:
    ids = {key: value for key, value in settings.items() if key not in KEYS}
    size = PARTS[settings["part"]][0] if "part" in settings else None
    return Field(name, **({"ids": size, **ids} if size and "min_count" not in ids else ids))


def _check_once(names: Any) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise DataError(f"column {name!r} has more than one use; give each column one")


def _checked(schema: Any) -> dict[str, Any]:
    _check("schema", schema, set(_KEYS))
    for problem in no_settings(schema):
        raise DataError(problem)
    for key, value in schema.items():
        kinds = _KEYS[key] if isinstance(_KEYS[key], tuple) else (_KEYS[key],)
        if type(value) not in kinds:
            raise DataError(f"{key!r} in the schema must be of type {kinds[0].__name__}, not {value!r}")
    for key in ("label", "features"):
        if not schema.get(key):
            raise DataError(f"the schema has no {key!r}")
    for where, settings, allowed in _tables(schema):
        _check(where, settings, allowed)
    for key in ("dense", "columns"):
        for name in schema.get(key, ()):
            if not isinstance(name, str):
                raise DataError(f"{key!r} in the schema must hold names of columns, not {name!r}")
    return schema


def _tables(schema: dict[str, Any]) -> Iterator[tuple[str, Any, set[str]]]:
    for name, settings in schema["features"].items():
        yield f"features.{name}", settings, {*_FIELD_KEYS, *KEYS}
    if isinstance(schema.get("dense"), dict):
        for name, settings in schema["dense"].items():
            yield f"dense.{name}", settings, set(KEYS)


def _check(where: str, value: Any, allowed: set[str]) -> None:
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a table of settings, not {value!r}")
    for key in value:
        known(f"key in {where}", key, sorted(allowed))
