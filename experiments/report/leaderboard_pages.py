"""The leaderboard as Markdown for the docs, as one HTML page that sorts and filters, and as a table."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.filesize import decimal

from experiments.files import write_text
from experiments.report.leaderboard import SHARES, TOLERANCE, Entry, frame, leaderboard
from experiments.runs.flat import save

_MOST = 12  # lines of a budget in Markdown; all are in the table
_WORDS = {"served": "bytes as served", "training": "bytes while training"}
_INTRODUCTION = f"""\
# leaderboard

Methods are ranked at equal bytes: runs that only differ in the method and the seed, at the smallest budget of
{", ".join(f"{100 * share:g} %" for share in SHARES)} of the full tables that they keep, or exceed by at most
{TOLERANCE - 1:.0%} (the constants of a method). Served bytes and training bytes
are different budgets with separate lists. Figures are mean ± standard deviation over seeds, on the test split; the best
ones are bold, with all that are at most one standard deviation of the best below it. Seconds of training and memory of
the process are those of the machine that trained, which often did other work too. The last column is the time of a
look-up of the method at a tenth of the bytes of a table of width 64, as a multiple of that of the full table, by
`python -m experiments bench frame`. The page is written by `python -m experiments report --markdown docs/results`; all
lines, with the commands that reproduce them, are in [leaderboard.csv](leaderboard.csv), and `python -m experiments
report` makes a page that sorts and filters. [Conclusions](conclusions.md) checks a published comparison on these lines.
"""


def write_all(results: Path, out: Path, markdown: Path | None = None) -> list[Path]:
    """Write the leaderboard of a folder of results, if there is anything to compare.

    Args:
        results: the folder of result files.
        out: the folder of the HTML page, and of the table as CSV and parquet.
        markdown: the folder of the docs' pages, to write Markdown and CSV there instead.

    Returns:
        The files.
    """
    entries = leaderboard(results)
    if not entries:
        return []
    if markdown:
        return [write_markdown(entries, markdown, markdown.parent / "methods")]
    tables = [out / "leaderboard.csv", out / "leaderboard.parquet"]
    for path in tables:
        save(frame(entries), path)
    return [write_html(entries, out / "leaderboard.html"), *tables]


def write_markdown(entries: Sequence[Entry], folder: Path, methods: Path) -> Path:
    """Write `leaderboard.md` and `leaderboard.csv`.

    Args:
        entries: the entries.
        folder: the folder of the pages.
        methods: the folder of the methods' pages, to which lines link.
    """
    pages = method_pages(methods)
    lines = [_INTRODUCTION]
    for setup, in_setup in itertools.groupby(entries, key=lambda entry: entry.setup):
        lines.append(f"## {setup}\n")
        for (count, budget), group in itertools.groupby(in_setup, key=lambda entry: (entry.count, entry.budget)):
            listed = list(group)
            lines.append(f"### {100 * budget:g} % of the {_WORDS[count]}\n")
            lines += [*_table(listed[:_MOST], pages), ""]
            if len(listed) > _MOST:
                lines.append(f"{len(listed) - _MOST} more in the table.\n")
    save(frame(entries), folder / "leaderboard.csv")
    write_text(folder / "leaderboard.md", "\n".join(lines).rstrip() + "\n")
    return folder / "leaderboard.md"


def write_html(entries: Sequence[Entry], path: Path, methods: str = "../../docs/methods") -> Path:
    """Write one self-contained page that sorts by every column, filters, and fits a telephone.

    Args:
        entries: the entries.
        path: the file.
        methods: the address of the folder of the methods' pages, to which lines link.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages = method_pages(Path(__file__).parents[2] / "docs" / "methods")
    links = {entry.method: f"{methods}/{page}" for entry in entries if (page := _page(entry.method, pages))}
    text = environment.get_template("leaderboard.html.j2").render(
        entries=entries, links=links, size=decimal, look_up=look_up
    )
    write_text(path, text.rstrip() + "\n")
    return path


def method_pages(folder: Path) -> dict[str, str]:
    """Return the file of each method's page, by the name of the method: pages name it after `:::`."""
    pages = {}
    for path in sorted(folder.glob("*.md")):
        for name in re.findall(r"^::: embcomp\.(\w+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            pages[name] = path.name
    return pages


def look_up(entry: Entry) -> str:
    """Return the time of a look-up in words."""
    return "–" if entry.look_up is None else f"{entry.look_up:.2g}x" if entry.look_up < 10 else f"{entry.look_up:.0f}x"


def _page(method: str, pages: Mapping[str, str]) -> str:
    """Return the page of the first method, from the inside, that has one: that of LowBit(GraphHash) is GraphHash's."""
    names = re.findall(r"\w+", method)
    return next((pages[name] for name in reversed(names) if name in pages and name != "Full"), "") or next(
        (pages[name] for name in names if name in pages), ""
    )


def _table(entries: Sequence[Entry], pages: Mapping[str, str]) -> Iterator[str]:
    metric = entries[0].metric
    yield f"| | method | {metric} | to full | served | training | seeds | seconds | memory | look-up |"
    yield "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for entry in entries:
        page = _page(entry.method, pages)
        label = f"[{entry.label}](../methods/{page})" if page else entry.label
        score = f"{entry.score:.4f}" + (f" ± {entry.spread:.4f}" if entry.seeds > 1 else "")
        score = f"**{score}**" if entry.best else score
        shares = [f"{100 * n / entry.full_nbytes:.3g} %" for n in (entry.served_nbytes, entry.training_nbytes)]
        yield (
            f"| {entry.rank} | {label} | {score} | {entry.to_full:+.4f} | {' | '.join(shares)} | {entry.seeds} | "
            f"{entry.seconds:,.0f} | {decimal(entry.memory)} | {look_up(entry)} |"
        )
