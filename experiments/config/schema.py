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
for each of them. A section [retrieval] makes them retrieval runs, a section [behavior] runs on behaviour sequences,
poolings x methods x budgets x seeds. `experiments.config.load` reads and checks such a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

_strict = ConfigDict(extra="forbid")


def _many(value: Any) -> Any:
    """One value or a list of them -> a tuple."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _swept(value: Any) -> Any:
    """Tables of settings -> a table for each combination of the values that are lists."""
    tables = []
    for table in _many(value):
        if not isinstance(table, dict):
            tables.append(table)
            continue
        lists = [value if isinstance(value, list) else [value] for value in table.values()]
        tables += [dict(zip(table, values, strict=True)) for values in product(*lists)]
    return tuple(tables)


def _listed(value: Any) -> Any:
    """A list -> a tuple; one value stays as it is."""
    return tuple(value) if isinstance(value, list) else value


Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
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
Seeds = Annotated[tuple[NotNegative, ...], BeforeValidator(_many), Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=_strict)
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


@dataclass(frozen=True, kw_only=True, config=_strict)
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


@dataclass(frozen=True, kw_only=True, config=_strict)
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


@dataclass(frozen=True, kw_only=True, config=_strict)
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


@dataclass(frozen=True, kw_only=True, config=_strict)
class ColdConfig:
    """Items that no training sees, and what is shown of them before they are ranked: see `experiments.tasks.cold`.

    Attributes:
        share: of the items, drawn by the seed of the run.
        first: so many interactions of each; one slice of the test split for each number.
        k: how many clusters of a mixture a placed item reads; all by default.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    first: Annotated[tuple[Positive, ...], BeforeValidator(_many), Field(min_length=1)] = (1, 3, 10)
    k: Positive | None = None


@dataclass(frozen=True, kw_only=True, config=_strict)
class RetrievalConfig:
    """What makes a run a retrieval run: all items are ranked for each user.

    Attributes:
        loss: "bpr" and "bce" (binary cross-entropy) set each pair against one random item, drawn anew at each step;
            "directau" needs none.
        gamma: weight of uniformity in "directau".
        validate_every: epochs between two evaluations of the valid split.
        cold: hold items out of training, and rank them after a few interactions.
    """

    loss: Literal["bpr", "directau", "bce"] = "bpr"
    gamma: Rate = 1.0
    validate_every: Positive = 1
    cold: ColdConfig | None = None


@dataclass(frozen=True, kw_only=True, config=_strict)
class GraphConfig:
    """Which features of clicks are the two sides of a graph; its edges are the pairs of the positive training rows.

    Attributes:
        user: the feature whose ids are users.
        item: the feature whose ids are items.
    """

    user: str
    item: str


@dataclass(frozen=True, kw_only=True, config=_strict)
class PoolingConfig:
    """A pooling of `recsys_models.BehaviorModel`, and the model's options that go with it.

    Attributes:
        label: name in tables and pictures.
        seeds: in place of the experiment's.
    """

    pooling: str
    options: dict[str, Any] = Field(default_factory=dict)
    label: str | None = None
    seeds: Seeds | None = None


@dataclass(frozen=True, kw_only=True, config=_strict)
class BehaviorConfig:
    """What makes a run one on behaviour sequences: a click-through model reads each user's history.

    Attributes:
        task: "like", whether the item of an event is rated above 3, or "next", whether an item is the next one.
        length: events of a history, at most.
        request: the examples of so many events that follow each other share the history before the first of them; a
            batch holds `training.batch_size` requests.
        poolings: what is compared.
    """

    task: Literal["like", "next"]
    length: Positive
    request: Positive = 1
    poolings: Annotated[tuple[PoolingConfig, ...], BeforeValidator(_many), Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=_strict)
class SliceConfig:
    """Rows whose id of `feature` occurs min_count <= n <= max_count times in training: metrics `test/auc/<slice>`.

    In runs on behaviour sequences `feature` is "history", and n the events that the user has before the row.
    """

    feature: str
    min_count: NotNegative = 0
    max_count: NotNegative | None = None


@dataclass(frozen=True, kw_only=True, config=_strict)
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
    rows: Annotated[tuple[Positive, ...], BeforeValidator(_many)] | None = None
    nbytes: Annotated[tuple[Positive, ...], BeforeValidator(_many)] | None = None
    share: Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_many)] | None = None
    label: str | None = None
    seeds: Seeds | None = None
    table: Annotated[str | tuple[str, ...] | None, BeforeValidator(_listed)] = None
    content: bool = False
    after_training: bool = False

    @property
    def tables(self) -> tuple[str, ...]:
        """The names in `table`; none where the method compresses all features."""
        return _many(self.table) if self.table else ()

    @property
    def budgets(self) -> list[tuple[str, int | float] | None]:
        """(kind, value) of each budget; [None] where there is none."""
        given = [(kind, value) for kind in ("rows", "nbytes", "share") for value in getattr(self, kind) or ()]
        return list(given) or [None]


@dataclass(frozen=True, kw_only=True, config=_strict)
class ExperimentConfig:
    """One TOML file."""

    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    data: DataConfig
    model: Annotated[tuple[ModelConfig, ...], BeforeValidator(_many), Field(min_length=1)]
    optimizer: Annotated[tuple[OptimizerConfig, ...], BeforeValidator(_swept), Field(min_length=1)] = (
        OptimizerConfig(),
    )
    training: TrainingConfig
    retrieval: RetrievalConfig | None = None
    behavior: BehaviorConfig | None = None
    graph: GraphConfig | None = None
    slices: dict[str, SliceConfig] = Field(default_factory=dict)
    methods: Annotated[tuple[MethodConfig, ...], BeforeValidator(_many), Field(min_length=1)]
    seeds: Seeds = (0,)

    def runs(self) -> Iterator[RunConfig]:
        """Models x optimizers x poolings x methods x budgets x seeds; seeds outermost: a part shows the whole."""
        given = [asdict(optimizer) for optimizer in self.optimizer]
        swept = [key for key in given[0] if any(other[key] != given[0][key] for other in given)]
        poolings = self.behavior.poolings if self.behavior else (None,)
        entries = [
            (model, optimizer, pooling, method, budget, (pooling and pooling.seeds) or method.seeds or self.seeds)
            for model in self.model
            for optimizer in self.optimizer
            for pooling in poolings
            for method in self.methods
            for budget in method.budgets
        ]
        for seed in dict.fromkeys(seed for *_, seeds in entries for seed in seeds):
            for model, optimizer, pooling, method, budget, seeds in entries:
                if seed in seeds:
                    yield RunConfig(
                        experiment=self.experiment,
                        data=self.data.for_seed(seed),
                        model=model,
                        optimizer=optimizer,
                        swept=tuple(swept),
                        training=self.training,
                        retrieval=self.retrieval,
                        behavior=None if pooling is None else replace(self.behavior, poolings=(pooling,)),
                        graph=self.graph,
                        slices=self.slices,
                        method=replace(method, rows=None, nbytes=None, share=None, seeds=None),
                        budget=budget,
                        seed=seed,
                    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training: a method at one budget (kind, value) with one seed; of a behaviour run, one pooling.

    Attributes:
        swept: keys of the optimizer in which the experiment's runs differ.
    """

    experiment: str
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    retrieval: RetrievalConfig | None
    behavior: BehaviorConfig | None
    graph: GraphConfig | None
    slices: dict[str, SliceConfig]
    method: MethodConfig
    budget: tuple[str, int | float] | None
    seed: int
    swept: tuple[str, ...] = ()

    @property
    def pooling(self) -> PoolingConfig | None:
        """Of a behaviour run."""
        return self.behavior.poolings[0] if self.behavior else None

    @property
    def dataset(self) -> str:
        """As tables and pictures call it: the data set, and the task of a behaviour run."""
        return f"{self.data.name} {self.behavior.task}" if self.behavior else self.data.name

    @property
    def label(self) -> str:
        """Method and options, as tables and pictures call them; of a behaviour run pooling and method.

        What is swept of the optimizer is said, too.
        """
        method = self.method.label or _label(self.method.method, self.method.options)
        if self.pooling is not None:
            pooling = self.pooling.label or _label(self.pooling.pooling, self.pooling.options)
            method = pooling if self.method.method == "Full" else f"{pooling}, {method}"
        return ", ".join([method, *(f"{key}={getattr(self.optimizer, key)}" for key in self.swept)])

    @property
    def name(self) -> str:
        """Unique in the experiment, fit for a file name."""
        budget = f"-{self.budget[0]}{self.budget[1]:g}" if self.budget and self.budget[0] == "share" else ""
        if self.budget and not budget:
            budget = f"-{self.budget[0]}{self.budget[1]}"
        # Retrieval and graph runs compare models on the same data.
        model = f"-{self.model.name}" if self.retrieval or self.graph else ""
        return f"{_plain(self.dataset)}{model}-{_plain(self.label)}{budget}-seed{self.seed}"

    def of_full_tables(self) -> RunConfig:
        """The run that trains the same model with full tables."""
        return replace(self, method=MethodConfig(method="Full"), budget=None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without what was not given for the method."""
        values = asdict(self)
        values["method"] = {
            "method": self.method.method,
            "options": self.method.options,
            **({self.budget[0]: self.budget[1]} if self.budget else {}),
            **({"table": self.method.table} if self.method.table else {}),
            **({"content": True} if self.method.content else {}),
            **({"after_training": True} if self.method.after_training else {}),
        }
        del values["budget"], values["swept"]
        for section in ("retrieval", "graph"):
            if values[section] is None:
                del values[section]
        if self.pooling is None:
            del values["behavior"]
        else:
            del values["behavior"]["poolings"]
            values["behavior"] |= {"pooling": self.pooling.pooling, "options": self.pooling.options}
        return values


def _label(name: str, options: dict[str, Any]) -> str:
    given = ", ".join(f"{option}={value}" for option, value in options.items())
    return f"{name}({given})" if given else name


def _plain(text: str) -> str:
    return "-".join(filter(None, "".join(c if c.isalnum() or c in "=._" else "-" for c in text).split("-")))
