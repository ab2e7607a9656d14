"""Pictures of experiments, as SVG text. Grey text without a background suits light and dark pages."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from colorsys import hls_to_rgb
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from rich.filesize import decimal

from experiments.report.collect import LOWER_IS_BETTER, Experiment, Row, Section

_GREY = "#808080"
_STYLE: dict[Any, Any] = {
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
_MARKERS = "osD^vP*X<>hdp8"
_DASHES = ("-", "--", ":", "-.")
_LEAST_SPAN = 4.0  # of an axis of bytes: from one end to the other
# Options that read better as something else: option -> (axis, value of a configuration).
_AXES: dict[str, tuple[str, Callable[[dict[str, Any], Any], Any]]] = {
    "chunk_dim": ("chunks per feature", lambda config, value: config["model"]["embedding_dim"] / value),
}


@dataclass(frozen=True)
class Picture:
    """An SVG with its content in words.

    Attributes:
        name: the name, valid as a file name.
    """

    name: str
    title: str
    alt: str
    svg: str


def overview(experiment: Experiment) -> Picture | None:
    """Draw the main metric against bytes, a panel for each section; for poolings against the time of an epoch."""
    shown = [(section, section.main) for section in experiment.sections if section.main]
    if shown and all(section.poolings for section, _ in shown):
        return _costs(experiment, shown)
    labels = dict.fromkeys(row.label for section, _ in shown for row in section.rows if row.method != "Full")
    if not shown:
        return None
    title = " and ".join(dict.fromkeys(name_of(metric) for _, metric in shown)) + " against bytes"
    said = "; ".join(f"{section.title}: {_said(section, metric)}" for section, metric in shown)
    styles = _styles(list(labels))
    panels = [partial(_draw_bytes, section=section, metric=metric, styles=styles) for section, metric in shown]
    return Picture(f"{experiment.name}-bytes", title, f"{experiment.name}, {title}. {said}.", _svg(panels))


def _costs(experiment: Experiment, shown: list[tuple[Section, str]]) -> Picture:
    """Return poolings; those that differ in the number of hashes get one name."""
    names = dict.fromkeys(_family(row, section.rows) for section, _ in shown for row in section.rows)
    styles = _styles(list(names))

    def draw(axes: Axes, section: Section, metric: str) -> None:
        for name in names:
            rows = [row for row in section.rows if metric in row.metrics and _family(row, section.rows) == name]
            rows.sort(key=lambda row: row.epoch_seconds)
            if rows:
                _line(axes, styles[name], name, [row.epoch_seconds for row in rows], rows, metric, joined=False)
        axes.set_xscale("log")
        axes.set_xlabel("seconds of an epoch")
        axes.set_title(section.title, fontsize=10)
        _label(axes, metric)

    title = " and ".join(dict.fromkeys(name_of(metric) for _, metric in shown)) + " against cost"
    said = "; ".join(f"{section.title}: {_said(section, metric)}" for section, metric in shown)
    panels = [partial(draw, section=section, metric=metric) for section, metric in shown]
    return Picture(f"{experiment.name}-cost", title, f"{experiment.name}, {title}. {said}.", _svg(panels))


def _family(row: Row, rows: list[Row]) -> str:
    """Return the shortest label of the rows with the same pooling and options except for the hashes."""

    def kind(row: Row) -> tuple[str, str, dict[str, Any]]:
        behavior = row.config["behavior"]
        options = {k: v for k, v in behavior["options"].items() if k not in ("num_hashes", "hash_width")}
        return row.method, behavior["pooling"], options

    return min((other.label for other in rows if kind(other) == kind(row)), key=len)


def sweeps(section: Section) -> list[Picture]:
    """Draw the main metric against each option in which three or more runs of one method differ."""
    if section.main is None:
        return []
    return [_against_option(section, section.main, method, option) for method, option in _swept(section)]


def slices(section: Section) -> Picture | None:
    """Draw the main metric of each slice, grouped if possible, with a line for each method at one size."""
    metric = "gauc" if "gauc" in section.metrics else section.main
    names = [name for name in section.sliced if name.startswith(f"{metric}/")]
    rows = _at_one_size(section)
    if not names or not metric:
        return None

    styles = _styles(names)

    def draw(axes: Axes) -> None:
        for name in names:
            known = [(height, row.metrics[name]) for height, row in enumerate(rows) if name in row.metrics]
            axes.errorbar(
                [stat.mean for _, stat in known],
                [height for height, _ in known],
                xerr=[stat.std for _, stat in known],
                label=name.partition("/")[2].replace("_", " "),
                **{**styles[name], "linestyle": "none"},
                markersize=5,
            )
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel(name_of(metric))
        axes.grid(True)

    said = [
        f"{row.label}: "
        + ", ".join(f"{name.partition('/')[2]} {row.metrics[name].mean:.3f}" for name in names if name in row.metrics)
        for row in rows
    ]
    title = f"{name_of(metric)} by slice"
    name = f"{section.experiment}-{section.dataset}-{section.model}-slices".replace(" ", "-")
    return Picture(name, title, f"{title}, {section.title}. {'; '.join(said)}.", _svg([draw]))


def _at_one_size(section: Section) -> list[Row]:
    """Return each method once: at the size that most methods have, or the only one that it has."""
    sizes = Counter(row.rows for row in section.rows)
    labels = Counter(row.label for row in section.rows)
    usual = sizes.most_common(1)[0][0]
    return [row for row in section.rows if row.rows == usual or labels[row.label] == 1]


def _said(section: Section, metric: str) -> str:
    """Describe each method with the range of its values, as text for readers who do not see the picture."""
    values: dict[str, list[float]] = {}
    for row in section.rows:
        if metric in row.metrics:
            values.setdefault(row.label, []).append(row.metrics[metric].mean)
    ranges = {label: sorted({f"{min(numbers):.4f}", f"{max(numbers):.4f}"}) for label, numbers in values.items()}
    return ", ".join(f"{label} {' to '.join(ends)}" for label, ends in ranges.items())


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a colour for each name, none twice, and markers and dashes that also tell neighbours apart."""
    plain = [f"C{index}" for index in range(10)]
    # Beyond the ten usual ones: hues all around, dark and light in turn.
    wheel = [hls_to_rgb(index / len(names), 0.35 + 0.2 * (index % 2), 0.75) for index in range(len(names))]
    colors: list[Any] = plain if len(names) <= len(plain) else wheel
    return {
        name: {
            "color": colors[index],
            "marker": _MARKERS[index % len(_MARKERS)],
            "linestyle": _DASHES[index // len(plain) % len(_DASHES)],
        }
        for index, name in enumerate(names)
    }


def _draw_bytes(axes: Axes, section: Section, metric: str, styles: dict[str, dict[str, Any]]) -> None:
    lines: dict[str, list[Row]] = {}
    for row in section.rows:
        if metric in row.metrics and row.method == "Full":
            axes.axhline(row.metrics[metric].mean, linestyle="--", color=_GREY, label="Full")
        elif metric in row.metrics:
            lines.setdefault(row.label, []).append(row)
    for label, rows in lines.items():
        rows = sorted(rows, key=lambda row: row.nbytes)
        _line(axes, styles[label], label, [row.nbytes for row in rows], rows, metric)
    if lines:
        sizes = [row.nbytes for rows in lines.values() for row in rows]
        axes.set_xscale("log")
        axes.set_xlim(*_span(sizes))
        axes.set_xticks(_apart(sizes), minor=False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: decimal(int(value))))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("bytes of tables and maps, as served")
    axes.set_title(section.title, fontsize=10)
    _label(axes, metric)


def _against_option(section: Section, metric: str, method: str, option: str) -> Picture:
    axis, value_of = _AXES.get(option, (option, lambda config, value: value))
    lines: dict[str, list[tuple[float, Row]]] = {}
    for row in section.rows:
        options = row.config["method"]["options"]
        if row.method == method and option in options and metric in row.metrics:
            x = value_of(row.config, options[option])
            said_yes = [name for name, value in options.items() if value is True]
            lines.setdefault(", ".join([decimal(row.nbytes, precision=0), *said_yes]), []).append((x, row))
    for points in lines.values():
        points.sort(key=lambda point: point[0])

    def draw(axes: Axes) -> None:
        styles = _styles(list(lines))
        for label, points in lines.items():
            _line(axes, styles[label], label, [x for x, _ in points], [row for _, row in points], metric)
        axes.set_xlabel(axis)
        _label(axes, metric)

    title = f"{name_of(metric)} of {method} against {axis}"
    said = [
        f"{label}: " + ", ".join(f"{x:g} {row.metrics[metric].mean:.4f}" for x, row in points)
        for label, points in lines.items()
    ]
    name = f"{section.experiment}-{section.dataset}-{section.model}-{method}-{option}".replace(" ", "-")
    return Picture(name, title, f"{title}, {section.title}. {'; '.join(said)}.", _svg([draw]))


def _swept(section: Section) -> list[tuple[str, str]]:
    """Return (method, option) if rows of a method have three or more numbers for an option."""
    values: dict[tuple[str, str], set[Any]] = {}
    for row in section.rows:
        for option, value in row.config["method"]["options"].items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                values.setdefault((row.method, option), set()).add(value)
    return [key for key, numbers in values.items() if len(numbers) >= 3]


def _span(sizes: list[int]) -> tuple[float, float]:
    """Return the ends of an axis of bytes, with a margin, and far enough apart that rounding is not visible."""
    low, high = min(sizes), max(sizes)
    room = max((_LEAST_SPAN / (high / low)) ** 0.5, (high / low) ** 0.05, 1.05)
    return low / room, high * room


def _apart(sizes: list[int]) -> list[int]:
    """Return the sizes that get a tick: the largest of those within a sixth of each other."""
    kept: list[int] = []
    for size in sorted(sizes, reverse=True):
        if not kept or size < kept[-1] / 1.17:
            kept.append(size)
    return kept


def _line(
    axes: Axes, style: dict[str, Any], label: str, xs: list[Any], rows: list[Row], metric: str, joined: bool = True
) -> None:
    stats = [row.metrics[metric] for row in rows]
    axes.errorbar(
        xs,
        [stat.mean for stat in stats],
        yerr=[stat.std for stat in stats],
        label=label,
        markersize=5,
        capsize=2,
        **(style if joined else {**style, "linestyle": "none"}),
    )


def _label(axes: Axes, metric: str) -> None:
    axes.set_ylabel(name_of(metric) + (" (lower is better)" if metric in LOWER_IS_BETTER else ""))
    axes.grid(True)


def _svg(panels: Sequence[Callable[[Axes], None]]) -> str:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7, 0.8 + 4.2 * len(panels)), layout="constrained")
        handles: dict[str, Any] = {}
        for panel, axes in zip(panels, np.atleast_1d(figure.subplots(len(panels))), strict=True):
            panel(axes)
            artists, labels = axes.get_legend_handles_labels()
            handles |= dict(zip(labels, artists, strict=True))
        if handles:
            columns = 2 if len(handles) > 3 else 3
            location = "outside lower center"
            figure.legend(handles.values(), handles.keys(), frameon=False, fontsize=8, loc=location, ncols=columns)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def name_of(metric: str) -> str:
    names = {"auc": "AUC", "gauc": "grouped AUC", "logloss": "log-loss", "ne": "normalised entropy"}
    return names.get(metric, metric.replace("recall@", "Recall@").replace("ndcg@", "NDCG@"))
