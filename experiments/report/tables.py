"""Tables of experiments, as text cells."""

from __future__ import annotations

from dataclasses import dataclass

from rich.filesize import decimal

from experiments.report.collect import Experiment, Row, Section

_NAMES = {"auc": "AUC", "gauc": "GAUC", "logloss": "log-loss", "ne": "NE", "recall": "Recall", "ndcg": "NDCG"}
_MOST = 6  # metrics side by side
_OVERVIEW = ("auc", "logloss", "recall@20", "ndcg@20")


@dataclass(frozen=True)
class Table:
    """The cells of a table under a header; the first column is flush left.

    Attributes:
        best: the (line, column) of the cells that are the best of their column among the lines of one budget.
    """

    caption: str
    header: list[str]
    lines: list[list[str]]
    best: frozenset[tuple[int, int]] = frozenset()


def overview(experiment: Experiment) -> Table | None:
    """Make a table of methods at their budgets, with the metrics of all sections; None if there is only one section."""
    sections = experiment.sections
    if len(sections) < 2:
        return None
    by_key = [{(row.label, row.budget): row for row in section.rows} for section in sections]
    keys = list(dict.fromkeys(key for rows in by_key for key in rows))
    columns = [(i, name) for i, section in enumerate(sections) for name in section.metrics if name in _OVERVIEW]
    if not columns or len(columns) > _MOST:  # wider than a page
        columns = [(i, section.main) for i, section in enumerate(sections) if section.main]
    same_data = len({section.dataset for section in sections}) == 1
    same_model = len({section.model for section in sections}) == 1
    places = [s.dataset if same_model else s.model if same_data else s.title for s in sections]
    header = ["method", "budget", *(f"{_name(name)}, {places[i]}" for i, name in columns)]
    lines = [
        [label, budget or "–", *(_cell(by_key[i].get((label, budget)), name) for i, name in columns)]
        for label, budget in keys
    ]
    best = set()
    for column, (i, name) in enumerate(columns, 2):
        line_of = {id(row): line for line, key in enumerate(keys) if (row := by_key[i].get(key))}
        best |= {(line_of[id(row)], column) for row in _winners(sections[i], name)}
    caption = "Test split, all " + ("data sets" if same_model else "models")
    return Table(caption, header, lines, frozenset(best))


def details(section: Section) -> list[Table]:
    """Make a table of all metrics of the test split, the costs, then the metrics of its slices."""
    tables = []
    if section.metrics:
        main, full = section.main, section.full
        delta = ["to full"] if full and main else []
        first, *others = section.metrics
        header = ["method", _name(first), *delta, "bytes", "share", *map(_name, others)]
        lines = [
            [row.label, _cell(row, first), *[_difference(row, full, main) for _ in delta], *_size(row)[1:]]
            + [_cell(row, name) for name in others]
            for row in section.rows
        ]
        places = {name: header.index(_name(name), 1) for name in section.metrics}
        tables.append(Table("Test split", header, lines, _marks(section, places)))
        header = ["method", "bytes served", "bytes in training", "rows", "seeds", "seconds"]
        lines = [
            [
                row.label,
                decimal(row.nbytes, precision=2),
                decimal(row.training_nbytes or row.nbytes, precision=2),
                f"{row.rows:,}",
                str(row.seeds),
                f"{row.seconds:.0f}",
            ]
            for row in section.rows
        ]
        tables.append(Table("Cost", header, lines))
    if section.sliced:
        header = ["method", "bytes", "share", *map(_name, section.sliced)]
        lines = [[*_size(row), *(_cell(row, name) for name in section.sliced)] for row in section.rows]
        places = {name: column for column, name in enumerate(section.sliced, 3)}
        tables.append(Table("Slices of the test split", header, lines, _marks(section, places)))
    return tables


def _marks(section: Section, columns: dict[str, int]) -> frozenset[tuple[int, int]]:
    line_of = {id(row): line for line, row in enumerate(section.rows)}
    return frozenset((line_of[id(row)], column) for name, column in columns.items() for row in _winners(section, name))


def _winners(section: Section, metric: str) -> list[Row]:
    """Return the best row of each budget that has several rows."""
    groups = [[row for row in rows if metric in row.metrics] for rows in section.groups]
    best = [max(row.score(metric) for row in rows) if len(rows) > 1 else None for rows in groups]
    return [row for rows, top in zip(groups, best, strict=True) for row in rows if row.score(metric) == top]


def _difference(row: Row, full: Row | None, metric: str | None) -> str:
    if full is None or metric is None or row is full or metric not in row.metrics:
        return "–"
    return f"{row.metrics[metric].mean - full.metrics[metric].mean:+.4f}"


def _size(row: Row) -> list[str]:
    return [row.label, decimal(row.nbytes, precision=2), f"{row.share:.1%}"]


def _cell(row: Row | None, metric: str) -> str:
    return str(row.metrics[metric]) if row is not None and metric in row.metrics else "–"


def _name(metric: str) -> str:
    name, _, slice_name = metric.partition("/")
    kind, at, k = name.partition("@")
    return f"{_NAMES.get(kind, kind)}{at}{k} {slice_name}".strip()
