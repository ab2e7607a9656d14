"""The benches. Each `experiments/bench/<name>.py` defines `run(console, **options) -> list[BenchRow]`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.errors import InputError

if TYPE_CHECKING:  # benches of torch alone need no other package
    from rich.console import Console


@dataclass(frozen=True)
class BenchRow:
    """The time of `name` as a multiple of that of `against`: median and spread of paired rounds."""

    name: str
    ratio: float
    low: float
    high: float
    against: str


Bench = Callable[..., list[BenchRow]]


def names() -> list[str]:
    """Return the modules of this package that define `run`, even if a package that one needs is missing here."""
    return [module.name for module in pkgutil.iter_modules(__path__) if _may_run(module.name)]


def find(name: str) -> Bench:
    """Return the `run` of a bench. Raise InputError if there is no bench of that name."""
    known = {module.name for module in pkgutil.iter_modules(__path__)}
    run = _run_of(name) if name in known else None
    if run is None:
        raise InputError(f"no bench {name!r}: there are {', '.join(names()) or 'none'}")
    return run


def _may_run(name: str) -> bool:
    try:
        return _run_of(name) is not None
    except ModuleNotFoundError:
        return True


def _run_of(name: str) -> Bench | None:
    return getattr(importlib.import_module(f"{__name__}.{name}"), "run", None)


def check_options(name: str, options: dict[str, object]) -> None:
    """Raise InputError for an option that the bench does not take."""
    parameters = inspect.signature(find(name)).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)][1:]
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return
    for option in options:
        if option not in known:
            raise InputError(f"bench {name!r} takes no option {option!r}: it takes {', '.join(known) or 'none'}")


def show(console: Console, title: str, rows: list[BenchRow]) -> None:
    """Print rows as a table."""
    from rich.table import Table

    table = Table(title=title)
    for column in ("name", "against"):
        table.add_column(column)
    for column in ("ratio", "low", "high"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row.name, row.against, *(f"{value:.2f}x" for value in (row.ratio, row.low, row.high)))
    console.print(table)
