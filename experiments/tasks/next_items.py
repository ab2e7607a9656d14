"""Next-item runs: a model reads each user's events and ranks all items for the last event, which is held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any

import torch
from pydantic.dataclasses import dataclass as pydantic_dataclass
from torch import Tensor, nn

import data
import embcomp
from data.next_items import HistoryBatch, NextItems
from embcomp.graph.cluster_map import Side
from embcomp.methods import Method, Table
from experiments.config import ExperimentConfig, RunConfig
from experiments.config.codes import code_problems
from experiments.config.options import plain
from experiments.config.problems import clicks_only_problems, data_problems, known_model, monitor_problems
from experiments.config.section import NotNegative, Positive, Rate, Section, strict
from experiments.errors import InputError
from experiments.processes import distributed
from experiments.tasks.content import ItemContent, codes_of, with_codes
from experiments.tasks.datasets import load_data
from experiments.tasks.kind import Kind
from experiments.tasks.next_ranks import next_item_metrics, ranks_of
from experiments.tasks.plans import Plans
from experiments.tasks.retrieval import embeddings
from experiments.tasks.sizing import BuiltModel, full_nbytes, sized
from recsys_models.build import SEQUENCE_MODELS, build_sequence, reads_codes
from recsys_models.code_levels import CodeLevels
from recsys_models.losses import sampled_softmax_loss, softmax_loss
from recsys_models.sequence import SequenceModel


@pydantic_dataclass(frozen=True, kw_only=True, config=strict)
class NextItemsConfig(Section):
    """The section of next-item runs: each user's last event is test, the one before it valid.

    Attributes:
        length: the most events of a history; the train split is cut into windows of this length, and a batch holds
            `training.batch_size` windows.
        core: the least number of events of users and items; others are left out, until none has fewer.
        negatives: the number of items drawn for each batch, by how often they occur in training to the power of
            `power`, with the log-Q correction; 0 for cross-entropy over all items.
        power: see `negatives`.
        validate_every: the epochs between two evaluations of the valid split.
        codes: the tokenizer of the items' content and its settings, as for SemanticIds, for models that read codes
            (H2Rec). Rows and codes of the levels count as bytes of the tables.
    """

    key = "next_items"
    compares_models = True

    length: Positive = 200
    core: Positive = 5
    negatives: NotNegative = 0
    power: Rate = 1.0
    validate_every: Positive = 1
    codes: dict[str, Any] | None = None

    @property
    def needs_content(self) -> bool:
        return self.codes is not None

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        return {name: value for name, value in values.items() if name != "codes" or value is not None}


def problems(experiment: ExperimentConfig) -> Iterator[str]:
    """Yield the problems of an experiment of next-item runs that can be found without data."""
    config = experiment.section
    yield from data_problems(experiment.data, data.SEQUENCES)
    yield from monitor_problems(experiment, "ndcg@10")
    if config.codes is not None:
        yield from code_problems("next_items", {"codes": config.codes})
    yield from clicks_only_problems(experiment)
    for model in experiment.model:
        yield from known_model(model, SEQUENCE_MODELS, {"self", "items", "length", "codes", "codebook_size"})
        cls = {plain(name): cls for name, cls in SEQUENCE_MODELS.items()}.get(plain(model.name))
        if cls is not None and reads_codes(cls) and config.codes is None:
            yield f"next_items.codes: {cls.__name__} reads semantic codes: name a tokenizer, levels and codebook_size"
        if model.linear:
            yield "model.linear: sequence models take no first-order weights; leave it out"
    if any(optimizer.embedding for optimizer in experiment.optimizer):
        yield "optimizer.embedding: tables of sequence models are not fused; leave it out"
    for name, rows in experiment.slices.items():
        if rows.feature != "item":
            yield f"slices.{name}.feature: next-item runs have slices of 'item', not of {rows.feature!r}"


@dataclass(frozen=True)
class NextItemsTask:
    """The task of a next-item run; see `experiments.tasks.kind.Task`. Its table is "item"."""

    shown = ("recall@10", "ndcg@10")

    run: RunConfig
    config: NextItemsConfig
    data: NextItems
    table: Table
    method: Method
    rows: int
    full_nbytes: int
    codes: Mapping[str, Any]
    plans: Plans

    @classmethod
    def prepare(cls, run: RunConfig) -> NextItemsTask:
        config = run.section
        assert isinstance(config, NextItemsConfig)
        if run.method.table not in (None, "item"):
            raise InputError(f"method.table: there is no table {run.method.table!r}, only 'item'")
        events = _events(load_data(data.load_sequences, run.data), config.core)
        content = ItemContent(run.data.name, events)
        codes, added = _codes(run, config, content)
        table = Table("item", events.num_items, run.model.embedding_dim)
        found = sized(with_codes(run, content), [table], NextItemsTraining(events), added=added)
        return cls(run, config, events, table, found.method, found.rows, full_nbytes([table]), codes, found.kept)

    def model(self, device: torch.device) -> BuiltModel:
        torch.manual_seed(self.run.seed)
        config = self.run.model
        (items,) = embeddings(self.plans.plan(self.method, [self.table]), config)
        try:
            model = build_sequence(config.name, items, length=self.config.length, **self.codes, **config.options)
        except (ValueError, TypeError) as error:
            raise InputError(f"model {config.name!r}: {error}") from error
        tables = [items, *(module for module in model.modules() if isinstance(module, CodeLevels))]
        return BuiltModel(model.to(device), nn.ModuleList(tables))

    @property
    def validate_every(self) -> int:
        return self.config.validate_every

    @property
    def steps(self) -> int:
        return self.data.num_batches(self.config.length, self.run.training.batch_size)

    def batches(self, epoch: int, start_batch: int) -> Iterator[HistoryBatch]:
        size, seed = self.run.training.batch_size, self.run.seed
        return self.data.batches(self.config.length, size, seed, epoch, start_batch, distributed.share())

    def held_out(self, number: int, size: int) -> list[HistoryBatch]:
        """Return some batches of the train split: the valid split has one event a user, which is no training batch."""
        config = self.config
        return list(islice(self.data.batches(config.length, size, self.run.seed, 0, 0, distributed.share()), number))

    def loss(self, model: nn.Module, batch: HistoryBatch) -> Tensor:
        """Return the loss of this process's share, weighted."""
        queries, targets, penalty = model.examples(batch.history, batch.mask)  # type: ignore[operator]
        whole = distributed.local(model)
        assert isinstance(whole, SequenceModel)
        if not len(targets):  # nothing is left for this process, but all parameters need a gradient
            return (queries.sum() + whole.vectors().sum()) * 0.0
        if self.config.negatives:
            log_q = self._log_q.to(queries.device)
            sampled = torch.multinomial(log_q.exp(), self.config.negatives, replacement=True)
            vectors = whole.vectors(torch.cat([targets, sampled]))  # one look-up for both
            positives, negatives = vectors.split([len(targets), len(sampled)])
            mean = sampled_softmax_loss(queries, positives, targets, negatives, sampled, log_q[sampled])
        else:
            mean = softmax_loss(queries, whole.vectors(), targets)
        total = torch.tensor(len(targets), device=queries.device)
        distributed.sum_(total)
        mean = distributed.weighed(mean, len(targets), int(total))
        return mean if penalty is None else mean + penalty

    @cached_property
    def _log_q(self) -> Tensor:
        """The log of the probability that each item is drawn; one that never occurs counts as one event."""
        weights = self.data.counts().clamp(min=1).double() ** self.config.power
        return (weights / weights.sum()).log().float()

    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> dict[str, float]:
        """Rank all items but those of the user's own past; in the test split also by slices of the target."""
        whole = distributed.local(model)
        assert isinstance(whole, SequenceModel)
        size = self.run.training.eval_batch_size
        ranks = ranks_of(whole, self.data, split, self.config.length, size, device)
        slices: dict[str, Tensor] = {}
        seen = self.data.counts()[self.data.targets(split)]
        for name, limits in self.run.slices.items() if split == "test" else ():
            slices[name] = seen >= limits.min_count
            if limits.max_count is not None:
                slices[name] &= seen <= limits.max_count
        return {f"{split}/{name}": value for name, value in next_item_metrics(ranks, slices).items()}


@dataclass(frozen=True)
class NextItemsTraining:
    """The training split as methods see it; see `experiments.config.inputs.Training`."""

    events: NextItems

    def counts(self) -> Mapping[str, Tensor]:
        return {"item": self.events.counts()}

    def edges(self) -> Tensor:
        raise InputError("next-item runs have no table of users; methods that need pairs need [retrieval]")

    def sides(self) -> Mapping[str, Side]:
        self.edges()  # says that there are none
        return {}


@lru_cache(maxsize=1)
def _events(sequences: data.Sequences, core: int) -> NextItems:
    try:
        return NextItems.of(sequences, core)
    except data.DataError as error:
        raise InputError(f"next_items.core: {error}") from error


def _codes(run: RunConfig, config: NextItemsConfig, content: ItemContent) -> tuple[dict[str, Any], int]:
    """Return the arguments of a model that reads codes, beside its options, and the bytes that it holds for them."""
    if config.codes is None:
        return {}, 0
    try:
        codes, size = codes_of(content, config.codes)
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"next_items.codes = {config.codes}: {error}") from error
    levels = CodeLevels(codes, run.model.embedding_dim, size)
    return {"codes": codes, "codebook_size": size}, embcomp.served_nbytes(levels)


NEXT_ITEMS = Kind("next_items", NextItemsConfig, data.SEQUENCES, problems, NextItemsTask.prepare)
