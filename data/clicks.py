"""An encoded data set: lazy splits, counts, batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from data.schema import DataError, Schema

if TYPE_CHECKING:
    from torch import Tensor

    from data.loader import Loader


class ClickData:
    """A folder that `data.prepare` wrote.

    Attributes:
        name: of the data set.
        schema: its columns.
        folder: where the encoded files are.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            meta = json.loads((self.folder / "meta.json").read_text())
        except FileNotFoundError:
            raise DataError(f"{self.folder} holds no encoded data; make it with data.load(name, ...)") from None
        self.name: str = meta["name"]
        self.schema = Schema.from_dict(meta["schema"])
        self._rows: dict[str, int] = meta["rows"]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._rows)

    def split(self, name: str) -> pl.LazyFrame:
        """Rows of a split, with ids as models take them, in the order of the source."""
        return pl.scan_ipc(self._path(name))

    def num_rows(self, split: str) -> int:
        self._path(split)
        return self._rows[split]

    def counts(self, feature: str) -> Tensor:
        """How often each id occurs in the train split: int64 [num_embeddings].

        Raises:
            DataError: no such feature, or its id space is open.
        """
        import torch

        wanted = self.schema.feature(feature)
        if wanted.num_embeddings is None:
            raise DataError(f"feature {feature!r} has an open id space: load it with ids='vocabulary' to count its ids")
        rows = self.split("train").select(feature)
        if wanted.multi_hot:
            rows = rows.explode(feature, empty_as_null=False, keep_nulls=False)
        ids, counts = rows.group_by(feature).len().collect(engine="streaming")
        result = np.zeros(wanted.num_embeddings, np.int64)
        result[ids.to_numpy()] = counts.to_numpy()
        return torch.from_numpy(result)

    def content(self, feature: str) -> Tensor | None:
        """Vectors that describe the ids of a feature: float32 [num_embeddings, dim], or None where there are none."""
        import torch

        path = self.folder / "content" / f"{self.schema.place(feature)}.npy"
        return torch.from_numpy(np.load(path)) if path.is_file() else None

    def vocabulary(self, feature: str) -> pl.Series | None:
        """Value of each id as a string, null for the out-of-vocabulary id 0; None where values are the ids."""
        size = self.schema.feature(feature).num_embeddings
        path = self.folder / "vocabulary" / f"{self.schema.place(feature)}.parquet"
        if not path.is_file():
            return None
        values = pl.read_parquet(path)["value"]
        missing = pl.Series("value", [None] * (int(size or 0) - len(values)), dtype=pl.String)
        return pl.concat([missing, values])

    def truth(self) -> dict[str, np.ndarray]:
        """What the generator of synthetic clicks planted; empty for real data."""
        path = self.folder / "truth.npz"
        if not path.is_file():
            return {}
        with np.load(path) as arrays:
            return dict(arrays)

    def loader(self, split: str, batch_size: int, **options: Any) -> Loader:
        """Batches of a split: see `data.loader.Loader` for the options and the order."""
        from data.loader import Loader

        return Loader(self._path(split), self.schema, batch_size, **options)

    def _path(self, split: str) -> Path:
        if split not in self._rows:
            raise DataError(f"{self.name} has no split {split!r}; it has {', '.join(self._rows)}")
        return self.folder / f"{split}.arrow"

    def __repr__(self) -> str:
        rows = ", ".join(f"{split} {rows:,}" for split, rows in self._rows.items())
        return f"ClickData({self.name}: {len(self.schema.features)} features, {rows} rows)"
