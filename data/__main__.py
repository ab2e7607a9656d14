"""`python -m data`: fetch, list and look at data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from data.fetch import fetch as fetch_archive
from data.registry import DATASETS, INTERACTIONS, SEQUENCES, Dataset, load, load_interactions, root_folder
from data.schema import DataError, known
from data.sources import SOURCES

_ALL: dict[str, Dataset] = {**INTERACTIONS, **DATASETS}
app = typer.Typer(help="Data sets.", no_args_is_help=True, pretty_exceptions_enable=False)
Name = Annotated[str, typer.Argument(help="name of the data set")]
Root = Annotated[Path | None, typer.Option(help="folder of all source data, by default what EMBCOMP_DATA names")]


@app.command()
def fetch(
    name: Name,
    root: Root = None,
    accept_terms: Annotated[bool, typer.Option("--accept-terms", help="accept the publisher's terms")] = False,
) -> None:
    """Download a data set from its public source into ROOT; an interrupted download is continued."""
    source = SOURCES.get(known("data set", name, _ALL))
    if source is None:
        raise DataError(f"there is nothing to fetch for {name!r}; it is generated or read from your own files")
    folder = root_folder(root) / str(_ALL[name].folder)
    if isinstance(source, str):
        raise DataError(source.format(folder=folder))
    if source.accept and not accept_terms:
        raise DataError(f"{name} comes under {source.terms}. Read them, then add --accept-terms")
    console = Console(stderr=True)
    console.print(f"{source.url}\nTerms: {source.terms}", highlight=False)
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=None)
        written = fetch_archive(source, folder, lambda done, total: progress.update(task, completed=done, total=total))
    typer.echo("\n".join(map(str, written)) if written else f"{folder} has all files")


@app.command(name="list")
def list_() -> None:
    """List the data sets, and whether their files are there."""
    table = Table("name", "kind", "source", "options")
    every = {"clicks": DATASETS, "pairs": INTERACTIONS, "sequences": SEQUENCES}
    for name, dataset, kind in ((n, d, kind) for kind, sets in every.items() for n, d in sets.items()):
        source = SOURCES.get(name)
        where = "own files" if dataset.files else "generated"
        if source:
            where = "by hand, see fetch" if isinstance(source, str) else "fetch"
        table.add_row(name, kind, where, ", ".join(dataset.options))
    Console().print(table)


@app.command()
def head(
    name: Name,
    root: Root = None,
    cache: Annotated[Path | None, typer.Option(help="folder of encoded data")] = None,
    split: str = "train",
    rows: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Print the first encoded rows of a split, and the sizes."""
    if name in INTERACTIONS and name not in DATASETS:
        interactions = load_interactions(name, root=root)
        typer.echo(f"{interactions}\n{interactions.pairs[known('split', split, interactions.pairs)].head(rows)}")
        return
    clicks = load(name, root=root, cache=cache)
    first = clicks.split(split).head(rows).collect()
    typer.echo(f"{clicks}\n{first}")


def main() -> None:
    try:
        app()
    except DataError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
