"""Pictures of a section, as SVG text. Grey text on nothing, so that they fit light and dark pages."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from rich.filesize import decimal

from experiments.report.collect import LOWER_IS_BETTER, Row, Section

_GREY = "#808080"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "embcomp",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _GREY,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _GREY,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_MARKERS = "osD^vP*X<>"
# Options that read better as something else: option -> (axis, value of a configuration).
_AXES: dict[str, tuple[str, Callable[[dict[str, Any], Any], Any]]] = {
    "chunk_dim": ("chunks per feature", lambda config, value: config["model"]["embedding_dim"] / value),
}


@dataclass(frozen=True)
class Picture:
    """An SVG with what it shows in words.

    Attributes:
        name: fit for a file name.
    """

    name: str
    title: str
    alt: str
    svg: str


def pictures(section: Section) -> list[Picture]:
    """The metric against bytes, then the metric against each option that several runs of one method differ in."""
    if section.main is None:
        return []
    base = f"{section.experiment}-{section.dataset}-{section.model}"
    drawn = [_against_bytes(section, section.main, base)]
    for method, option in _swept(section):
        drawn.append(_against_option(section, section.main, method, option, base))
    return drawn


def _against_bytes(section: Section, metric: str, base: str) -> Picture:
    lines: dict[str, list[Row]] = {}
    full = [row for row in section.rows if row.method == "Full" and metric in row.metrics]
    for row in section.rows:
        if row.method != "Full" and metric in row.metrics:
            lines.setdefault(row.label, []).append(row)

    def draw(axes: Axes) -> None:
        for number, (label, rows) in enumerate(lines.items()):
            rows = sorted(rows, key=lambda row: row.nbytes)
            _line(axes, number, label, [row.nbytes for row in rows], rows, metric)
        for row in full:
            axes.axhline(row.metrics[metric].mean, linestyle="--", color=_GREY, label="Full")
        if lines:
            axes.set_xscale("log")
            axes.set_xticks(_apart([row.nbytes for rows in lines.values() for row in rows]), minor=False)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: decimal(int(value))))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("bytes of tables and maps")

    title = f"{_name(metric)} against bytes"
    shown = [*full, *(row for rows in lines.values() for row in rows)]
    ends = [f"{row.label} {decimal(row.nbytes)} {row.metrics[metric].mean:.4f}" for row in shown]
    return Picture(f"{base}-bytes", title, f"{title}, {section.title}: {'; '.join(ends)}.", _svg(draw, metric))


def _against_option(section: Section, metric: str, method: str, option: str, base: str) -> Picture:
    axis, value_of = _AXES.get(option, (option, lambda config, value: value))
    lines: dict[str, list[tuple[float, Row]]] = {}
    for row in section.rows:
        options = row.config["method"]["options"]
        if row.method == method and option in options and metric in row.metrics:
            x = value_of(row.config, options[option])
            lines.setdefault(decimal(row.nbytes, precision=0), []).append((x, row))
    for points in lines.values():
        points.sort(key=lambda point: point[0])

    def draw(axes: Axes) -> None:
        for number, (label, points) in enumerate(lines.items()):
            _line(axes, number, label, [x for x, _ in points], [row for _, row in points], metric)
        axes.set_xlabel(axis)

    title = f"{_name(metric)} of {method} against {axis}"
    said = [
        f"{label}: " + ", ".join(f"{x:g} {row.metrics[metric].mean:.4f}" for x, row in points)
        for label, points in lines.items()
    ]
    return Picture(
        f"{base}-{method}-{option}", title, f"{title}, {section.title}: {'; '.join(said)}.", _svg(draw, metric)
    )


def _swept(section: Section) -> list[tuple[str, str]]:
    """(method, option) where rows of a method have three or more numbers for an option."""
    values: dict[tuple[str, str], set[Any]] = {}
    for row in section.rows:
        for option, value in row.config["method"]["options"].items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                values.setdefault((row.method, option), set()).add(value)
    return [key for key, found in values.items() if len(found) >= 3]


def _apart(sizes: list[int]) -> list[int]:
    """The sizes that are worth a mark: of those within a sixth of each other, the largest."""
    kept: list[int] = []
    for size in sorted(sizes, reverse=True):
        if not kept or size < kept[-1] / 1.17:
            kept.append(size)
    return kept


def _line(axes: Axes, number: int, label: str, xs: list[Any], rows: list[Row], metric: str) -> None:
    stats = [row.metrics[metric] for row in rows]
    axes.errorbar(
        xs,
        [stat.mean for stat in stats],
        yerr=[stat.std for stat in stats],
        label=label,
        color=f"C{number % 10}",
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=5,
        capsize=2,
    )


def _svg(draw: Callable[[Axes], None], metric: str) -> str:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7, 5), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_ylabel(_name(metric) + (" (lower is better)" if metric in LOWER_IS_BETTER else ""))
        axes.grid(True)
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            unique = dict(zip(labels, handles, strict=True))
            columns = 2 if len(unique) > 3 else 3
            figure.legend(
                unique.values(), unique.keys(), frameon=False, fontsize=8, loc="outside lower center", ncols=columns
            )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _name(metric: str) -> str:
    return {"auc": "AUC", "gauc": "grouped AUC", "logloss": "log-loss", "ne": "normalised entropy"}.get(metric, metric)
