"""The runs on behavior sequences: a click-through model reads each user's history, and poolings are compared."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass
from torch import Tensor, nn
from torch.nn import functional as F

import data
from data.requests import RequestBatch, Requests
from data.sequences import examples
from data.splits import SPLITS
from embcomp.graph.cluster_map import Side
from embcomp.methods import Method, Table
from experiments.config import ExperimentConfig, RunConfig
from experiments.config.options import hint, misfits, unknown
from experiments.config.problems import clicks_only_problems, data_problems, known_model, monitor_problems
from experiments.config.section import Positive, Section, Seeds, label_of, many, strict
from experiments.errors import InputError
from experiments.processes import distributed
from experiments.tasks.datasets import load_data
from experiments.tasks.kind import Kind
from experiments.tasks.metrics import sliced_metrics
from experiments.tasks.plans import Plans
from experiments.tasks.retrieval import embeddings
from experiments.tasks.sizing import BuiltModel, full_nbytes, sized
from recsys_models.behavior import POOLINGS, BehaviorModel
from recsys_models.search import ATTENTIONS, Search

_GIVEN = {"self", "items", "pooling", "categories", "num_dense", "options"}
"""The options that runs give a behavior model themselves."""


@pydantic_dataclass(frozen=True, kw_only=True, config=strict)
class PoolingConfig:
    """A pooling of `recsys_models.BehaviorModel`, and the model's options that go with it.

    Attributes:
        label: the name in tables and pictures.
        seeds: the seeds in place of the experiment's.
    """

    pooling: str
    options: dict[str, Any] = Field(default_factory=dict)
    label: str | None = None
    seeds: Seeds | None = None


@pydantic_dataclass(frozen=True, kw_only=True, config=strict)
class BehaviorConfig(Section):
    """The section of runs on behavior sequences, in which a click-through model reads each user's history.

    Attributes:
        task: "like", whether the item of an event is rated above 3, or "next", whether an item is the next one.
        length: the most events of a history.
        request: the number of consecutive events whose examples share the history before the first of them; a batch
            holds `training.batch_size` requests.
        poolings: the poolings to compare.
    """

    key = "behavior"

    task: Literal["like", "next"]
    length: Positive
    request: Positive = 1
    poolings: Annotated[tuple[PoolingConfig, ...], BeforeValidator(many), Field(min_length=1)]

    @property
    def pooling(self) -> PoolingConfig:
        """The pooling of one run."""
        return self.poolings[0]

    @property
    def seeds_of_run(self) -> tuple[int, ...] | None:
        return self.pooling.seeds

    def variants(self) -> Sequence[BehaviorConfig]:
        """Return the section of each run, with one pooling."""
        return [replace(self, poolings=(pooling,)) for pooling in self.poolings]

    def dataset(self, name: str) -> str:
        return f"{name} {self.task}"

    def label(self, label: str, method: str) -> str:
        pooling = self.pooling.label or label_of(self.pooling.pooling, self.pooling.options)
        return pooling if method == "Full" else f"{pooling}, {label}"

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        del values["poolings"]
        return {**values, "pooling": self.pooling.pooling, "options": self.pooling.options}


def problems(experiment: ExperimentConfig) -> Iterator[str]:
    """Yield the problems of an experiment on behavior sequences that can be found without data."""
    yield from data_problems(experiment.data, data.SEQUENCES)
    yield from monitor_problems(experiment, "auc")
    yield from clicks_only_problems(experiment)
    model_options: set[str] = set()
    for model in experiment.model:
        model_options |= set((yield from known_model(model, {"BehaviorModel": BehaviorModel}, _GIVEN)))
        if model.linear:
            yield "model.linear: BehaviorModel takes no first-order weights; leave it out"
    if any(optimizer.embedding for optimizer in experiment.optimizer):
        yield "optimizer.embedding: tables of behavior models are not fused; leave it out"
    for number, pooling in enumerate(experiment.section.poolings):
        yield from _pooling_problems(f"behavior.poolings[{number}]", pooling, model_options)
    for name, rows in experiment.slices.items():
        if rows.feature != "history":
            yield f"slices.{name}.feature: behavior runs have slices of 'history', not of {rows.feature!r}"


def _pooling_problems(key: str, pooling: PoolingConfig, model_options: set[str]) -> Iterator[str]:
    cls = POOLINGS.get(pooling.pooling)
    if cls is None:
        yield f"{key}.pooling: unknown pooling {pooling.pooling!r}{hint(pooling.pooling, POOLINGS)}"
        return
    classes = [cls, Search, *ATTENTIONS.values()] if issubclass(cls, Search) else [cls]
    known = {name for each in classes for name in inspect.signature(each.__init__).parameters} | model_options
    yield from unknown(f"{key}.options", pooling.options, known - _GIVEN - {"dim", "embedding_dim"})
    for each in (BehaviorModel, *classes):
        yield from misfits(f"{key}.options", pooling.options, each)


@dataclass(frozen=True)
class BehaviorTask:
    """The task of a run on behavior sequences; see `experiments.tasks.kind.Task`. Its table is "item"."""

    shown = ("auc", "gauc")
    validate_every = 1

    run: RunConfig
    config: BehaviorConfig
    pooling: PoolingConfig
    data: data.Sequences
    method: Method
    rows: int
    full_nbytes: int
    plans: Plans

    @classmethod
    def prepare(cls, run: RunConfig) -> BehaviorTask:
        config = run.section
        assert isinstance(config, BehaviorConfig)
        if run.method.table not in (None, "item"):
            raise InputError(f"method.table: there is no table {run.method.table!r}, only 'item'")
        sequences = load_data(data.load_sequences, run.data)
        tables = [Table("item", sequences.num_items, run.model.embedding_dim)]
        found = sized(run, tables, BehaviorTraining(sequences))
        return cls(run, config, config.pooling, sequences, found.method, found.rows, full_nbytes(tables), found.kept)

    def model(self, device: torch.device) -> BuiltModel:
        torch.manual_seed(self.run.seed)
        table = Table("item", self.data.num_items, self.run.model.embedding_dim)
        (items,) = embeddings(self.plans.plan(self.method, [table]), self.run.model)
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
        """Return the examples of a split. Seeds draw the negatives of training; other splits have fixed ones."""
        seed = self.run.seed if split == "train" else 0
        config = self.config
        return _requests(self.data, config.task, split, seed, config.request, config.length)

    @property
    def steps(self) -> int:
        return -(-len(self.requests("train")) // self.run.training.batch_size)

    def batches(self, epoch: int, start_batch: int) -> Iterator[RequestBatch]:
        size, share = self.run.training.batch_size, distributed.share()
        return self.requests("train").batches(size, self.run.seed, epoch, start_batch, share)

    def held_out(self, number: int, size: int) -> list[RequestBatch]:
        """Return some random batches of the valid split."""
        return list(islice(self.requests("valid").batches(size, self.run.seed), number))

    def loss(self, model: nn.Module, batch: RequestBatch) -> Tensor:
        logits = model(batch.candidates, batch.history, batch.mask)
        logits, label = logits[batch.asked], batch.label[batch.asked]
        if distributed.size() == 1:
            return F.binary_cross_entropy_with_logits(logits, label)
        # A share of the batch: the mean over processes is to be that over all candidates.
        each = F.binary_cross_entropy_with_logits(logits, label, reduction="sum")
        return each * (distributed.size() / batch.total)

    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> dict[str, float]:
        """Return metrics grouped by user; in the test split also for the slices by length of the history."""
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
        for name, limits in self.run.slices.items() if split == "test" else ():
            slices[name] = before >= limits.min_count
            if limits.max_count is not None:
                slices[name] &= before <= limits.max_count
        metrics = sliced_metrics(scores, labels, users, slices)
        return {f"{split}/{name}": value for name, value in metrics.items()}

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
        raise InputError("runs on behavior sequences have no table of users; methods that need pairs need [retrieval]")

    def sides(self) -> Mapping[str, Side]:
        self.edges()  # says that there are none
        return {}

    @property
    def _train(self) -> np.ndarray:
        return self.sequences.split() == SPLITS.index("train")


@lru_cache(maxsize=3)  # the three splits of one run
def _requests(sequences: data.Sequences, task: str, split: str, seed: int, size: int, length: int) -> Requests:
    try:
        return Requests.of(sequences, examples(sequences, task, split, seed), size, length)
    except data.DataError as error:
        raise InputError(f"task {task!r}: {error}") from error


BEHAVIOR = Kind("behavior", BehaviorConfig, data.SEQUENCES, problems, BehaviorTask.prepare)
