"""Runs on behaviour sequences: a click-through model reads each user's history, and what pools it is compared."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import data
from data.requests import RequestBatch, Requests
from data.sequences import examples
from data.splits import SPLITS
from embcomp.methods import Method, Table
from experiments.config import BehaviorConfig, PoolingConfig, RunConfig
from experiments.errors import InputError
from experiments.processes import distributed
from experiments.tasks.datasets import load_data
from experiments.tasks.metrics import sliced_metrics
from experiments.tasks.retrieval import embeddings
from experiments.tasks.sizing import BuiltModel, full_nbytes, sized
from recsys_models.behavior import POOLINGS, BehaviorModel


@dataclass(frozen=True)
class BehaviorTask:
    """What a run on behaviour sequences trains; see `experiments.tasks.task.Task`. Its table is "item"."""

    shown = ("auc", "gauc")
    validate_every = 1

    run: RunConfig
    config: BehaviorConfig
    pooling: PoolingConfig
    data: data.Sequences
    method: Method
    rows: int
    full_nbytes: int

    @classmethod
    def prepare(cls, run: RunConfig) -> BehaviorTask:
        assert run.behavior is not None
        assert run.pooling is not None
        if run.method.table not in (None, "item"):
            raise InputError(f"method.table: there is no table {run.method.table!r}, only 'item'")
        sequences = load_data(data.load_sequences, run.data)
        tables = [Table("item", sequences.num_items, run.model.embedding_dim)]
        method = sized(run, tables, BehaviorTraining(sequences))
        rows = sum(store.rows for store in method.plan(tables).stores.values())
        return cls(run, run.behavior, run.pooling, sequences, method, rows, full_nbytes(tables))

    def model(self, device: torch.device) -> BuiltModel:
        torch.manual_seed(self.run.seed)
        table = Table("item", self.data.num_items, self.run.model.embedding_dim)
        (items,) = embeddings(self.method.plan([table]), self.run.model)
        options = {**self.run.model.options, **self.pooling.options}
        if "seed" in inspect.signature(POOLINGS[self.pooling.pooling]).parameters:
            options = {"seed": self.run.seed, **options}  # other hashes, other collisions
        if self.pooling.pooling == "sim":
            options["categories"] = self._categories()
        try:
            model = BehaviorModel(items, pooling=self.pooling.pooling, **options)
        except (ValueError, TypeError) as error:
            raise InputError(f"pooling {self.pooling.pooling!r}: {error}") from error
        return BuiltModel(model.to(device), items)

    def requests(self, split: str) -> Requests:
        """Examples of a split. Seeds draw the negatives of training; those of the other splits are always the same."""
        seed = self.run.seed if split == "train" else 0
        config = self.config
        return _requests(_Key(self.data), config.task, split, seed, config.request, config.length)

    @property
    def steps(self) -> int:
        return -(-len(self.requests("train")) // self.run.training.batch_size)

    def batches(self, epoch: int, start_batch: int) -> Iterator[RequestBatch]:
        size, share = self.run.training.batch_size, distributed.share()
        return self.requests("train").batches(size, self.run.seed, epoch, start_batch, share)

    def loss(self, model: nn.Module, batch: RequestBatch) -> Tensor:
        logits = model(batch.candidates, batch.history, batch.mask)
        logits, label = logits[batch.asked], batch.label[batch.asked]
        if distributed.size() == 1:
            return F.binary_cross_entropy_with_logits(logits, label)
        # A share of the batch: the mean over processes is to be that over all candidates.
        each = F.binary_cross_entropy_with_logits(logits, label, reduction="sum")
        return each * (distributed.size() / batch.total)

    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> dict[str, float]:
        """Grouped by user; in the test split also for the slices by length of the history."""
        parts: list[tuple[Tensor, ...]] = []
        model = distributed.local(model)
        training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                size, share = self.run.training.eval_batch_size, distributed.share()
                for batch in self.requests(split).batches(size, share=share):
                    on_device = batch.to(device) if device.type != "cpu" else batch
                    logits = model(on_device.candidates, on_device.history, on_device.mask).float().cpu()
                    asked = batch.asked
                    each = (column.unsqueeze(1).expand_as(asked)[asked] for column in (batch.users, batch.before))
                    parts.append((logits[asked], batch.label[asked], *each))
        finally:
            model.train(training)
        if not parts:
            raise InputError(f"the {split} split of {self.run.dataset!r} is empty")
        scores, labels, users, before = (distributed.gathered(torch.cat(column)) for column in zip(*parts, strict=True))
        slices: dict[str, Tensor] = {}
        for name, part in self.run.slices.items() if split == "test" else ():
            slices[name] = before >= part.min_count
            if part.max_count is not None:
                slices[name] &= before <= part.max_count
        found = sliced_metrics(scores, labels, users, slices)
        return {f"{split}/{name}": value for name, value in found.items()}

    def _categories(self) -> Tensor:
        if self.data.categories is None:
            raise InputError(
                f"pooling 'sim' needs the items' categories, which the files of {self.run.data.name!r} lack"
            )
        return torch.from_numpy(self.data.categories)


@dataclass(frozen=True)
class BehaviorTraining:
    """The training split as methods see it; see `experiments.config.inputs.Training`."""

    sequences: data.Sequences

    def counts(self) -> Mapping[str, Tensor]:
        items = self.sequences.items[self._train]
        return {"item": torch.from_numpy(np.bincount(items, minlength=self.sequences.num_items))}

    def edges(self) -> Tensor:
        raise InputError("runs on behaviour sequences have no table of users; methods that need pairs need [retrieval]")

    @property
    def _train(self) -> np.ndarray:
        return self.sequences.split() == SPLITS.index("train")


class _Key:
    """Sequences as the key of a cache: by identity, since the arrays cannot be hashed."""

    def __init__(self, sequences: data.Sequences) -> None:
        self.sequences = sequences

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.sequences is other.sequences

    def __hash__(self) -> int:
        return id(self.sequences)


@lru_cache(maxsize=3)  # the three splits of one run
def _requests(key: _Key, task: str, split: str, seed: int, size: int, length: int) -> Requests:
    try:
        return Requests.of(key.sequences, examples(key.sequences, task, split, seed), size, length)
    except data.DataError as error:
        raise InputError(f"task {task!r}: {error}") from error
