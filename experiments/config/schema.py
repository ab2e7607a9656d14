"""An experiment as frozen dataclasses, as the TOML file says it.

    experiment = "unified-ml1m"           # by default the name of the file
    seeds = [0, 1, 2]
    data = { name = "ml-1m" }
    model = { name = "DCN", embedding_dim = 30, init_uniform = 0.05, options = { cross_layers = 1, hidden = [192] } }
    optimizer = { name = "Adam", lr = 1e-3 }
    training = { batch_size = 128, epochs = 10 }

    [[methods]]
    method = "UnifiedEmbedding"
    options = { chunk_dim = 15 }
    share = [0.5, 0.1]

gives the runs models x methods x budgets x seeds; a list of values in the optimizer, `lr = [1e-3, 1e-2]`, gives runs
for each of them. The section of a kind in `experiments.tasks`, such as [retrieval], makes them runs of that kind.
`experiments.load` reads and checks such a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, is_dataclass, replace
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from experiments.config.section import NotNegative, Positive, Rate, Section, Seeds, label_of, many, strict

NO_SECTION = Section()


def _swept(value: Any) -> Any:
    """Tables of settings -> a table for each combination of the values that are lists."""
    tables = []
    for table in many(value):
        if not isinstance(table, dict):
            tables.append(table)
            continue
        lists = [value if isinstance(value, list) else [value] for value in table.values()]
        tables += [dict(zip(table, values, strict=True)) for values in product(*lists)]
    return tuple(tables)


def _listed(value: Any) -> Any:
    """A list -> a tuple; one value stays as it is."""
    return tuple(value) if isinstance(value, list) else value


Monitor = Literal[
    "valid/auc",
    "valid/gauc",
    "valid/logloss",
    "valid/ne",
    "valid/recall@10",
    "valid/recall@20",
    "valid/recall@50",
    "valid/ndcg@10",
    "valid/ndcg@20",
    "valid/ndcg@50",
]


@dataclass(frozen=True, kw_only=True, config=strict)
class DataConfig:
    """A data set and the options of its reader (`data.load`); the option `seed = "run"` takes the seed of each run.

    A random split then differs from run to run, as the start of the weights does.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    def for_seed(self, seed: int) -> DataConfig:
        """With the seed of a run where it is asked for."""
        if self.options.get("seed") != "run":
            return self
        return replace(self, options={**self.options, "seed": seed})


@dataclass(frozen=True, kw_only=True, config=strict)
class ModelConfig:
    """A model of `recsys_models` and its options.

    Attributes:
        embedding_dim: of every feature.
        init_uniform: tables start uniform in +- this.
        init_normal: tables start normal with this standard deviation. Without either, torchrec's own start, or in
            retrieval runs that of LightGCN, normal with 0.1.
        linear: give the model first-order weights of their own, a full table of width 1 per feature.
        options: of the model.
    """

    name: str
    embedding_dim: Positive
    init_uniform: Rate | None = None
    init_normal: Rate | None = None
    linear: bool = False
    options: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=strict)
class OptimizerConfig:
    """How parameters move. A list of values, of any of the keys, is swept: there is a run for each.

    Attributes:
        name: optimizer of the parameters.
        weight_decay: L2 on all parameters but the tables.
        embedding: fused optimizer of the tables, updating them in backward; None puts them under `name` as well.
        embedding_lr: learning rate of the tables, by default `lr`.
        embedding_weight_decay: L2 on the whole tables at every step, decay / 2 * ||E||^2 in the loss, which is what
            the `embedding_regularizer` of FuxiCTR's (BARS's) recipes adds.
        max_grad_norm: clip gradients to this norm.
    """

    name: Literal["Adam", "Adagrad", "SGD"] = "Adam"
    lr: Rate = 1e-3
    weight_decay: Rate = 0.0
    embedding: Literal["RowWiseAdagrad", "Adagrad", "SGD"] | None = None
    embedding_lr: Rate | None = None
    embedding_weight_decay: Rate = 0.0
    max_grad_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


@dataclass(frozen=True, kw_only=True, config=strict)
class TrainingConfig:
    """How long to train.

    Attributes:
        epochs: at most so many.
        monitor: metric of the valid split that says which epoch was best; its weights are tested. A retrieval run
            names a recall or ndcg.
        patience: stop after so many epochs in a row without a new best.
        min_delta: a new best is better by more than this.
        lr_factor: learning rates are multiplied by this after an epoch without a new best.
    """

    batch_size: Positive
    eval_batch_size: Positive = 8192
    epochs: Positive
    monitor: Monitor = "valid/auc"
    patience: Positive = 2
    min_delta: Rate = 1e-6
    lr_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_lr: Rate = 1e-6

    @property
    def maximise(self) -> bool:
        return self.monitor not in ("valid/logloss", "valid/ne")


@dataclass(frozen=True, kw_only=True, config=strict)
class SliceConfig:
    """Rows whose id of `feature` occurs min_count <= n <= max_count times in training: metrics `test/auc/<slice>`.

    In runs on behavior sequences `feature` is "history", and n the events that the user has before the row.
    """

    feature: str
    min_count: NotNegative = 0
    max_count: NotNegative | None = None


@dataclass(frozen=True, kw_only=True, config=strict)
class MethodConfig:
    """A method by its class name, its options, and at most one kind of budget.

    Attributes:
        rows: the method's `rows`.
        nbytes: bytes of tables and maps.
        share: bytes of tables and maps, as a share of the full tables'.
        label: name in tables and pictures.
        seeds: in place of the experiment's.
        table: the only feature, or features, that the method compresses and that budgets are of; the others stay full.
        content: the content vectors of `table` are dense columns of the model too.
        after_training: the full tables are trained, then the method is fitted to them (`compress_` with init="warm")
            and not trained; of two tables that meet in a dot product alone, aligned first.
    """

    method: str
    options: dict[str, Any] = Field(default_factory=dict)
    rows: Annotated[tuple[Positive, ...], BeforeValidator(many)] | None = None
    nbytes: Annotated[tuple[Positive, ...], BeforeValidator(many)] | None = None
    share: Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(many)] | None = None
    label: str | None = None
    seeds: Seeds | None = None
    table: Annotated[str | tuple[str, ...] | None, BeforeValidator(_listed)] = None
    content: bool = False
    after_training: bool = False

    @property
    def tables(self) -> tuple[str, ...]:
        """The names in `table`; none where the method compresses all features."""
        return many(self.table) if self.table else ()

    @property
    def budgets(self) -> list[tuple[str, int | float] | None]:
        """(kind, value) of each budget; [None] where there is none."""
        given = [(kind, value) for kind in ("rows", "nbytes", "share") for value in getattr(self, kind) or ()]
        return list(given) or [None]


@dataclass(frozen=True, kw_only=True, config=strict)
class ExperimentConfig:
    """One TOML file.

    Attributes:
        kind: name of the kind of runs, from the section that the file has.
        section: settings of that kind.
    """

    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    data: DataConfig
    model: Annotated[tuple[ModelConfig, ...], BeforeValidator(many), Field(min_length=1)]
    optimizer: Annotated[tuple[OptimizerConfig, ...], BeforeValidator(_swept), Field(min_length=1)] = (
        OptimizerConfig(),
    )
    training: TrainingConfig
    slices: dict[str, SliceConfig] = Field(default_factory=dict)
    methods: Annotated[tuple[MethodConfig, ...], BeforeValidator(many), Field(min_length=1)]
    seeds: Seeds = (0,)
    kind: str = "clicks"
    section: Any = NO_SECTION

    def runs(self) -> Iterator[RunConfig]:
        """Models x optimizers x sections x methods x budgets x seeds; seeds outermost: a part shows the whole."""
        given = [asdict(optimizer) for optimizer in self.optimizer]
        swept = [key for key in given[0] if any(other[key] != given[0][key] for other in given)]
        entries = [
            (model, optimizer, section, method, budget, section.seeds_of_run or method.seeds or self.seeds)
            for model in self.model
            for optimizer in self.optimizer
            for section in self.section.variants()
            for method in self.methods
            for budget in method.budgets
        ]
        for seed in dict.fromkeys(seed for *_, seeds in entries for seed in seeds):
            for model, optimizer, section, method, budget, seeds in entries:
                if seed in seeds:
                    yield RunConfig(
                        experiment=self.experiment,
                        data=self.data.for_seed(seed),
                        model=model,
                        optimizer=optimizer,
                        swept=tuple(swept),
                        training=self.training,
                        kind=self.kind,
                        section=section,
                        slices=self.slices,
                        method=replace(method, rows=None, nbytes=None, share=None, seeds=None),
                        budget=budget,
                        seed=seed,
                    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training: a method at one budget (kind, value) with one seed.

    Attributes:
        kind: a name in `experiments.tasks.task.KINDS`.
        section: settings of that kind.
        swept: keys of the optimizer in which the experiment's runs differ.
    """

    experiment: str
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    kind: str
    section: Any
    slices: dict[str, SliceConfig]
    method: MethodConfig
    budget: tuple[str, int | float] | None
    seed: int
    swept: tuple[str, ...] = ()

    @property
    def dataset(self) -> str:
        """The data set as tables and pictures call it."""
        return self.section.dataset(self.data.name)

    @property
    def label(self) -> str:
        """The method and its options, and what is swept of the optimizer, as tables and pictures call them."""
        method = self.method.label or label_of(self.method.method, self.method.options)
        label = self.section.label(method, self.method.method)
        return ", ".join([label, *(f"{key}={getattr(self.optimizer, key)}" for key in self.swept)])

    @property
    def name(self) -> str:
        """The name of the run: unique in the experiment, fit for a file name."""
        budget = f"-{self.budget[0]}{self.budget[1]:g}" if self.budget and self.budget[0] == "share" else ""
        if self.budget and not budget:
            budget = f"-{self.budget[0]}{self.budget[1]}"
        model = f"-{self.model.name}" if self.section.compares_models else ""
        return f"{_plain(self.dataset)}{model}-{_plain(self.label)}{budget}-seed{self.seed}"

    def of_full_tables(self) -> RunConfig:
        """Make the run that trains the same model with full tables."""
        return replace(self, method=MethodConfig(method="Full"), budget=None)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON values, without what was not given for the method."""
        names = ("experiment", "data", "model", "optimizer", "training", "slices", "seed")
        values = {name: _json(getattr(self, name)) for name in names}
        values["method"] = {
            "method": self.method.method,
            "options": self.method.options,
            **({self.budget[0]: self.budget[1]} if self.budget else {}),
            **({"table": self.method.table} if self.method.table else {}),
            **({"content": True} if self.method.content else {}),
            **({"after_training": True} if self.method.after_training else {}),
        }
        return {**values, self.section.key: self.section.to_dict()} if self.section.key else values


def _json(value: Any) -> Any:
    """A section, or a table of sections, as plain values."""
    if isinstance(value, dict):
        return {name: _json(part) for name, part in value.items()}
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _plain(text: str) -> str:
    return "-".join(filter(None, "".join(c if c.isalnum() or c in "=._" else "-" for c in text).split("-")))
