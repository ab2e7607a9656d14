"""The leaderboard: methods ranked by set-up and budget, in served bytes and in training bytes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import polars as pl

from experiments.errors import InputError
from experiments.load import CONFIGS, load
from experiments.report.collect import LOWER_IS_BETTER, MAIN_METRICS, Stat
from experiments.report.look_ups import times
from experiments.runs.results import named_results

SHARES = (0.5, 0.25, 0.1, 0.03, 0.01)
"""The budgets, as shares of the full tables' bytes; a method competes at the smallest that it keeps."""

TOLERANCE = 1.02
"""The tolerance of budgets: a method that takes 10.1 % competes at 10 %."""

FEWEST = 5
"""The least number of methods of a set-up that is listed."""

Count = Literal["served", "training"]


@dataclass(frozen=True)
class Entry:
    """A method at a budget.

    Attributes:
        setup: the model and the data, with a number if several experiments differ in their settings.
        count: the bytes that the budget counts.
        budget: the budget, as a share of the bytes of the full tables.
        rank: the place among the entries of the budget, from 1.
        best: True if no entry of the budget is better by more than one standard deviation of the best one.
        label: the method and its options.
        metric: the name of the metric of the test split.
        score: its mean over the seeds.
        spread: its standard deviation; 0 for one seed.
        to_full: the score less that of the full tables.
        seconds: the seconds of training, on the machine of the result.
        memory: the largest memory of the process, bytes.
        look_up: the time of a look-up at a tenth of the bytes, as a multiple of that of a full table, by `bench frame`;
            None for a method that it does not have.
        command: the command that reproduces the runs; empty for plans of `choose`, which have one of their own.
    """

    setup: str
    count: Count
    budget: float
    rank: int
    best: bool
    method: str
    label: str
    metric: str
    score: float
    spread: float
    seeds: int
    to_full: float
    served_nbytes: int
    training_nbytes: int
    full_nbytes: int
    seconds: float
    memory: int
    look_up: float | None
    experiment: str
    command: str


def leaderboard(results: Path) -> list[Entry]:
    """Return all entries, those of one set-up, count and budget together, the best first.

    Runs compete if they differ in nothing but the method and the seed. Set-ups without full tables, or with fewer than
    `FEWEST` methods, are left out.

    Raises:
        InputError: there are no results.
    """
    titles: dict[str, int] = {}
    entries: list[Entry] = []
    for runs in sorted(setups(results).values(), key=lambda runs: -len(runs)):
        first = runs[0][1]
        title = f"{first['model']} on {first['dataset']}"
        number = titles.get(title, 0) + 1
        found = list(entries_of(title + (f" ({number})" if number > 1 else ""), runs))
        if found and len({result["label"] for _, result in runs}) >= FEWEST:
            entries += found
            titles[title] = number
    look_ups = times(results)
    return [replace(entry, look_up=look_ups.get(entry.method)) for entry in entries]


Runs = list[tuple[str, dict[str, Any]]]
"""The results of a set-up, each with the name of its run."""


def setups(results: Path) -> dict[str, Runs]:
    """Return the results of each set-up, by `setup_of`.

    Raises:
        InputError: there are no results.
    """
    found: dict[str, Runs] = {}
    for name, result in named_results(results):
        if "config" in result and "full_nbytes" in result and result.get("metrics"):
            found.setdefault(setup_of(result["dataset"], result["model"], result["config"]), []).append((name, result))
    if not found:
        raise InputError(f"{results} holds no results; run an experiment first: python -m experiments run NAME")
    return found


def setup_of(dataset: str, model: str, config: Mapping[str, Any]) -> str:
    """Return the settings that competing runs have in common."""
    common = {k: v for k, v in config.items() if k not in ("experiment", "method", "seed", "slices")}
    return json.dumps([dataset, model, common], sort_keys=True)


def frame(entries: Sequence[Entry]) -> pl.DataFrame:
    """Return the entries as a table, a column for each of their fields."""
    return pl.DataFrame([asdict(entry) for entry in entries])


def entries_of(title: str, runs: Runs) -> Iterator[Entry]:
    """Yield the entries of one set-up, without the times of look-ups; none without full tables."""
    metric = next((m for m in MAIN_METRICS if runs and f"test/{m}" in runs[0][1]["metrics"]), None)
    trained = [result["metrics"][f"test/{metric}"] for _, result in runs if result["method"] == "Full" and metric]
    if metric is None or not trained:
        return
    full = Stat.of(trained).mean
    groups: dict[str, dict[int, tuple[str, dict[str, Any]]]] = {}
    for name, result in runs:
        if result["method"] != "Full":
            asked = {key: value for key, value in result["config"]["method"].items() if key not in ("label", "seeds")}
            settings = json.dumps([asked, result["budget"]], sort_keys=True)
            # Two experiments may have trained the same: one run for each seed counts.
            groups.setdefault(settings, {}).setdefault(result["seed"], (name, result))
    sign = -1 if metric in LOWER_IS_BETTER else 1
    counts: tuple[Count, ...] = ("served", "training")
    for count in counts:
        places: dict[float, list[Entry]] = {}
        for group in groups.values():
            entry = _entry(title, count, metric, list(group.values()), full)
            if entry is not None:
                places.setdefault(entry.budget, []).append(entry)
        for budget in sorted(places, reverse=True):
            order = sorted(places[budget], key=lambda entry: (-sign * entry.score, entry.label))
            floor = sign * order[0].score - order[0].spread
            for rank, entry in enumerate(order, 1):
                yield replace(entry, rank=rank, best=sign * entry.score >= floor)


def _entry(
    title: str, count: Count, metric: str, group: Sequence[tuple[str, dict[str, Any]]], full: float
) -> Entry | None:
    """Return a method at its budget, not yet ranked; None if it takes more than the largest."""
    names, runs = [name for name, _ in group], [result for _, result in group]
    first = runs[0]
    share = max(_nbytes(run, count) / run["full_nbytes"] for run in runs)
    budgets = [budget for budget in SHARES if share <= budget * TOLERANCE]
    if not budgets:
        return None
    score = Stat.of([run["metrics"][f"test/{metric}"] for run in runs])
    return Entry(
        setup=title,
        count=count,
        budget=min(budgets),
        rank=0,
        best=False,
        method=_method(first),
        label=first["label"],
        metric=metric,
        score=score.mean,
        spread=score.std,
        seeds=len(runs),
        to_full=score.mean - full,
        served_nbytes=max(_nbytes(run, "served") for run in runs),
        training_nbytes=max(_nbytes(run, "training") for run in runs),
        full_nbytes=first["full_nbytes"],
        seconds=math.fsum(run["seconds"] for run in runs) / len(runs),
        memory=max(run.get("peak_memory") or 0 for run in runs),
        look_up=None,
        experiment=first["experiment"],
        command=_chosen(first) if first["method"] == "choose" else _command(first["experiment"], names),
    )


def _nbytes(result: Mapping[str, Any], count: Count) -> int:
    """Return the bytes of one form; results of methods with a single form may hold one number."""
    return result.get(f"{count}_nbytes", result["nbytes"])


def _method(result: Mapping[str, Any]) -> str:
    """Return the name of a method, with those of the methods inside: LowBit(UnifiedEmbedding)."""
    names, config = [], result["config"]["method"]
    while isinstance(config, Mapping) and config.get("method"):
        names.append(str(config["method"]))
        config = (config.get("options") or config).get("of")
    return "(".join(names or [str(result["method"])]) + ")" * (len(names) - 1)


def _chosen(result: Mapping[str, Any]) -> str:
    """Return the command that plans and trains a choice of the planner again."""
    method, data = result["config"]["method"], result["config"]["data"]["name"]
    file = next((path.stem for path in sorted(CONFIGS.glob("choose-*.toml")) if load(path).data.name == data), "")
    options = method["options"]
    budget = f"{100 * method['share']:.4g}%" if "share" in method else str(method["nbytes"])
    return (
        f"python -m experiments choose {file} --nbytes {budget} --level {options['level']} --count {options['count']}"
    )


def _command(experiment: str, names: Sequence[str]) -> str:
    """Return the command that trains these runs again; empty if no configuration has them."""
    for file, known in _files().get(experiment, ()):
        if known.issuperset(names):
            pattern = re.sub(r"-seed\d+$", "-seed*", names[0])
            return f"python -m experiments run {file} --filter '{pattern}'"
    return ""


@cache
def _files() -> dict[str, list[tuple[str, frozenset[str]]]]:
    """Return the configurations of each experiment, and the names of their runs."""
    files: dict[str, list[tuple[str, frozenset[str]]]] = {}
    for path in sorted(CONFIGS.glob("*.toml")):
        experiment = load(path)
        names = frozenset(run.name for run in experiment.runs())
        files.setdefault(experiment.experiment, []).append((path.stem, names))
    return files
