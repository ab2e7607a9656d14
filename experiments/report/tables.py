"""Tables of experiments, as text cells."""

from __future__ import annotations

from dataclasses import dataclass

from rich.filesize import decimal

from experiments.report.collect import Experiment, Row, Section

_NAMES = {"auc": "AUC", "gauc": "GAUC", "logloss": "log-loss", "ne": "NE", "recall": "Recall", "ndcg": "NDCG"}
_OVERVIEW = ("auc", "logloss", "recall@20", "ndcg@20")


@dataclass(frozen=True)
class Table:
    """Cells under a header; the first column is flush left."""

    caption: str
    header: list[str]
    lines: list[list[str]]


def overview(experiment: Experiment) -> Table | None:
    """Methods at their budgets, with the metrics of all sections side by side; None where there is one section."""
    sections = experiment.sections
    if len(sections) < 2:
        return None
    found = [{(row.label, row.budget): row for row in section.rows} for section in sections]
    keys = dict.fromkeys(key for rows in found for key in rows)
    columns = [(i, name) for i, section in enumerate(sections) for name in section.metrics if name in _OVERVIEW]
    same_data = len({section.dataset for section in sections}) == 1
    same_model = len({section.model for section in sections}) == 1
    places = [s.dataset if same_model else s.model if same_data else s.title for s in sections]
    header = ["method", "budget", *(f"{_name(name)}, {places[i]}" for i, name in columns)]
    lines = [
        [label, budget or "–", *(_cell(found[i].get((label, budget)), name) for i, name in columns)]
        for label, budget in keys
    ]
    return Table("Test split, all " + ("data sets" if same_model else "models"), header, lines)


def details(section: Section) -> list[Table]:
    """All metrics of the test split, then those of its slices."""
    tables = []
    if section.metrics:
        header = ["method", "bytes", "share", "rows", "seeds", *map(_name, section.metrics), "seconds"]
        lines = [
            [*_size(row), f"{row.rows:,}", str(row.seeds)]
            + [_cell(row, name) for name in section.metrics]
            + [f"{row.seconds:.0f}"]
            for row in section.rows
        ]
        tables.append(Table("Test split", header, lines))
    if section.sliced:
        header = ["method", "bytes", "share", *map(_name, section.sliced)]
        lines = [[*_size(row), *(_cell(row, name) for name in section.sliced)] for row in section.rows]
        tables.append(Table("Slices of the test split", header, lines))
    return tables


def _size(row: Row) -> list[str]:
    return [row.label, decimal(row.nbytes, precision=2), f"{row.share:.1%}"]


def _cell(row: Row | None, metric: str) -> str:
    return str(row.metrics[metric]) if row is not None and metric in row.metrics else "–"


def _name(metric: str) -> str:
    name, _, part = metric.partition("/")
    kind, at, k = name.partition("@")
    return f"{_NAMES.get(kind, kind)}{at}{k} {part}".strip()
