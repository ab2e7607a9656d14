"""An experiment as frozen dataclasses, with the structure of the TOML file.

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
for each of them. The section of a kind in `experiments.tasks`, such as [retrieval], selects that kind of runs.
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
    """Return a table of settings for each combination of the values that are lists."""
    tables = []
    for table in many(value):
        if not isinstance(table, dict):
            tables.append(table)
            continue
        lists = [value if isinstance(value, list) else [value] for value in table.values()]
        tables += [dict(zip(table, values, strict=True)) for values in product(*lists)]
    return tuple(tables)


def _listed(value: Any) -> Any:
    """Return a list as a tuple, and one value as it is."""
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
    """A data set and the options of its reader (`data.load`); the option `seed = "run"` is replaced by the run's seed.

    A random split then differs from run to run, as the initial weights do.

    Attributes:
        label: the name in tables and pictures, to tell two forms of a data set apart in one experiment.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    label: str | None = None

    def for_seed(self, seed: int) -> DataConfig:
        """Return these settings with the seed of a run, if they ask for it."""
        if self.options.get("seed") != "run":
            return self
        return replace(self, options={**self.options, "seed": seed})


@dataclass(frozen=True, kw_only=True, config=strict)
class ModelConfig:
    """A model of `recsys_models` and its options.

    Attributes:
        embedding_dim: the width of every feature.
        init_uniform: the bound a; tables start uniform in [-a, a].
        init_normal: the standard deviation of tables that start normal. Without either, tables start as torchrec's do,
            or in retrieval runs as those of LightGCN, normal with 0.1.
        linear: True to give the model first-order weights of their own, a full table of width 1 per feature.
        options: the options of the model.
    """

    name: str
    embedding_dim: Positive
    init_uniform: Rate | None = None
    init_normal: Rate | None = None
    linear: bool = False
    options: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=strict)
class OptimizerConfig:
    """The optimizer. A list of values, for any of the keys, is swept: there is a run for each value.

    Attributes:
        name: the optimizer of the parameters.
        weight_decay: the L2 weight of all parameters but the tables; under AdamW the decoupled decay.
        embedding: the fused optimizer of the tables, which updates them in backward; None puts them under `name` as
            well.
        embedding_lr: the learning rate of the tables, by default `lr`.
        embedding_weight_decay: the L2 weight of the whole tables at every step, decay / 2 * ||E||^2 in the loss, as the
            `embedding_regularizer` of FuxiCTR's (BARS's) recipes adds it.
        max_grad_norm: the norm to which gradients are clipped.
    """

    name: Literal["Adam", "AdamW", "Adagrad", "SGD"] = "Adam"
    lr: Rate = 1e-3
    weight_decay: Rate = 0.0
    embedding: Literal["RowWiseAdagrad", "Adagrad", "SGD", "Adam", "AdamW", "PartialRowWiseAdam"] | None = None
    embedding_lr: Rate | None = None
    embedding_weight_decay: Rate = 0.0
    max_grad_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    def scaled(self, factor: float) -> OptimizerConfig:
        """Return the same optimizer with its learning rates multiplied."""
        table_lr = None if self.embedding_lr is None else self.embedding_lr * factor
        return replace(self, lr=self.lr * factor, embedding_lr=table_lr)


@dataclass(frozen=True, kw_only=True, config=strict)
class TrainingConfig:
    """The length of the training, and the choice of its best epoch.

    Attributes:
        epochs: the most epochs.
        monitor: the metric of the valid split that selects the best epoch, whose weights are tested. A retrieval run
            names a recall or ndcg.
        patience: the number of epochs in a row without a new best after which the training stops.
        min_delta: the least difference of a new best.
        lr_factor: the factor of learning rates after an epoch without a new best.
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
    """The rows whose id of `feature` occurs min_count <= n <= max_count times in training: metrics `test/auc/<slice>`.

    In runs on behavior sequences `feature` is "history", and n the number of the user's events before the row.
    """

    feature: str
    min_count: NotNegative = 0
    max_count: NotNegative | None = None


@dataclass(frozen=True, kw_only=True, config=strict)
class MethodConfig:
    """A method by its class name, its options, and at most one kind of budget.

    Attributes:
        rows: the method's `rows`.
        nbytes: the bytes of tables and maps.
        share: the bytes of tables and maps, as a share of the full tables'.
        label: the name in tables and pictures.
        seeds: the seeds in place of the experiment's.
        table: the only feature, or features, that the method compresses and that budgets count; the others stay full.
        by_table: the methods of single tables in place of this one, by the name of their feature, with their settings:
            { user = { method = "LowBit", bits = 3, of = { method = "LowRank", rank = 3 } } }; sizes are in the options.
        apart: True for an instance of the method for each table, so that tables share no store; each has the size in
            the options.
        content: True to give the content vectors of `table` to the model, too, as dense columns.
        after_training: True to train full tables and fit the method to them (`compress_` with init="warm") without
            training it; two tables that are only used in a dot product with each other are aligned first.
        fine_tuned: the factor of the learning rates with which training goes on from trained full tables, compressed
            with init="warm"; None to train from the start. The full tables are trained first, as a run of their own.
    """

    method: str
    options: dict[str, Any] = Field(default_factory=dict)
    rows: Annotated[tuple[Positive, ...], BeforeValidator(many)] | None = None
    nbytes: Annotated[tuple[Positive, ...], BeforeValidator(many)] | None = None
    share: Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(many)] | None = None
    label: str | None = None
    seeds: Seeds | None = None
    table: Annotated[str | tuple[str, ...] | None, BeforeValidator(_listed)] = None
    by_table: dict[str, dict[str, Any]] = Field(default_factory=dict)
    apart: bool = False
    content: bool = False
    after_training: bool = False
    fine_tuned: Annotated[float, Field(gt=0, le=1)] | None = None

    @property
    def from_trained(self) -> bool:
        """True if the method is fitted to trained full tables."""
        return self.after_training or self.fine_tuned is not None

    @property
    def tables(self) -> tuple[str, ...]:
        """The names in `table`; empty if the method compresses all features."""
        return many(self.table) if self.table else ()

    @property
    def budgets(self) -> list[tuple[str, int | float] | None]:
        """The (kind, value) of each budget; [None] if there is none."""
        given = [(kind, value) for kind in ("rows", "nbytes", "share") for value in getattr(self, kind) or ()]
        return list(given) or [None]


@dataclass(frozen=True, kw_only=True, config=strict)
class ExperimentConfig:
    """The content of one TOML file.

    Attributes:
        kind: the name of the kind of runs, from the section that the file has.
        section: the settings of that kind.
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
        """Yield models x optimizers x sections x methods x budgets x seeds; the seeds are outermost."""
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
    """A training: a method at one budget (kind, value) with one seed.

    Attributes:
        kind: a name in `experiments.tasks.task.KINDS`.
        section: the settings of that kind.
        swept: the keys of the optimizer in which the experiment's runs differ.
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
        """The name of the data set in tables and pictures."""
        return self.section.dataset(self.data.label or self.data.name)

    @property
    def label(self) -> str:
        """The name of the method, its options and swept settings of the optimizer, in tables and pictures."""
        method = self.method.label or label_of(self.method.method, self.method.options)
        label = self.section.label(method, self.method.method)
        return ", ".join([label, *(f"{key}={getattr(self.optimizer, key)}" for key in self.swept)])

    @property
    def name(self) -> str:
        """The name of the run: unique in the experiment, and valid as a file name."""
        budget = f"-{self.budget[0]}{self.budget[1]:g}" if self.budget and self.budget[0] == "share" else ""
        if self.budget and not budget:
            budget = f"-{self.budget[0]}{self.budget[1]}"
        model = f"-{self.model.name}" if self.section.compares_models else ""
        return f"{_plain(self.dataset)}{model}-{_plain(self.label)}{budget}-seed{self.seed}"

    def of_full_tables(self) -> RunConfig:
        """Make the run that trains the same model with full tables."""
        return replace(self, method=MethodConfig(method="Full"), budget=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON values, without settings of the method that were not given."""
        names = ("experiment", "data", "model", "optimizer", "training", "slices", "seed")
        values = {name: _json(getattr(self, name)) for name in names}
        if self.data.label is None:
            del values["data"]["label"]
        values["method"] = {
            "method": self.method.method,
            "options": self.method.options,
            **({self.budget[0]: self.budget[1]} if self.budget else {}),
            **({"table": self.method.table} if self.method.table else {}),
            **({"by_table": self.method.by_table} if self.method.by_table else {}),
            **({"apart": True} if self.method.apart else {}),
            **({"content": True} if self.method.content else {}),
            **({"after_training": True} if self.method.after_training else {}),
            **({} if self.method.fine_tuned is None else {"fine_tuned": self.method.fine_tuned}),
        }
        return {**values, self.section.key: self.section.to_dict()} if self.section.key else values


def _json(value: Any) -> Any:
    """Return a section, or a table of sections, as plain values."""
    if isinstance(value, dict):
        return {name: _json(entry) for name, entry in value.items()}
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _plain(text: str) -> str:
    return "-".join(filter(None, "".join(c if c.isalnum() or c in "=._" else "-" for c in text).split("-")))
