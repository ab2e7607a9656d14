"""Experiments read from result files, with their sections (a model on a data set) and rows (means over seeds)."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.errors import InputError
from experiments.runs.results import read_infeasible, read_results

# The first of these that a section has is drawn; lower is better for those that end in these words.
MAIN_METRICS = ("auc", "recall@20", "ndcg@20", "logloss", "ndcg@10")
_ORDER = ("auc", "gauc", "logloss", "ne")
LOWER_IS_BETTER = ("logloss", "ne")


@dataclass(frozen=True)
class Stat:
    """The mean and the sample standard deviation; the latter is 0 for a single value."""

    mean: float
    std: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Stat:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.std:.4f}" if self.count > 1 else f"{self.mean:.4f}"


@dataclass(frozen=True)
class Row:
    """A method at a budget.

    Attributes:
        label: the method and its options.
        budget: the budget of the configuration, in words; empty for none.
        nbytes: the bytes of tables and maps as they are served.
        training_nbytes: the bytes of tables and maps while they train.
        seconds: the seconds of training.
        epoch_seconds: the seconds of an epoch, validation included.
        config: the configuration of one of its runs.
        metrics: the metrics of the test split, by name without `test/`, over the seeds.
    """

    method: str
    label: str
    budget: str
    nbytes: int
    full_nbytes: int
    rows: int
    seeds: int
    seconds: float
    epoch_seconds: float
    config: dict[str, Any]
    metrics: dict[str, Stat]
    training_nbytes: int = 0

    @property
    def share(self) -> float:
        return self.nbytes / self.full_nbytes

    def score(self, metric: str | None) -> float:
        """Return the mean of a metric, with its sign such that larger is better; minus infinity if it is missing."""
        if metric is None or metric not in self.metrics:
            return -math.inf
        return self.metrics[metric].mean * (-1 if metric.partition("/")[0] in LOWER_IS_BETTER else 1)


@dataclass(frozen=True)
class Section:
    """A model on a data set, in an experiment.

    Attributes:
        missing: the (label, budget, reason) of each combination that a method could not serve.
    """

    experiment: str
    dataset: str
    model: str
    rows: list[Row]
    missing: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.model} on {self.dataset}"

    @cached_property
    def poolings(self) -> bool:
        """True if the rows are poolings of behavior sequences, which differ in cost rather than in bytes."""
        return all("behavior" in row.config for row in self.rows)

    @cached_property
    def full(self) -> Row | None:
        """The full tables, with which others are compared; of several learning rates the best. None for poolings."""
        rows = [row for row in self.rows if row.method == "Full" and self.main in row.metrics]
        return None if self.poolings or not rows else max(rows, key=lambda row: row.score(self.main))

    @cached_property
    def groups(self) -> list[list[Row]]:
        """The rows that may be compared: the full tables, then those of each budget, largest first, best first."""
        by_budget: dict[str, list[Row]] = {}
        for row in self.rows:
            budget = "full" if row.method == "Full" and not self.poolings else row.budget
            by_budget.setdefault(budget, []).append(row)
        groups = [sorted(rows, key=lambda row: (-row.score(self.main), row.label)) for rows in by_budget.values()]
        return sorted(
            groups, key=lambda rows: -max(row.nbytes + (rows is by_budget.get("full")) * 2**62 for row in rows)
        )

    @cached_property
    def metrics(self) -> list[str]:
        """The names of metrics of all test rows, the main one first."""
        names = {name for row in self.rows for name in row.metrics if "/" not in name}
        first = next((name for name in MAIN_METRICS if name in names), None)
        order = {name: rank for rank, name in enumerate(_ORDER)}
        return sorted(names, key=lambda name: (name != first, order.get(name, len(order)), name))

    @cached_property
    def sliced(self) -> list[str]:
        """The names of metrics of slices, `<metric>/<slice>`; first-3 before first-10."""
        names = {name for row in self.rows for name in row.metrics if "/" in name and name[:5] != "rows/"}
        return sorted(
            names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
        )

    @cached_property
    def main(self) -> str | None:
        return next((name for name in MAIN_METRICS if name in self.metrics), None)


@dataclass(frozen=True)
class Experiment:
    """All sections of one experiment."""

    name: str
    sections: list[Section]


def collect(results: Path, experiments: Sequence[str] | None = None) -> list[Experiment]:
    """Read all experiments, or those named.

    Raises:
        InputError: there are no results, or none of a named experiment.
    """
    all_results = read_results(results)
    known = sorted({result["experiment"] for result in all_results})
    if not all_results:
        raise InputError(f"{results} holds no results; run an experiment first: python -m experiments run NAME")
    for name in experiments or ():
        if name not in known:
            raise InputError(f"no results of experiment {name!r} in {results}; there are {', '.join(known)}")
    groups: dict[tuple[str, str, str], dict[tuple[str, str], list[dict[str, Any]]]] = {}
    for result in all_results:
        if not experiments or result["experiment"] in experiments:
            section = groups.setdefault((result["experiment"], result["dataset"], result["model"]), {})
            section.setdefault((result["label"], str(result["budget"])), []).append(result)
    sections = {key: Section(*key, rows=[_row(runs) for runs in group.values()]) for key, group in groups.items()}
    # Rows are told apart by what they are, drawn and listed by how good they are.
    sections = {
        key: replace(unsorted, rows=[row for rows in unsorted.groups for row in rows])
        for key, unsorted in sections.items()
    }
    for entry in read_infeasible(results):
        key = (entry["experiment"], entry["dataset"], entry["model"])
        if key in sections:
            line = (entry["label"], _budget(entry["budget"]), entry["reason"])
            if line not in sections[key].missing:
                sections[key].missing.append(line)
    by_name: dict[str, list[Section]] = {}
    for section in sections.values():
        by_name.setdefault(section.experiment, []).append(section)
    return [Experiment(name, parts) for name, parts in by_name.items()]


def _row(runs: list[dict[str, Any]]) -> Row:
    first = runs[0]
    names = {name for run in runs for name in run["metrics"] if name.startswith("test/")}
    return Row(
        method=first["method"],
        label=first["label"],
        budget=_budget(first["budget"]),
        nbytes=first.get("served_nbytes", first["nbytes"]),
        training_nbytes=first.get("training_nbytes", first["nbytes"]),
        full_nbytes=first["full_nbytes"],
        rows=first["rows"],
        seeds=len(runs),
        seconds=statistics.fmean(run["seconds"] for run in runs),
        epoch_seconds=statistics.fmean(run["seconds"] / (run.get("epochs") or 1) for run in runs),
        config=first["config"],
        metrics={
            name.removeprefix("test/"): Stat.of([run["metrics"][name] for run in runs if name in run["metrics"]])
            for name in sorted(names)
        },
    )


def _budget(budget: dict[str, Any]) -> str:
    said = {"share": lambda value: f"{value:.4g} of the bytes", "nbytes": lambda value: f"{value:,} bytes"}
    return ", ".join(said.get(kind, lambda value: f"{value:,} rows")(value) for kind, value in budget.items())
