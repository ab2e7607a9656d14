"""The loader of batches from an Arrow file of encoded rows: streamed, shuffled by (seed, epoch), resumable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.batch import Batch
from data.prefetch import prefetched
from data.schema import DataError, Schema
from data.window import Window, collate

WINDOW_ROWS = 1 << 20


class Loader:
    """An iterable of the batches of one split, in an order that depends only on (seed, epoch).

    To shuffle, the chunks of the file (16,384 rows) are permuted, then the rows inside windows of consecutive chunks
    that hold at least `window_rows` rows. A file that fits in one window is permuted as a whole. At most two windows
    are in memory. Skipped windows are not read, so `start_batch` is cheap.

    Args:
        path: the file that `data.encode` wrote.
        batch_size: the rows per batch; the last batch may be smaller.
        start_batch: the number of the first batch to yield; the batches are exactly those of an iteration from 0.
        drop_last: True to leave out a last batch that is smaller.
        window_rows: the number of rows within which rows are permuted.
        prefetch: the number of batches made ahead in a separate thread; 0 for none.
        share: the part of each batch to yield, as (part, parts), for `parts` processes. Parts have the same size; the
            last ones are padded.

    Raises:
        DataError: a number is out of range, or start_batch is beyond the last batch.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        start_batch: int = 0,
        drop_last: bool = False,
        window_rows: int = WINDOW_ROWS,
        prefetch: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        least = {"batch_size": (batch_size, 1), "window_rows": (window_rows, 1)}
        least |= {"seed": (seed, 0), "epoch": (epoch, 0), "prefetch": (prefetch, 0)}
        for name, (value, bound) in least.items():
            if value < bound:
                raise DataError(f"{name} must be at least {bound}, not {value}")
        if not 0 <= share[0] < share[1]:
            raise DataError(f"share is {share}: the part must be in [0, {share[1]})")
        self.path, self.schema, self.batch_size, self.share = path, schema, batch_size, share
        self.shuffle, self.seed, self.epoch, self.prefetch = shuffle, seed, epoch, prefetch
        with pa.memory_map(str(path)) as source:
            file = pa.ipc.open_file(source)
            last = file.num_record_batches - 1  # all others are as long as the first
            self._chunk_rows = [file.get_batch(0).num_rows] * last + [file.get_batch(last).num_rows]
        rows = sum(self._chunk_rows)
        self.num_rows = rows - rows % batch_size if drop_last else rows
        batches = -(-self.num_rows // batch_size)
        if not 0 <= start_batch <= batches:
            raise DataError(f"start_batch is {start_batch}, but {path.stem} has {batches} batches of {batch_size}")
        self.start_batch = start_batch
        self._windows = self._plan(window_rows)

    def __len__(self) -> int:
        """Return the number of batches of an iteration."""
        return -(-self.num_rows // self.batch_size) - self.start_batch

    def __iter__(self) -> Iterator[Batch]:
        return prefetched(self._batches, self.prefetch) if self.prefetch else self._batches()

    def _plan(self, window_rows: int) -> list[list[int]]:
        """Return the chunks of each window."""
        if not self.shuffle:
            return [[chunk] for chunk in range(len(self._chunk_rows))]
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self._chunk_rows)).tolist()
        windows: list[list[int]] = [[]]
        rows = 0
        for chunk in order:
            if rows >= window_rows:
                windows.append([])
                rows = 0
            windows[-1].append(chunk)
            rows += self._chunk_rows[chunk]
        return windows

    def _batches(self) -> Iterator[Batch]:
        position, first = 0, self.start_batch * self.batch_size
        parts: list[tuple[Window, int, int]] = []
        missing = self.batch_size
        with pa.memory_map(str(self.path)) as source:
            file = pa.ipc.open_file(source)
            for number, chunks in enumerate(self._windows):
                rows = sum(self._chunk_rows[chunk] for chunk in chunks)
                begin, end = max(first - position, 0), min(self.num_rows - position, rows)
                position += rows
                if begin >= end:
                    continue
                order = None
                if self.shuffle:
                    order = np.random.default_rng([self.seed, self.epoch, number]).permutation(rows)
                window = Window.read([file.get_batch(chunk) for chunk in chunks], self.schema, order)
                while begin < end:
                    stop = min(begin + missing, end)
                    parts.append((window, begin, stop))
                    missing -= stop - begin
                    begin = stop
                    if not missing:
                        yield self._collated(parts)
                        parts, missing = [], self.batch_size
        if parts:
            yield self._collated(parts)

    def _collated(self, parts: list[tuple[Window, int, int]]) -> Batch:
        part, number = self.share
        if number == 1:
            return collate(parts, self.schema)
        total = sum(end - begin for _, begin, end in parts)
        size = -(-total // number)
        mine, position = [], 0
        for window, begin, end in parts:
            low, high = (min(max(bound * size - position, 0), end - begin) for bound in (part, part + 1))
            mine.append((window, begin + low, begin + high))
            position += end - begin
        padding = size - sum(end - begin for _, begin, end in mine)
        last, _, end = parts[-1]
        batch = collate([*mine, *[(last, end - 1, end)] * padding], self.schema)
        batch.total, batch.padding = total, padding
        return batch
