"""Retrieval runs: a model ranks all items for each user; it is trained by a pairwise loss and evaluated by recall."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from pydantic.dataclasses import dataclass as pydantic_dataclass
from torch import Tensor, nn
from torch.nn import functional as F

import data
import embcomp
from data.triples import Triples, num_batches, triples
from embcomp.graph.cluster_map import Side
from embcomp.methods import Full, Method, Table
from embcomp.methods.base import Plan
from embcomp.nn import CompressedEmbedding
from embcomp.nn.table import make_stores
from experiments.config import ExperimentConfig, ModelConfig, RunConfig
from experiments.config.options import plain
from experiments.config.problems import clicks_only_problems, data_problems, known_model, monitor_problems
from experiments.config.section import Positive, Rate, Section, strict
from experiments.config.trained import with_vectors
from experiments.errors import InputError
from experiments.processes import distributed
from experiments.tasks.cold import ColdConfig, ColdItems, placed
from experiments.tasks.datasets import load_data
from experiments.tasks.kind import Kind
from experiments.tasks.plans import Plans
from experiments.tasks.ranking import pair_auc, rank_metrics
from experiments.tasks.sizing import BuiltModel, full_nbytes, sized
from recsys_models.build import RETRIEVAL_MODELS, build_retrieval
from recsys_models.losses import bpr_loss, directau_loss
from recsys_models.mf import MF

_START_STD = 0.1  # of LightGCN's tables, where the configuration says nothing


@pydantic_dataclass(frozen=True, kw_only=True, config=strict)
class RetrievalConfig(Section):
    """The section of retrieval runs, in which all items are ranked for each user.

    Attributes:
        loss: the loss: "bpr" and "bce" (binary cross-entropy) compare each pair with one random item, drawn anew at
            each step; "directau" needs none.
        gamma: the weight of uniformity in "directau".
        validate_every: the epochs between two evaluations of the valid split.
        cold: the settings of cold items, which are held out of training and ranked after a few interactions.
        widths: the numbers of first columns at which "bpr" is computed, all with the same weight, so that the vectors
            can be cut to any of them (Wang et al. 2024, arXiv 2406.07432); by default all columns alone.
        candidates: with `widths`, the number of random items for each pair, of which each width compares the one that
            it scores highest: negatives that the widths share would not make their orders agree.
    """

    key = "retrieval"
    compares_models = True

    loss: Literal["bpr", "directau", "bce"] = "bpr"
    gamma: Rate = 1.0
    validate_every: Positive = 1
    cold: ColdConfig | None = None
    widths: tuple[Positive, ...] = ()
    candidates: Positive = 1

    def to_dict(self) -> dict[str, Any]:
        nested = ("widths", "candidates") if not self.widths else ()  # keys of results that are older
        return {name: value for name, value in super().to_dict().items() if name not in nested}


def problems(experiment: ExperimentConfig) -> Iterator[str]:
    """Yield the problems of an experiment of retrieval runs that can be found without data."""
    config = experiment.section
    yield from data_problems(experiment.data, data.INTERACTIONS)
    yield from monitor_problems(experiment, "recall@20")
    yield from clicks_only_problems(experiment, retrieval=True)
    for model in experiment.model:
        yield from known_model(model, RETRIEVAL_MODELS, {"self", "users", "items", "edges"})
        if config.loss == "directau" and plain(model.name) == "neumf":
            yield "retrieval.loss: directau compares vectors, and NeuMF only has scores; take bpr or bce"
        if config.widths and max(config.widths) > model.embedding_dim:
            yield f"retrieval.widths: {max(config.widths)} columns, model.embedding_dim is {model.embedding_dim}"
        if config.widths and plain(model.name) == "neumf":
            yield "retrieval.widths: NeuMF has no vectors that could be cut; leave them out"
        if model.linear:
            yield "model.linear: retrieval models take no first-order weights; leave it out"
    if any(optimizer.embedding for optimizer in experiment.optimizer):
        yield "optimizer.embedding: tables of retrieval models are not fused; leave it out"
    if config.widths and config.loss != "bpr":
        yield f"retrieval.widths: they go with loss = 'bpr', not {config.loss!r}"
    if config.candidates > 1 and not config.widths:
        yield "retrieval.candidates: they go with widths; leave them out"
    if experiment.slices:
        yield "slices: a retrieval run has none; leave them out"


@dataclass(frozen=True)
class RetrievalTask:
    """The task of a retrieval run; see `experiments.tasks.kind.Task`. Its tables are "user_id" and "item_id"."""

    shown = ("recall@20", "ndcg@20")

    run: RunConfig
    config: RetrievalConfig
    data: data.Interactions
    tables: list[Table]
    method: Method
    rows: int
    full_nbytes: int
    plans: Plans
    cold: ColdItems | None = None

    @classmethod
    def prepare(cls, run: RunConfig) -> RetrievalTask:
        config = run.section
        assert isinstance(config, RetrievalConfig)
        if run.method.table is not None:
            raise InputError("method.table: retrieval runs compress the tables of users and items together")
        pairs = load_data(data.load_interactions, run.data)
        cold = ColdItems.drawn(pairs, config.cold, run.seed) if config.cold else None
        pairs = cold.pairs if cold else pairs
        tables = [Table(name, len(values), run.model.embedding_dim) for name, values in pairs.values.items()]
        found = sized(run, tables, RetrievalTraining(pairs))
        return cls(run, config, pairs, tables, found.method, found.rows, full_nbytes(tables), found.kept, cold)

    def model(self, device: torch.device) -> BuiltModel:
        torch.manual_seed(self.run.seed)
        config = self.run.model
        method = Full() if self.run.method.from_trained else self.method
        users, items = embeddings(self.plans.plan(method, self.tables), config)
        try:
            model = build_retrieval(config.name, users, items, edges=self.data.edges("train"), **config.options)
        except (ValueError, TypeError) as error:
            raise InputError(f"model {config.name!r}: {error}") from error
        return BuiltModel(model.to(device), nn.ModuleList([users, items]))

    @torch.no_grad()
    def fitted(self, built: BuiltModel) -> BuiltModel:
        """Return the same model with the method fitted to its trained full tables, without training."""
        model: Any = self.uncompressed(built).model
        names = [table.name for table in self.tables]
        trained = dict(zip(names, (model.users.weight, model.items.weight), strict=True))
        if isinstance(built.model, MF):
            embcomp.align_dot_product_(model.users.weight, model.items.weight)
        tables = nn.ModuleDict(dict(zip(names, (model.users, model.items), strict=True)))
        embcomp.compress_(tables, with_vectors(self.method, trained), init="warm")
        model.users, model.items = (tables[name] for name in names)
        return BuiltModel(model, nn.ModuleList([model.users, model.items]))

    @torch.no_grad()
    def uncompressed(self, built: BuiltModel) -> BuiltModel:
        """Return the same model with full tables in torch's own modules, as a user of embcomp would have it."""
        model: Any = built.model
        compressed: Any = built.embeddings.children()
        model.users, model.items = (
            nn.Embedding.from_pretrained(table.materialize().clone(), freeze=False) for table in compressed
        )
        return BuiltModel(model, nn.ModuleList([model.users, model.items]))

    def held_out(self, number: int, size: int) -> list[Triples]:
        """Return some batches of pairs of the valid split, with negatives."""
        edges = self.data.edges("valid")
        return list(islice(triples(edges, self.data.num_items, size, seed=self.run.seed), number))

    def training(self) -> RetrievalTraining:
        """Return the training split as methods see it."""
        return RetrievalTraining(self.data)

    @property
    def validate_every(self) -> int:
        return self.config.validate_every

    @property
    def steps(self) -> int:
        return num_batches(self.data.edges("train"), self.run.training.batch_size)

    def batches(self, epoch: int, start_batch: int) -> Iterator[Triples]:
        size, seed = self.run.training.batch_size, self.run.seed
        edges, num_items = self.data.edges("train"), self.data.num_items
        whole = triples(edges, num_items, size, seed=seed, epoch=epoch, start_batch=start_batch)
        return (batch.share(*distributed.share()) for batch in whole) if distributed.size() > 1 else whole

    def loss(self, model: nn.Module, batch: Triples) -> Tensor:
        """Return the loss of this process's share, weighted. Each process computes DirectAU over the whole batch."""
        if self.config.loss == "directau":
            vectors = model.look_up(batch.users, batch.positives.unsqueeze(1))  # type: ignore[operator]
            users, items = (distributed.gathered_rows(each.flatten(1), batch.total) for each in vectors)
            return directau_loss(users, items, self.config.gamma)
        rows = len(batch) - batch.padding
        if self.config.widths:
            return distributed.weighed(self._nested(model, batch, max(rows, 1)), rows, batch.total)
        scores = model(batch.users, torch.stack((batch.positives, batch.negatives), dim=1))
        scores = scores[: max(rows, 1)]
        if self.config.loss == "bce":
            labels = torch.tensor([1.0, 0.0]).to(scores).expand_as(scores)
            mean = F.binary_cross_entropy_with_logits(scores, labels)
        else:
            mean = bpr_loss(scores[:, :1], scores[:, 1:])
        return distributed.weighed(mean, rows, batch.total)

    def _nested(self, model: nn.Module, batch: Triples, rows: int) -> Tensor:
        """The mean of the losses of all widths, each with its own hardest candidate as the negative."""
        shape = (len(batch), self.config.candidates - 1)
        further = torch.randint(self.data.num_items, shape, device=batch.users.device)
        items = torch.cat([batch.positives.unsqueeze(1), batch.negatives.unsqueeze(1), further], 1)
        users, vectors = (each[:rows] for each in model.look_up(batch.users, items))  # type: ignore[operator]
        losses = []
        for width in self.config.widths:
            scores = (vectors[..., :width] @ users[:, :width].unsqueeze(2)).squeeze(2)
            losses.append(bpr_loss(scores[:, 0], scores[:, 1:].amax(1)))
        return torch.stack(losses).mean()

    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> dict[str, float]:
        """Evaluate the users that have items in `split`; items of earlier splits are not ranked."""
        model = distributed.local(model)
        before = ("train",) if split == "valid" else ("train", "valid")
        known = torch.cat([self.data.edges(earlier) for earlier in before], dim=1).to(device)
        wanted = self.data.edges(split).to(device)
        metrics = rank_metrics(model, known, wanted, self.data.num_items, self.run.training.eval_batch_size)
        metrics |= self._cold_metrics(model, known) if self.cold and split == "test" else {}
        return {f"{split}/{name}": value for name, value in metrics.items()}

    def _cold_metrics(self, model: nn.Module, known: Tensor) -> dict[str, float]:
        """Return `<metric>/first-n` of the cold items' pairs in the test split."""
        assert self.cold is not None
        assert self.config.cold is not None
        results: dict[str, float] = {}
        train, wanted = self.data.edges("train").to(known.device), self.cold.wanted.to(known.device)
        for n in self.config.cold.first:
            shown = self.cold.first(n).to(known.device)
            ranked = (torch.cat([known, shown], dim=1), wanted, self.data.num_items)
            pairs = torch.cat([train, shown], dim=1)
            with placed(model.items, self.method, self.tables, pairs, self.config.cold.k):  # type: ignore[arg-type]
                metrics = rank_metrics(model, *ranked, self.run.training.eval_batch_size)
                metrics["auc"] = pair_auc(model, *ranked, self.run.training.eval_batch_size)
            results |= {f"{name}/first-{n}": value for name, value in metrics.items()}
            results[f"rows/first-{n}"] = wanted.shape[1]
        return results


@dataclass(frozen=True)
class RetrievalTraining:
    """The training split as methods see it; see `experiments.config.inputs.Training`."""

    pairs: data.Interactions

    def counts(self) -> Mapping[str, Tensor]:
        return {table: self.pairs.counts(table) for table in self.pairs.values}

    def edges(self) -> Tensor:
        return self.pairs.edges("train")

    def sides(self) -> Mapping[str, Side]:
        return {"user_id": "users", "item_id": "items"}


def embeddings(plan: Plan, config: ModelConfig) -> list[CompressedEmbedding]:
    """Make an embedding for each table of the plan, initialised as configured."""
    stores = make_stores(plan, sparse=False, device=None, dtype=None)
    bound, std = config.init_uniform, config.init_normal
    for name, store in plan.stores.items():
        if store.init != "table":
            continue
        weight = stores[name].weight
        with torch.no_grad():
            weight.normal_(std=_START_STD if std is None else std) if bound is None else weight.uniform_(-bound, bound)
            weight.mul_(store.summands**-0.5)
    return [CompressedEmbedding.from_plan(plan, table_plan, stores) for table_plan in plan.tables]


RETRIEVAL = Kind("retrieval", RetrievalConfig, data.INTERACTIONS, problems, RetrievalTask.prepare)
