"""The command `embcomp choose`: from a byte budget and the sizes of tables to a method and a size for each."""

from pathlib import Path
from typing import Annotated

import typer

from embcomp.methods.table import Table
from embcomp.planner.choose import choose

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    tables: Annotated[list[str], typer.Argument(help="Tables as NAME=IDSxWIDTH, such as item=30000x16.")],
    nbytes: Annotated[str, typer.Option(help="The budget for all of them: 10%, 50MB, or a number of bytes.")],
    count: Annotated[str, typer.Option(help="The form whose bytes the budget limits: served or training.")] = "served",
    keep: Annotated[list[str] | None, typer.Option(help="A pattern of tables that stay unchanged.")] = None,
    seed: Annotated[int, typer.Option(help="The seed of the hashes.")] = 0,
    save: Annotated[Path | None, typer.Option(help="Write the choice to this JSON file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw loss against bytes into this file.")] = None,
) -> None:
    """Choose a method and a size for every table by rules, from sizes alone.

    A trained model and held-out batches give better choices: call `embcomp.choose` with them.
    """
    try:
        budget = int(nbytes) if nbytes.isdecimal() else nbytes
        choice = choose([_table(text) for text in tables], budget, count=count, keep=keep, seed=seed)  # pyright: ignore
        if save is not None:
            choice.save(save)
        if plot is not None:
            choice.plot(plot)
    except (ValueError, OSError) as error:
        typer.echo(f"embcomp choose: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(str(choice))


def _table(text: str) -> Table:
    name, _, size = text.rpartition("=")
    ids, _, width = size.partition("x")
    if not name or not ids.isdecimal() or not width.isdecimal():
        raise ValueError(f"{text!r} is not a table: write NAME=IDSxWIDTH, such as item=30000x16")
    return Table(name, int(ids), int(width))
