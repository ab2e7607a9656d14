"""Click-through runs: a model predicts the probability of a click; it is trained by log-loss and evaluated by AUC."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import polars as pl
import torch
from pydantic.dataclasses import dataclass as pydantic_dataclass
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

import data
import embcomp
from embcomp.graph.cluster_map import Side
from embcomp.methods import Method, Table
from embcomp.torchrec import CompressedEmbeddingBagCollection
from embcomp.torchrec.holders import stores_of
from experiments.config import ExperimentConfig, ModelConfig, RunConfig, SliceConfig
from experiments.config.inputs import counts_of
from experiments.config.options import plain
from experiments.config.problems import data_problems, known_model, monitor_problems
from experiments.config.section import Section, strict
from experiments.config.trained import with_vectors
from experiments.errors import InputError
from experiments.processes import distributed
from experiments.tasks import content as semantic
from experiments.tasks.datasets import load_data
from experiments.tasks.evaluate import evaluate
from experiments.tasks.kind import Kind
from experiments.tasks.names import table_name
from experiments.tasks.plans import Plans
from experiments.tasks.sizing import BuiltModel, full_nbytes, sized
from recsys_models.build import MODELS, RETRIEVAL_MODELS, build
from recsys_models.gmf import GMF

_GIVEN = {"self", "embeddings", "feature_names", "dims", "num_dense", "linear"}
"""The options that runs give a model themselves."""


@pydantic_dataclass(frozen=True, kw_only=True, config=strict)
class GraphConfig(Section):
    """The two features of clicks that are the sides of a graph; its edges are the pairs of the positive training rows.

    Attributes:
        user: the feature whose ids are users.
        item: the feature whose ids are items.
    """

    key = "graph"
    compares_models = True

    user: str
    item: str


def problems(experiment: ExperimentConfig) -> Iterator[str]:
    """Yield the problems of an experiment of click-through runs that can be found without data."""
    yield from data_problems(experiment.data, data.DATASETS)
    yield from monitor_problems(experiment, "auc")
    for model in experiment.model:
        if plain(model.name) in map(plain, RETRIEVAL_MODELS):
            yield f"model.name: {model.name} is a retrieval model; add a section [retrieval]"
            continue
        parameters = yield from known_model(model, MODELS, _GIVEN)
        if model.linear and parameters and "linear" not in parameters:
            yield f"model.linear: {model.name} takes no first-order weights; leave it out"
    fitted = [number for number, method in enumerate(experiment.methods) if method.from_trained]
    if fitted and any(optimizer.embedding for optimizer in experiment.optimizer):
        name = "after_training" if experiment.methods[fitted[0]].after_training else "fine_tuned"
        yield f"methods[{fitted[0]}].{name}: its full tables are not fused; leave out optimizer.embedding"


@dataclass(frozen=True)
class ClickTask:
    """The task of a click-through run; see `experiments.tasks.kind.Task`.

    Attributes:
        tables: the tables, one for each feature, in their order; see `table_name`.
        widths: the widths of the features, by name; a method may change them.
    """

    shown = ("auc", "logloss")
    validate_every = 1

    run: RunConfig
    data: data.ClickData
    tables: list[Table]
    method: Method
    rows: int
    widths: dict[str, int]
    full_nbytes: int
    plans: Plans

    @classmethod
    def prepare(cls, run: RunConfig) -> ClickTask:
        clicks = load_data(data.load, run.data)
        open_ids = [feature.name for feature in clicks.schema.features if feature.num_embeddings is None]
        if open_ids:
            raise InputError(f"feature {open_ids[0]!r} has an open id space; load the data with a vocabulary")
        check_slices(clicks, run.slices)
        names, alone = clicks.schema.feature_names, run.method.tables
        if unknown := [name for name in alone if name not in names]:
            raise InputError(f"method.table: no feature {unknown[0]!r}; there are {names}")
        width = run.model.embedding_dim
        tables = [Table(table_name(f.name), f.num_embeddings, width) for f in clicks.schema.features]
        chosen = [table for table, name in zip(tables, names, strict=True) if not alone or name in alone]
        extra = full_nbytes(_linear(tables)) if run.model.linear else 0
        training = ClickTraining(clicks, run.section if isinstance(run.section, GraphConfig) else None)
        found = sized(semantic.resolved(run, clicks), chosen, training, 0 if alone else extra)
        rows = found.rows + sum(table.num_embeddings or 0 for table in tables if table not in chosen)
        changed = {each.table.name: plan.embedding_dim(each) for plan in found.plans for each in plan.tables}
        widths = {name: changed.get(table_name(name), width) for name in names}
        return cls(run, clicks, tables, found.method, rows, widths, full_nbytes(tables) + extra, found.kept)

    def model(self, device: torch.device) -> BuiltModel:
        torch.manual_seed(self.run.seed)
        config = self.run.model
        collection = partial(CompressedEmbeddingBagCollection, device=device)
        schema = self.data.schema
        methods = {} if self.run.method.from_trained else self.plans.kept(self._methods())
        embeddings = collection(_configs(schema.feature_names, self.tables, config), methods)
        linear = None
        if config.linear:
            linear = collection(_configs(schema.feature_names, _linear(self.tables), config), {})
        alone = "".join(self.run.method.tables)
        content = semantic.dense_content(self.data, alone) if self.run.method.content else None
        try:
            model = build(
                config.name,
                embeddings,
                feature_names=schema.feature_names,
                num_dense=len(schema.dense) + (0 if content is None else content.shape[1]),
                dims=self.widths,
                linear=linear,
                **config.options,
            )
        except (ValueError, TypeError) as error:
            raise InputError(f"model {config.name!r}: {error}") from error
        if content is not None:
            model = semantic.WithContent(model, alone, content)
        return BuiltModel(model.to(device), nn.ModuleList([embeddings, *([linear] if linear else [])]))

    def _methods(self, trained: Mapping[str, Tensor] | None = None) -> dict[str, Method]:
        """Return the method by pattern; one that takes trained vectors is given those of full tables."""
        method = with_vectors(self.method, trained) if trained else self.method
        if self.run.method.apart:
            chosen = self.run.method.tables or self.data.schema.feature_names
            return {table_name(name): dataclasses.replace(method) for name in chosen}
        return dict.fromkeys(map(table_name, self.run.method.tables), method) or {"*": method}

    @torch.no_grad()
    def fitted(self, built: BuiltModel) -> BuiltModel:
        """Return the same model with the method fitted to its trained full tables, without training."""
        plain = self.uncompressed(built)
        tables, *others = plain.embeddings.children()
        assert isinstance(tables, EmbeddingBagCollection)
        if isinstance(built.model, GMF):
            users, items = (module.get_parameter("weight") for module in tables.embedding_bags.values())
            embcomp.align_dot_product_(users, items)
        compressed = nn.ModuleDict({"tables": tables})
        trained = {name: module.get_parameter("weight") for name, module in tables.embedding_bags.items()}
        embcomp.compress_(compressed, self._methods(trained), init="warm")
        _put(built.model, tables, compressed["tables"])
        return BuiltModel(built.model, nn.ModuleList([compressed["tables"], *others]))

    @torch.no_grad()
    def uncompressed(self, built: BuiltModel) -> BuiltModel:
        """Return the same model with full tables in torchrec's own collection, as a user of embcomp would have it."""
        full, *others = built.embeddings.children()
        assert isinstance(full, CompressedEmbeddingBagCollection)
        tables = EmbeddingBagCollection(_configs(self.data.schema.feature_names, self.tables, self.run.model))
        weights = {name: module.get_parameter("weight") for name, module in tables.embedding_bags.items()}
        for name, trained in stores_of(full).items():
            weights[name].copy_(trained)
        _put(built.model, full, tables)
        return BuiltModel(built.model, nn.ModuleList([tables, *others]))

    def held_out(self, number: int, size: int) -> list[data.Batch]:
        """Return some random batches of the valid split, or of the train split if the valid one is the test split."""
        split = "train" if self.data.same("valid", "test") else "valid"
        return list(islice(self.data.loader(split, size, shuffle=True, seed=self.run.seed), number))

    def training(self) -> ClickTraining:
        """Return the training split as methods see it."""
        return ClickTraining(self.data, self.run.section if isinstance(self.run.section, GraphConfig) else None)

    @property
    def steps(self) -> int:
        return len(self.data.loader("train", self.run.training.batch_size))

    def batches(self, epoch: int, start_batch: int) -> Iterator[data.Batch]:
        options = {"shuffle": True, "seed": self.run.seed, "epoch": epoch, "start_batch": start_batch}
        return iter(self.data.loader("train", self.run.training.batch_size, share=distributed.share(), **options))

    def loss(self, model: nn.Module, batch: data.Batch) -> Tensor:
        logits = model(batch.dense, batch.sparse)
        if batch.total == len(batch):
            return F.binary_cross_entropy_with_logits(logits, batch.label)
        # A share of the batch: the mean over processes is to be that over all rows that count.
        rows = len(batch) - batch.padding
        each = F.binary_cross_entropy_with_logits(logits[:rows], batch.label[:rows], reduction="sum")
        return each * (distributed.size() / batch.total)

    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> dict[str, float]:
        slices = self.run.slices if split == "test" else None
        size = self.run.training.eval_batch_size
        return evaluate(model, self.data, split, size, device=device, slices=slices)


@dataclass(frozen=True)
class ClickTraining:
    """The training split as methods see it; see `experiments.config.inputs.Training`."""

    clicks: data.ClickData
    graph: GraphConfig | None = None

    def counts(self) -> Mapping[str, Tensor]:
        return {table_name(feature): counts for feature, counts in counts_of(self.clicks.folder).items()}

    def edges(self) -> Tensor:
        """Return the (user, item) pairs of the positive rows, int64 [2, E]."""
        label = self.clicks.schema.label
        self.sides()  # checks them
        assert self.graph is not None
        rows = self.clicks.split("train").filter(pl.col(label) > 0).select(self.graph.user, self.graph.item)
        rows = rows.collect(engine="streaming")
        return torch.stack([column.cast(pl.Int64).to_torch() for column in rows.get_columns()])

    def sides(self) -> Mapping[str, Side]:
        if self.graph is None:
            raise InputError(
                f"{self.clicks.name} are clicks; for methods that need pairs of users and items, say in [graph] which "
                "features they are"
            )
        names = {feature.name: feature for feature in self.clicks.schema.features}
        for key, name in (("user", self.graph.user), ("item", self.graph.item)):
            if name not in names:
                raise InputError(f"graph.{key}: no feature {name!r}; there are {', '.join(names)}")
            if names[name].multi_hot:
                raise InputError(f"graph.{key}: {name!r} is multi-hot; a side of the graph needs one id per row")
        return {table_name(self.graph.user): "users", table_name(self.graph.item): "items"}


def check_slices(clicks: data.ClickData, slices: Mapping[str, SliceConfig]) -> None:
    """Raise InputError for a slice over a feature that does not exist or has several ids in a row."""
    known = {feature.name: feature for feature in clicks.schema.features}
    for name, config in slices.items():
        if config.feature not in known:
            raise InputError(f"slices.{name}.feature: no feature {config.feature!r}; there are {', '.join(known)}")
        if known[config.feature].multi_hot:
            raise InputError(f"slices.{name}.feature: {config.feature!r} is multi-hot; slices need one id per row")


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module by another, wherever it is in the model."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child is old:
                setattr(module, name, new)


def _linear(tables: Sequence[Table]) -> list[Table]:
    return [dataclasses.replace(table, embedding_dim=1) for table in tables]


def _configs(features: Sequence[str], tables: Sequence[Table], config: ModelConfig) -> list[EmbeddingBagConfig]:
    bound, std = config.init_uniform, config.init_normal
    start: dict[str, Any] = {}
    if bound is not None:
        start = {"weight_init_min": -bound, "weight_init_max": bound}
    if std is not None:
        start = {"init_fn": partial(nn.init.normal_, std=std)}
    return [
        EmbeddingBagConfig(
            name=table.name,
            feature_names=[feature],
            num_embeddings=int(table.num_embeddings or 0),
            embedding_dim=table.embedding_dim,
            **start,
        )
        for feature, table in zip(features, tables, strict=True)
    ]


CLICKS = Kind("clicks", GraphConfig, data.DATASETS, problems, ClickTask.prepare)
