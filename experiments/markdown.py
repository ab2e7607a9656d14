"""Tables and pages in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.files import write_text


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


def write_page(folder: Path, title: str, lines: Iterable[str]) -> Path:
    """Write a page of the docs, `<folder>/<title>.md`, and return its path."""
    path = folder / f"{title}.md"
    write_text(path, "\n".join([f"# {title}", "", *lines]) + "\n")
    return path
