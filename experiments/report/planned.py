"""The page `planned.md`: choices of the planner against the best single method, budget by budget."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from data.readers import planted
from experiments.markdown import table, write_page

EXPERIMENTS = ("choose", "choose-planted")
PLANTED = "planted"  # the generated data, and its features without effect
SPLIT = "split by vocabulary"  # in the label of the single method that gives each table the same share of its rows
LEVELS = (1, 2, 3)
METRICS = ("auc", "recall@10", "recall@50")

_INTRODUCTION = """\
For each budget: the test metric after training from scratch with the methods that `embcomp.choose` names, at three
levels of information, and with the best single method for all tables, which was chosen in hindsight by the valid split
among all methods of the configuration that fit the budget. Means over seeds (their number in brackets, ± standard
deviation). Planning is the time of the plan as a share of that of a full training, the largest of the seeds.
Level 2 should be at least the best single method less .0003 everywhere, and above it by .0010 in half of the budgets;
level 1 should be nowhere below it by more than .0015; planning should take at most 20 %. The counts are of the real
data; `choose-planted` has a page of its own. Split by time, Globo tests new articles: two thirds of its test clicks go
to 22 that training has not seen, which only rows by content serve (the planner is given content there), and seeds
differ by .03."""

_PLANTED = """\
Eight of the 26 features of `choose-planted` say nothing; a split by vocabulary gives them {:.0%} of all bytes. The
largest share over the seeds. "Ranked" is level 1 with the worth that `embcomp.rank_features` finds in the clicks; sizes
and counts alone cannot know which features say something."""

Count = Literal["served", "training"]
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """The test metric of one line over its seeds."""

    label: str
    values: Sequence[float]
    planning: float = 0.0

    @property
    def mean(self) -> float:
        return mean(self.values)

    def __str__(self) -> str:
        spread = f" ± {stdev(self.values):.4f}" if len(self.values) > 1 else ""
        return f"{self.mean:.4f}{spread} ({len(self.values)})"


@dataclass(frozen=True)
class Cell:
    """A budget: the full tables, the best single method, and the levels that were run."""

    title: str
    count: Count
    share: float
    metric: str
    full: Score
    single: Score
    levels: Mapping[int, Score]

    def over_single(self, level: int) -> float | None:
        """Return how far a level is above the best single method; None if it was not run."""
        return self.levels[level].mean - self.single.mean if level in self.levels else None


def write(results: Path, folder: Path) -> Path | None:
    """Write the page; return None if there is no choice."""
    found = list(cells(results))
    if not found:
        return None
    lines = [_INTRODUCTION, "", *_summary([cell for cell in found if PLANTED not in cell.title])]
    for title in dict.fromkeys(cell.title for cell in found):
        lines += ["", f"## {title}", "", *_table([cell for cell in found if cell.title == title])]
    lines += _planted(results)
    return write_page(folder, "planned", lines)


def cells(results: Path) -> Iterator[Cell]:
    """Return all budgets for which a choice was trained, data set by data set, for each metric that is shown."""
    for experiment in EXPERIMENTS:
        by_data: dict[tuple[str, str], list[Result]] = defaultdict(list)
        for path in sorted((results / experiment).glob("*.json")):
            result = json.loads(path.read_text())
            by_data[result["dataset"], result["model"]].append(result)
        for (data, model), runs in by_data.items():
            shown = [metric for metric in METRICS if all(f"test/{metric}" in run["metrics"] for run in runs)]
            for metric in shown:
                yield from _of_data(f"{model} on {data}", metric, runs)


def _of_data(title: str, metric: str, runs: Sequence[Result]) -> Iterator[Cell]:
    chosen: dict[tuple[Count, float], dict[int, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run["method"] == "choose" and not run["config"]["method"]["options"].get("ranked"):
            options = run["config"]["method"]["options"]
            chosen[options["count"], _share(run)][options["level"]].append(run)
    singles = [run for run in runs if run["method"] != "choose"]
    full = [run for run in singles if run["method"] == "Full"]
    for (count, share), levels in sorted(chosen.items(), key=lambda item: (item[0][0], -item[0][1])):
        most = share * runs[0]["full_nbytes"] * 1.0001  # budgets are cut to whole bytes
        lines = _lines(run for run in singles if run["method"] != "Full")
        fitting = [line for line in lines if max(_nbytes(run, count) for run in line) <= most]
        best = max(fitting, key=_valid, default=None)
        if best and full:
            by_level = {level: _score(f"level {level}", metric, levels[level]) for level in LEVELS if level in levels}
            single = _score(_name(best[0]), metric, best)
            yield Cell(title, count, share, metric, _score("full", metric, full), single, by_level)


def _share(run: Result) -> float:
    """The budget of a run as a share of the full tables."""
    budget = run["budget"]
    return budget["share"] if "share" in budget else budget["nbytes"] / run["full_nbytes"]


def _lines(runs: Iterable[Result]) -> list[list[Result]]:
    """The runs of each method and budget."""
    lines: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for run in runs:
        lines[run["label"] or run["method"], json.dumps(run["budget"])].append(run)
    return list(lines.values())


def _nbytes(run: Result, count: Count) -> int:
    key = f"{count}_nbytes"
    return run[key] if key in run else run["nbytes"]  # files of before there were two counts


def _valid(line: Sequence[Result]) -> float:
    """The metric of the valid split that chose the epoch, the higher the better."""
    monitor = line[0]["config"]["training"].get("monitor") or "valid/auc"
    found = mean(run["metrics"][monitor] for run in line)
    return -found if monitor in ("valid/logloss", "valid/ne") else found


def _name(run: Result) -> str:
    share = (run["budget"] or {}).get("share")
    return (run["label"] or run["method"]) + (f", {100 * share:g} %" if share else "")


def _score(label: str, metric: str, runs: Sequence[Result]) -> Score:
    planning = max((run.get("planning", {}).get("of_full_training", 0.0) for run in runs), default=0.0)
    return Score(label, [run["metrics"][f"test/{metric}"] for run in runs], planning)


def _summary(found: Sequence[Cell]) -> Iterator[str]:
    rises = {level: [rise for cell in found if (rise := cell.over_single(level)) is not None] for level in LEVELS}
    yield from table(
        ["level", "budgets", "not below by more than .0003", "not below by more than .0015", "above by .0010"],
        "lrrrr",
        [
            [
                str(level),
                str(len(each)),
                *(str(sum(rise >= -most for rise in each)) for most in (0.0003, 0.0015)),
                str(sum(rise >= 0.001 for rise in each)),
            ]
            for level, each in rises.items()
            if each
        ],
    )


def _planted(results: Path) -> Iterator[str]:
    """The table of the planted features: bytes on those without effect, and AUC beside the split by vocabulary."""
    runs = [json.loads(path.read_text()) for path in sorted((results / "choose-planted").glob("*.json"))]
    by_line: dict[tuple[float, str], list[Result]] = defaultdict(list)
    for run in runs:
        if run["method"] != "Full":
            by_line[_share(run) if run["budget"] else 1.0, run["label"]].append(run)
    silent, sizes, rows = set(planted.Config().silent), planted.Config().sizes, []
    for (share, label), line in sorted(by_line.items(), key=lambda item: (-item[0][0], item[0][1])):
        split = [run for (s, name), each in by_line.items() if s == share and SPLIT in name for run in each]
        if line[0]["method"] != "choose" or not split:
            continue
        spent = [
            sum(table["served"] for name, table in run["choice"].items() if name in silent) / run["served_nbytes"]
            for run in line
        ]
        score, other = _score(label, "auc", line), _score(label, "auc", split)
        rows.append([f"{100 * share:.3g} %", label, str(score), f"{score.mean - other.mean:+.4f}", f"{max(spent):.1%}"])
    if rows:
        yield from [
            "",
            "## Bytes on features without effect",
            "",
            _PLANTED.format(sum(sizes[name] for name in silent) / sum(sizes.values())),
            "",
        ]
        heads = ["budget", "choice", "auc", "to the split by vocabulary", "of the bytes on features without effect"]
        yield from table(heads, "llrrr", rows)


def _table(found: Sequence[Cell]) -> Iterator[str]:
    levels = [level for level in LEVELS if any(level in cell.levels for cell in found)]
    heads = [part for level in levels for part in (f"level {level}", "to single", "planning")]
    rows = []
    for cell in found:
        row = [cell.metric, f"{100 * cell.share:.3g} % {cell.count}", str(cell.full)]
        row += [f"{cell.single.label}: {cell.single}"]
        for level in levels:
            rise = cell.over_single(level)
            score = cell.levels.get(level)
            row += ["–"] * 3 if score is None else [str(score), f"{rise:+.4f}", f"{score.planning:.0%}"]
        rows.append(row)
    align = "llrl" + "rrr" * len(levels)
    yield from table(["metric", "budget", "full tables", "best single method", *heads], align, rows)
