"""An encoded data set: lazy splits, counts and batches."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from data.encode import FORMAT
from data.fingerprint import state
from data.schema import DataError, Schema
from embcomp.files import Damaged
from embcomp.manifest import read_sealed, verify

if TYPE_CHECKING:
    from torch import Tensor

    from data.loader import Loader


class ClickData:
    """The data of a folder that `data.prepare` wrote.

    Attributes:
        name: the name of the data set.
        schema: the columns.
        folder: the folder of the encoded files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "meta.json"
        if not path.is_file():
            raise DataError(f"{self.folder} holds no encoded data; make it with data.load(name, ...)")
        try:
            meta = read_sealed(path)
        except Damaged as error:
            raise DataError(f"{error}; remove {self.folder}, and data.load makes it again") from None
        if meta["format"] != FORMAT:
            raise DataError(
                f"{path} has format {meta['format']}, not {FORMAT}; make it again with data.load(name, ...)"
            )
        self._files: dict[str, list[Any]] = meta["files"]
        self.name: str = meta["name"]
        self.schema = Schema.from_dict(meta["schema"])
        self._rows: dict[str, int] = meta["rows"]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._rows)

    def split(self, name: str) -> pl.LazyFrame:
        """Return the rows of a split, with ids as models take them, in the order of the source."""
        return pl.scan_ipc(self._path(name))

    def num_rows(self, split: str) -> int:
        self._check_split(split)
        return self._rows[split]

    def same(self, split: str, other: str) -> bool:
        """Return whether two splits hold the same rows in the same order, by the checksums of their files."""
        for name in (split, other):
            self._check_split(name)
        return self._files[f"{split}.arrow"] == self._files[f"{other}.arrow"]

    def counts(self, feature: str) -> Tensor:
        """Return how often each id occurs in the train split: int64 [num_embeddings].

        Raises:
            DataError: the feature does not exist, or its id space is open.
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
        """Return vectors that describe the ids of a feature, float32 [num_embeddings, dim]; None if there are none."""
        import torch

        path = self._checked(f"content/{self.schema.place(feature)}.npy")
        return None if path is None else torch.from_numpy(np.load(path))

    def vocabulary(self, feature: str) -> pl.Series | None:
        """Return the value of each id as a string, null for the out-of-vocabulary id 0; None if values are the ids."""
        size = self.schema.feature(feature).num_embeddings
        path = self._checked(f"vocabulary/{self.schema.place(feature)}.parquet")
        if path is None:
            return None
        values = pl.read_parquet(path)["value"]
        missing = pl.Series("value", [None] * (int(size or 0) - len(values)), dtype=pl.String)
        return pl.concat([missing, values])

    def truth(self) -> dict[str, np.ndarray]:
        """Return the quantities that the generator of synthetic clicks planted; empty for real data."""
        path = self._checked("truth.npz")
        if path is None:
            return {}
        with np.load(path) as arrays:
            return dict(arrays)

    def loader(self, split: str, batch_size: int, **options: Any) -> Loader:
        """Return the batches of a split; see `data.loader.Loader` for the options and the order."""
        from data.loader import Loader

        return Loader(self._path(split), self.schema, batch_size, **options)

    def _path(self, split: str) -> Path:
        self._check_split(split)
        path = self._checked(f"{split}.arrow")
        assert path is not None  # every split has a file
        return path

    def _check_split(self, split: str) -> None:
        if split not in self._rows:
            raise DataError(f"{self.name} has no split {split!r}; it has {', '.join(self._rows)}")

    def _checked(self, name: str) -> Path | None:
        """Return the path of a file of this data set after checking its checksum; None for another file."""
        if name not in self._files:
            return None
        try:
            _verify(self.folder, name, *self._files[name], *state(self.folder / name))
        except (Damaged, OSError) as error:
            raise DataError(f"{error}; remove {self.folder}, and data.load makes it again") from None
        return self.folder / name

    def __repr__(self) -> str:
        rows = ", ".join(f"{split} {rows:,}" for split, rows in self._rows.items())
        return f"ClickData({self.name}: {len(self.schema.features)} features, {rows} rows)"


@lru_cache(maxsize=1024)
def _verify(folder: Path, name: str, length: int, checksum: str, *state: int) -> None:
    """Raise Damaged if the checksum differs. A file is read again only if it changed: 2 GB take about a second."""
    verify(folder, {name: [length, checksum]})
