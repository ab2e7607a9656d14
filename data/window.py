"""The rows of some chunks of a file, and batches cut from them without a Python loop over rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from data.batch import Batch
from data.schema import Schema


@dataclass(frozen=True)
class Window:
    """The n rows of some chunks, in the order of the batches.

    Attributes:
        one_hot: the ids of the one-hot features, [features, n], int32 if all ids fit, else int64.
        multi_hot: the ids of all rows and the offsets [n + 1], by feature.
        dense: the dense columns, float32 [n, num_dense].
        label: the labels, float32 [n].
        columns: further columns by name, [n] each, int64, float32 or bool.
    """

    one_hot: Tensor
    multi_hot: dict[str, tuple[Tensor, Tensor]]
    dense: Tensor
    label: Tensor
    columns: dict[str, Tensor]

    @classmethod
    def read(cls, chunks: Sequence[pa.RecordBatch], schema: Schema, order: np.ndarray | None) -> Window:
        """Read the chunks; row i of the window is row `order[i]` of the chunks."""
        table = pa.Table.from_batches(chunks)

        def column(name: str, out: np.ndarray | None = None) -> np.ndarray:
            values = table.column(name).to_numpy()
            if out is None:
                out = np.empty(len(values), values.dtype)
            if order is None:
                out[:] = values
            else:
                np.take(values, order, out=out, mode="clip")  # the mode that writes into `out` directly
            return out

        single = [feature.name for feature in schema.features if not feature.multi_hot]
        wide = any(table.schema.field(name).type != pa.int32() for name in single)
        one_hot = np.empty((len(single), table.num_rows), np.int64 if wide else np.int32)
        for row, name in enumerate(single):
            values = column(name) if wide else column(name, one_hot[row])
            if wide:
                one_hot[row] = values
        dense = np.empty((len(schema.dense), table.num_rows), np.float32)
        for row, name in enumerate(schema.dense):
            column(name, dense[row])
        return cls(
            one_hot=torch.from_numpy(one_hot),
            multi_hot={f.name: _bags(table.column(f.name), order) for f in schema.features if f.multi_hot},
            dense=torch.from_numpy(dense).t(),
            label=torch.from_numpy(column(schema.label)),
            columns={name: _widest(torch.from_numpy(column(name))) for name in schema.carried},
        )


def _widest(column: Tensor) -> Tensor:
    return column if column.is_floating_point() or column.dtype == torch.bool else column.to(torch.int64)


def _bags(column: pa.ChunkedArray, order: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """Return the ids and offsets of a list column whose rows are taken in `order`."""
    array = column.combine_chunks()
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.to_numpy()
    if order is None:
        return torch.from_numpy(values[offsets[0] : offsets[-1]].copy()), torch.from_numpy(offsets - offsets[0])
    lengths = np.diff(offsets)[order]
    ends = np.cumsum(lengths)
    # Position of each value: where its row starts, plus its place inside the row.
    positions = np.repeat(offsets[:-1][order] - (ends - lengths), lengths) + np.arange(int(lengths.sum()))
    return torch.from_numpy(values[positions]), torch.from_numpy(np.concatenate([np.zeros(1, np.int64), ends]))


def collate(parts: Sequence[tuple[Window, int, int]], schema: Schema) -> Batch:
    """Make the batch of the rows begin <= row < end of each (window, begin, end)."""
    return Batch(
        dense=torch.cat([window.dense[begin:end] for window, begin, end in parts]).contiguous(),
        sparse=_sparse(parts, schema),
        label=torch.cat([window.label[begin:end] for window, begin, end in parts]),
        columns={
            name: torch.cat([window.columns[name][begin:end] for window, begin, end in parts])
            for name in schema.carried
        },
    )


def _sparse(parts: Sequence[tuple[Window, int, int]], schema: Schema) -> KeyedJaggedTensor:
    # Everything that the tensor can be asked for on the host is given here, so that no device is synchronised for it.
    size = sum(end - begin for _, begin, end in parts)
    ids = torch.cat([window.one_hot[:, begin:end] for window, begin, end in parts], dim=1).to(torch.int64)
    keys = schema.feature_names
    if not any(feature.multi_hot for feature in schema.features):
        lengths, offsets = _one_hot_lengths(len(keys), size)
        length_per_key, values = [size] * len(keys), ids.view(-1)
    else:
        one_hot = iter(ids)
        values_of, lengths_of = [], []
        for feature in schema.features:
            if feature.multi_hot:
                for window, begin, end in parts:
                    bag_values, bag_offsets = window.multi_hot[feature.name]
                    cut = bag_offsets[begin : end + 1]
                    values_of.append(bag_values[int(cut[0]) : int(cut[-1])].to(torch.int64))
                    lengths_of.append(cut.diff())
            else:
                values_of.append(next(one_hot))
                lengths_of.append(torch.ones(size, dtype=torch.int64))
        values, lengths, offsets = torch.cat(values_of), torch.cat(lengths_of), None
        length_per_key = lengths.view(len(keys), size).sum(dim=1).tolist()
    return KeyedJaggedTensor(
        keys=keys, values=values, lengths=lengths, offsets=offsets, stride=size, length_per_key=length_per_key
    )


@lru_cache(maxsize=8)
def _one_hot_lengths(num_features: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the lengths and offsets of a one-hot batch: the same tensors for each batch of that size."""
    return torch.ones(num_features * size, dtype=torch.int64), torch.arange(num_features * size + 1)
