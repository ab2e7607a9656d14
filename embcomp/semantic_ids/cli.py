"""The command `embcomp semantic-ids`: fit a tokenizer, encode items, judge the codes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import Progress

from embcomp.files import write
from embcomp.semantic_ids.content import Content
from embcomp.semantic_ids.tokenizers.base import load
from embcomp.semantic_ids.tokenizers.files import is_saved
from embcomp.semantic_ids.tokenizers.residual_kmeans import ResidualKMeans
from embcomp.semantic_ids.tokenizers.rqvae import RQVAE

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="From content vectors to codes, from which embcomp.SemanticIds makes rows.",
)


class Kind(StrEnum):
    """The kinds of tokenizers to fit."""

    residual_kmeans = "residual-kmeans"
    rqvae = "rqvae"


ContentFile = Annotated[Path, typer.Argument(help="Vectors [N, width]: an .npy or .parquet file, or a folder.")]
Folder = Annotated[Path, typer.Argument(help="Folder of a fitted tokenizer.")]
Column = Annotated[str | None, typer.Option(help="Column of the parquet file.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


@app.command()
def fit(
    content: ContentFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to save the tokenizer to.")],
    kind: Annotated[Kind, typer.Option(help="Residual k-means, or an autoencoder.")] = Kind.residual_kmeans,
    levels: Annotated[int, typer.Option(help="Codes of an item.")] = 3,
    codebook_size: Annotated[int, typer.Option(help="Codes to choose from at each level.")] = 256,
    column: Column = None,
    seed: Annotated[int, typer.Option(help="The seed of samples and first codes.")] = 0,
    checkpoint: Annotated[Path | None, typer.Option(help="File from which an interrupted fit continues.")] = None,
    device: Device = "cpu",
) -> None:
    """Learn a tokenizer and save it."""
    with _bad_input_ends(), _bar() as heard:
        _check_device(device)
        if out.exists() and (not out.is_dir() or is_saved(out)):  # said before the work, not after it
            raise ValueError(f"{out} holds a tokenizer, or is a file; give another folder")
        tokenizer = (ResidualKMeans if kind is Kind.residual_kmeans else RQVAE)(levels, codebook_size, seed=seed)
        tokenizer.fit(content, column=column, device=device, progress=heard, checkpoint=checkpoint)
        tokenizer.save(out)
    print(f"{out}: version {tokenizer.version}")


@app.command()
def encode(
    folder: Folder,
    content: ContentFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The codes, int32 [N, levels], as .npy.")],
    column: Column = None,
    device: Device = "cpu",
) -> None:
    """Write the codes of items."""
    with _bad_input_ends():
        _check_device(device)
        if not out.absolute().parent.is_dir():
            raise ValueError(f"{out}: there is no folder {out.parent}")
        codes = load(folder).encode(content, column=column, device=device)
        write(out, lambda file: np.save(file, codes.numpy()))
    print(f"{out}: codes of {codes.shape[0]} items, {codes.shape[1]} levels")


@app.command()
def quality(
    folder: Folder,
    content: ContentFile,
    codes: Annotated[Path | None, typer.Option(help="Codes as .npy; without, the content is encoded.")] = None,
    column: Column = None,
) -> None:
    """Measure how well codes describe items, and whether the content has drifted away from the tokenizer."""
    with _bad_input_ends():
        tokenizer, vectors = load(folder), Content(content, column)
        given = None if codes is None else _read_codes(codes)
        print(tokenizer.quality(given, vectors))
        for name, value in asdict(tokenizer.drift(vectors)).items():
            shown = "  ".join(f"{v:.3f}" for v in value) if isinstance(value, tuple) else value
            print(
                f"{'drift, ' + name.replace('_', ' '):<24} {shown if not isinstance(value, float) else f'{value:.4f}'}"
            )


def _read_codes(path: Path) -> torch.Tensor:
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{path} is damaged, or holds no codes: {error}") from None


def _check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name}: {str(error).splitlines()[0]}") from None


@contextmanager
def _bad_input_ends() -> Iterator[None]:
    """Print one message and exit with code 2 on bad input."""
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"embcomp semantic-ids: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


@contextmanager
def _bar() -> Iterator:
    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("fit")
        yield lambda done, total, text: bars.update(task, completed=done, total=total, description=text)
