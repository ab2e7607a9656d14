"""A run's configuration -> the things it names: data, tables, method, model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig

import data
import embcomp
from embcomp.methods import METHODS, Method, Table
from embcomp.methods.base import FLOAT_BYTES
from embcomp.torchrec import CompressedEmbeddingBagCollection
from experiments import semantic
from experiments.config import DataConfig, MethodConfig, ModelConfig, RunConfig, SliceConfig
from experiments.errors import Infeasible, InputError
from recsys_models.build import build


@dataclass(frozen=True)
class Task:
    """What a run trains.

    Attributes:
        tables: one for each feature.
        rows: of all stores of the tables together.
        widths: of the features, by name; a method may change them.
        full_nbytes: of the uncompressed tables.
    """

    run: RunConfig
    data: data.ClickData
    tables: list[Table]
    method: Method
    rows: int
    widths: dict[str, int]
    full_nbytes: int

    def model(self, device: torch.device) -> BuiltModel:
        """A new model, its weights drawn from the run's seed."""
        torch.manual_seed(self.run.seed)
        config = self.run.model
        collection = partial(CompressedEmbeddingBagCollection, device=device)
        embeddings = collection(_configs(self.tables, config), {self.run.method.table or "*": self.method})
        linear = collection(_configs(_linear(self.tables), config), {}) if config.linear else None
        schema = self.data.schema
        content = semantic.dense_content(self.data, self.run.method.table) if self.run.method.content else None
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
            model = semantic.WithContent(model, str(self.run.method.table), content)
        return BuiltModel(model.to(device), nn.ModuleList([embeddings, *([linear] if linear else [])]))


@dataclass(frozen=True)
class BuiltModel:
    """A model, and the part of it that holds its tables."""

    model: nn.Module
    embeddings: nn.Module

    @property
    def nbytes(self) -> int:
        """Bytes of tables and maps."""
        return embcomp.nbytes(self.embeddings)


def prepare(run: RunConfig) -> Task:
    """Load the data and size the method.

    Raises:
        InputError: bad data, or options that the method rejects at any budget.
        Infeasible: the method cannot serve this budget.
    """
    clicks = load_data(run.data)
    open_ids = [feature.name for feature in clicks.schema.features if feature.num_embeddings is None]
    if open_ids:
        raise InputError(f"feature {open_ids[0]!r} has an open id space; load the data with a vocabulary")
    check_slices(clicks, run.slices)
    tables = [Table(f.name, f.num_embeddings, run.model.embedding_dim) for f in clicks.schema.features]
    chosen = [table for table in tables if run.method.table in (None, table.name)]
    if not chosen:
        raise InputError(f"method.table: no feature {run.method.table!r}; there are {[t.name for t in tables]}")
    extra = full_nbytes(_linear(tables)) if run.model.linear else 0
    full = full_nbytes(tables) + extra
    counts = {"counts": counts_of(clicks.folder)} if "counts" in _fields(run.method) else {}
    seeded = {"seed": run.seed} if "seed" in _fields(run.method) else {}  # other seeds, other collisions
    options = {**counts, **seeded, **run.method.options}
    if "codes" in options:
        options = semantic.resolve(options, clicks, run.method.table)
    alone = run.method.table is not None
    method = size(
        run.method.method, chosen, options, run.budget, full_nbytes(chosen) if alone else full, 0 if alone else extra
    )
    plan = method.plan(chosen)
    rows = sum(store.rows for store in plan.stores.values())
    rows += sum(table.num_embeddings or 0 for table in tables if table not in chosen)
    widths = {table.name: table.embedding_dim for table in tables}
    widths |= {part.table.name: plan.embedding_dim(part) for part in plan.tables}
    return Task(run, clicks, tables, method, rows, widths, full)


def preflight(runs: Iterable[RunConfig]) -> None:
    """Size every method and build every model once, so that bad input is said before anything trains.

    Raises:
        InputError: see `prepare`; names the run.
    """
    built: set[str] = set()
    for run in runs:
        try:
            task = prepare(run)
            if (model := repr((run.experiment, run.data, run.model))) not in built:
                task.model(torch.device("cpu"))
                built.add(model)
        except Infeasible:
            continue
        except InputError as error:
            raise InputError(f"{run.experiment}/{run.name}: {error}") from error


def size(
    name: str,
    tables: Sequence[Table],
    options: dict[str, Any],
    budget: tuple[str, int | float] | None,
    full: int,
    extra: int,
) -> Method:
    """The method at its budget; `extra` bytes of the budget are spent already."""
    cls = METHODS[name]
    kind, value = budget or (None, 0)
    try:
        if kind is None or kind == "rows":
            method = cls(**options, **({"rows": value} if kind else {}))
        else:
            nbytes = int(value * full if kind == "share" else value) - extra
            method = cls.for_budget(tables, nbytes, **options)
        method.plan(tables)
    except TypeError as error:
        raise InputError(f"{name} cannot take its options: {error}") from error
    except ValueError as error:
        if kind is None or not _serves_somewhere(cls, tables, options, full):
            raise InputError(str(error)) from error
        raise Infeasible(str(error)) from error
    return method


def _serves_somewhere(cls: type[Method], tables: Sequence[Table], options: dict[str, Any], full: int) -> bool:
    """Whether more bytes would help: otherwise the options are at fault, not the budget."""
    try:
        cls.for_budget(tables, 4 * full + 2**20, **options)
    except ValueError:
        return False
    return True


def full_nbytes(tables: Sequence[Table]) -> int:
    return sum((table.num_embeddings or 0) * table.embedding_dim * FLOAT_BYTES for table in tables)


def load_data(config: DataConfig) -> data.ClickData:
    try:
        return data.load(config.name, **config.options)
    except data.DataError as error:
        raise InputError(f"data {config.name!r}: {error}") from error


def check_slices(clicks: data.ClickData, slices: Mapping[str, SliceConfig]) -> None:
    """Raises InputError for a slice over a feature that does not exist or has several ids in a row."""
    known = {feature.name: feature for feature in clicks.schema.features}
    for name, part in slices.items():
        if part.feature not in known:
            raise InputError(f"slices.{name}.feature: no feature {part.feature!r}; there are {', '.join(known)}")
        if known[part.feature].multi_hot:
            raise InputError(f"slices.{name}.feature: {part.feature!r} is multi-hot; slices need one id per row")


@cache
def counts_of(folder: Path) -> dict[str, Tensor]:
    """Feature -> how often each id occurs in training, of the encoded data in `folder`."""
    clicks = data.ClickData(folder)
    return {feature: clicks.counts(feature) for feature in clicks.schema.feature_names}


def _fields(method: MethodConfig) -> set[str]:
    return {field.name for field in dataclasses.fields(METHODS[method.method])}


def _linear(tables: Sequence[Table]) -> list[Table]:
    return [dataclasses.replace(table, embedding_dim=1) for table in tables]


def _configs(tables: Sequence[Table], config: ModelConfig) -> list[EmbeddingBagConfig]:
    bound, std = config.init_uniform, config.init_normal
    start: dict[str, Any] = {}
    if bound is not None:
        start = {"weight_init_min": -bound, "weight_init_max": bound}
    if std is not None:
        start = {"init_fn": partial(nn.init.normal_, std=std)}
    return [
        EmbeddingBagConfig(
            name=table.name,
            feature_names=[table.name],
            num_embeddings=int(table.num_embeddings or 0),
            embedding_dim=table.embedding_dim,
            **start,
        )
        for table in tables
    ]
