"""Sections -> files."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.filesize import decimal

from experiments.files import write_text
from experiments.report.collect import Section, collect
from experiments.report.pictures import pictures


def write_html(results: Path, path: Path, experiments: Sequence[str] | None = None, title: str = "Experiments") -> Path:
    """One page with everything inside it.

    Raises:
        InputError: see `collect`.
    """
    sections = collect(results, experiments)
    write_text(path, render("page.html.j2", sections, title=title))
    return path


def write_markdown(results: Path, folder: Path, experiments: Sequence[str] | None = None) -> Path:
    """`<experiment>.md` for each experiment, its pictures as SVG files beside it, and `index.md` with links to all.

    Raises:
        InputError: see `collect`.
    """
    by_name: dict[str, list[Section]] = {}
    for section in collect(results, experiments):
        by_name.setdefault(section.experiment, []).append(section)
    for name, sections in by_name.items():
        for section in sections:
            for picture in pictures(section):
                write_text(folder / f"{picture.name}.svg", picture.svg)
        write_text(folder / f"{name}.md", render("page.md.j2", sections, title=name))
    if not experiments:
        links = [
            f"- [{name}]({name}.md): {', '.join(s.dataset for s in sections)}" for name, sections in by_name.items()
        ]
        text = "# Results\n\nMade from `experiments/results` by `python -m experiments report --markdown`.\n\n"
        write_text(folder / "index.md", text + "\n".join(links) + "\n")
    return folder


def render(template: str, sections: Sequence[Section], **values: object) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith("html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["bytes"] = lambda value: decimal(value, precision=2)
    environment.filters["data_uri"] = lambda svg: "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    drawn = [(section, pictures(section), _tables(section)) for section in sections]
    return environment.get_template(template).render(sections=drawn, **values)


def _tables(section: Section) -> list[tuple[str, list[str], list[list[str]]]]:
    """(caption, header, cells) of the table of all rows, and of the one of slices where there are any."""
    named = {"auc": "AUC", "gauc": "GAUC", "logloss": "log-loss", "ne": "NE"}
    head = ["method", "bytes", "share", "rows", "seeds"]
    tables = []
    for caption, metrics, extra in (
        ("Test split", section.metrics, True),
        ("Slices of the test split", section.sliced, False),
    ):
        if metrics:
            cells = [
                [row.label, decimal(row.nbytes, precision=2), f"{row.share:.1%}"]
                + ([f"{row.rows:,}", str(row.seeds)] if extra else [])
                + [str(row.metrics[name]) if name in row.metrics else "–" for name in metrics]
                + ([f"{row.seconds:.0f}"] if extra else [])
                for row in section.rows
            ]
            header = (head if extra else head[:3]) + [named.get(name, name) for name in metrics]
            tables.append((caption, header + (["seconds"] if extra else []), cells))
    return tables
