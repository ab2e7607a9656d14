"""Results as one table, a row for each run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from embcomp.files import write
from experiments.errors import InputError
from experiments.runs.results import read_results

_HEAD = ("experiment", "dataset", "model", "method", "label", "seed", "rows", "nbytes", "full_nbytes")
_TAIL = ("epochs", "best_epoch", "seconds", "peak_memory", "key")


def table(results: Path, experiments: Sequence[str] | None = None) -> pl.DataFrame:
    """Return all results, or those of some experiments.

    Columns are the keys of the result files, `budget_kind`, `budget`, `share`, `training_nbytes`, `served_nbytes`, and
    each metric under its name. A value is null if a run has none.

    Raises:
        InputError: there are no results, or none of a named experiment.
    """
    files = [values for values in read_results(results) if "metrics" in values and "nbytes" in values]
    known = {values["experiment"] for values in files}
    for name in experiments or ():
        if name not in known:
            raise InputError(f"no results of experiment {name!r} in {results}; there are {', '.join(sorted(known))}")
    rows = [_row(values) for values in files if not experiments or values["experiment"] in experiments]
    if not rows:
        raise InputError(f"{results} holds no results; run an experiment first: python -m experiments run NAME")
    columns = dict.fromkeys(name for row in rows for name in row if "/" not in name)
    metrics = sorted({name for row in rows for name in row if "/" in name})
    return pl.DataFrame(
        [{name: row.get(name) for name in (*columns, *metrics)} for row in rows], infer_schema_length=None
    )


def save(frame: pl.DataFrame, path: Path) -> None:
    """Write a table as CSV or parquet, by the ending of the name, whole or not at all.

    Raises:
        InputError: the name has another ending.
    """
    kinds = {".csv": frame.write_csv, ".parquet": frame.write_parquet}
    if path.suffix not in kinds:
        raise InputError(f"{path}: results are written as .csv or .parquet")
    write(path, kinds[path.suffix])


def _row(values: dict[str, Any]) -> dict[str, Any]:
    (kind, budget), *_ = [*values["budget"].items(), (None, None)]
    nbytes = values["nbytes"]
    return {
        **{name: values.get(name) for name in _HEAD},
        "budget_kind": kind,
        "budget": None if budget is None else float(budget),
        "share": nbytes / values["full_nbytes"],
        "training_nbytes": values.get("training_nbytes", nbytes),
        "served_nbytes": values.get("served_nbytes", nbytes),
        **{name: values.get(name) for name in _TAIL},
        **{f"version_{name}": version for name, version in values.get("versions", {}).items()},
        **{name: float(value) for name, value in values["metrics"].items()},
    }
