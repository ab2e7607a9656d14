"""The parts that studies share: the results of cases, the test if they are current, and a page with a table.

A study writes a file for each case, `<results>/<study>/<group>/<case>.json`, or one file with a row for each case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.config import RunConfig
from experiments.files import write_json
from experiments.markdown import table, write_page
from experiments.processes.machine import hardware, versions
from experiments.runs.results import is_of, peek, proof

__all__ = ["current_rows", "held", "is_current", "read", "stamped", "table", "write", "write_page", "write_rows"]

Case = RunConfig | Mapping[str, Any]
"""The case of a result file: a run, or settings as JSON values."""


def held(file: Path) -> dict[str, Any]:
    """Return the content of a result file; empty if the file does not exist or cannot be read."""
    values = peek(file)
    return values if isinstance(values, dict) else {}


def is_current(file: Path, case: Case) -> bool:
    """Return whether a result file is of this case."""
    values = held(file)
    return is_of(values, case) if isinstance(case, RunConfig) else values.get("config") == dict(case)


def stamped(values: Mapping[str, Any], device: torch.device | None = None) -> dict[str, Any]:
    """Return results together with the versions and the hardware that they were measured with."""
    return {**values, "versions": versions(), "hardware": hardware(device or torch.device("cpu"))}


def write(file: Path, values: Mapping[str, Any], case: Case) -> None:
    """Write the results of a case, with the keys by which the file shows to which case it belongs."""
    whose = {"config": case.to_dict(), **proof(case)} if isinstance(case, RunConfig) else {"config": dict(case)}
    write_json(file, {**stamped(values), **whose})


def read(results: Path, study: str) -> Iterator[dict[str, Any]]:
    """Read all result files of a study, in the order of their names."""
    return map(held, sorted((results / study).glob("*/*.json")))


def current_rows(file: Path, cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
    """Return the row of each case in a file of rows, or None if it has none: a row holds all settings of its case.

    Args:
        file: the file; one that does not exist or cannot be read has no rows.
        cases: the settings of each case by name: texts and numbers.
    """
    rows = peek(file)
    if not cases or not isinstance(rows, list):
        return [None] * len(cases)
    names = list(cases[0])
    by_case = {tuple(row.get(name) for name in names): row for row in rows}
    return [by_case.get(tuple(case[name] for name in names)) for case in cases]


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a file of rows, each of them `stamped` when it was measured."""
    write_json(file, list(rows))
