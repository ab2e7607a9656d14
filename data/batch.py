"""The batches of clicks, in the form that models and torchrec's pipelines take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Batch(Pipelineable):
    """A batch of B rows.

    Attributes:
        dense: the dense columns, float32 [B, num_dense].
        sparse: the ids: keys are the features in schema order, values int64, stride B.
        label: the labels, float32 [B], 0 or 1.
        columns: further columns by name, [B] each: the group id (int64) and columns for evaluation (int64, float32 or
            bool).
        total: the rows of the whole batch, if this is one process's share of it; by default B.
        padding: the number of rows at the end that repeat another row, so that all shares have the same size; they do
            not count.
    """

    dense: Tensor
    sparse: KeyedJaggedTensor
    label: Tensor
    columns: dict[str, Tensor]
    total: int = 0
    padding: int = 0

    def __post_init__(self) -> None:
        self.total = self.total or len(self)

    def __len__(self) -> int:
        return self.label.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self._map(lambda value: value.to(torch.device(device), non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._map(lambda value: value.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        for value in (self.dense, self.sparse, self.label, *self.columns.values()):
            value.record_stream(stream)  # type: ignore[arg-type]

    def _map(self, function: Callable[[Any], Any]) -> Batch:
        columns = {name: function(column) for name, column in self.columns.items()}
        return Batch(
            function(self.dense), function(self.sparse), function(self.label), columns, self.total, self.padding
        )
