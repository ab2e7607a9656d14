"""Data sets of clicks, interactions and sequences: one reader per data set, a synthetic generator, batches.

`data.load(name, **options)` encodes a data set once into a cache folder and opens it. From a checkout:

    import data

    clicks = data.load("synthetic", num_rows=10_000) for batch in clicks.loader("train", batch_size=4096, shuffle=True,
    seed=0, epoch=0):
        batch.dense, batch.sparse, batch.label, batch.columns

`data.load_interactions(name, **options)` reads pairs of a user and an item, for retrieval. `data.load_sequences(name,
**options)` reads each user's items in the order of time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from data.clicks import ClickData
from data.interactions import Interactions
from data.registry import DATASETS, INTERACTIONS, SEQUENCES, load, load_interactions, load_sequences
from data.schema import DataError, Feature, Schema
from data.sequences import Sequences

if TYPE_CHECKING:
    from data.batch import Batch

__all__ = [
    "DATASETS",
    "INTERACTIONS",
    "SEQUENCES",
    "Batch",
    "ClickData",
    "DataError",
    "Feature",
    "Interactions",
    "Schema",
    "Sequences",
    "load",
    "load_interactions",
    "load_sequences",
]


def __getattr__(name: str) -> Any:
    if name == "Batch":  # torchrec takes seconds to import, and only batches need it
        from data.batch import Batch

        return Batch
    raise AttributeError(f"module 'data' has no attribute {name!r}")
