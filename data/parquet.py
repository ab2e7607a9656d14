"""Any parquet files, with a schema that the user gives as a dict or a TOML file.

    label = "clicked"
    group = "user"                 # optional
    dense = ["price"]              # optional
    columns = ["hour"]             # optional, carried for evaluation
    split = "random"               # random | time (the order of the rows), where the files are not train, valid, test
    seed = 0

    [features.user]                # a vocabulary of the values in train, integers or strings
    min_count = 5
    [features.item]
    ids = "raw"                    # train (default) | all | raw | the number of ids where values are ids
    [features.tags]
    multi_hot = true               # the column holds lists

A folder with `train.parquet`, `valid.parquet` and `test.parquet` keeps its splits; any other folder, or one file, is
read as a whole, in the order of the file names, and split 80/10/10.
"""

from __future__ import annotations

import tomllib
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import polars as pl

from data.ids import Field
from data.schema import DataError, known
from data.source import Source
from data.splits import SPLIT, SPLITS, with_split

_KEYS = {"label": str, "group": str, "dense": list, "columns": list, "split": str, "seed": int, "features": dict}
_FIELD_KEYS = {f.name for f in dataclass_fields(Field)} - {"name"}


def files(folder: Path) -> list[Path]:
    """The parquet files of a folder, or the one file."""
    if folder.is_dir():
        found = sorted(folder.glob("*.parquet"))
        if not found:
            raise DataError(f"{folder} holds no *.parquet file")
        return [path for path in found if path.stem in SPLITS] if _has_splits(found) else found
    return [folder]


def resolve(options: dict[str, Any]) -> dict[str, Any]:
    """The schema's content in the place of its file's name, and nothing that is not known."""
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
    paths = files(folder)
    if _has_splits(paths):
        by_name = {path.stem: path for path in paths}
        frames = [
            pl.scan_parquet(by_name[split]).with_columns(pl.lit(number, pl.UInt8).alias(SPLIT))
            for number, split in enumerate(SPLITS)
        ]
        rows = pl.concat(frames)
    else:
        rows = pl.scan_parquet(paths)
        number = rows.select(pl.len()).collect(engine="streaming").item()
        rows = with_split(rows, number, schema.get("split", "random"), schema.get("seed", 0))
    return Source(
        rows,
        tuple(Field(name, **field) for name, field in schema["features"].items()),
        label=schema["label"],
        dense=tuple(schema.get("dense", ())),
        group=schema.get("group"),
        columns=tuple(schema.get("columns", ())),
    )


def _has_splits(paths: list[Path]) -> bool:
    return {path.stem for path in paths} >= set(SPLITS)


def _checked(schema: Any) -> dict[str, Any]:
    _check("schema", schema, set(_KEYS))
    for key, value in schema.items():
        if type(value) is not _KEYS[key]:
            raise DataError(f"{key!r} in the schema must be of type {_KEYS[key].__name__}, not {value!r}")
    for key in ("label", "features"):
        if not schema.get(key):
            raise DataError(f"the schema has no {key!r}")
    for name, field in schema["features"].items():
        _check(f"features.{name}", field, _FIELD_KEYS)
    return schema


def _check(where: str, value: Any, allowed: set[str]) -> None:
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a table of settings, not {value!r}")
    for key in value:
        known(f"key in {where}", key, sorted(allowed))
