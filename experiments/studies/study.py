"""The parts that studies share: a result file for each case, the test if it is current, and a page with a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.config import RunConfig
from experiments.files import write_json, write_text
from experiments.processes.machine import hardware, versions
from experiments.runs.results import is_of, peek, proof

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


def table(header: Sequence[str], align: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown.

    Args:
        header: the names of the columns.
        align: "l" or "r" for each column.
        rows: the cells.

    Example:
        >>> table(["name", "bytes"], "lr", [["full", "400"]])
        ['| name | bytes |', '|---|---:|', '| full | 400 |']
    """
    rules = "".join("---:|" if side == "r" else "---|" for side in align)
    return [_line(header), f"|{rules}", *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_page(folder: Path, study: str, lines: Iterable[str]) -> Path:
    """Write a page of the docs, `<folder>/<study>.md`, and return its path."""
    path = folder / f"{study}.md"
    write_text(path, "\n".join([f"# {study}", "", *lines]) + "\n")
    return path
