"""The layout of compressed tables as torchrec tables: the stores of each inner collection, and the keys they read.

A table whose combiner is linear pools inside the look-up, so its stores go to an EmbeddingBagCollection ("bags", or
"weighted_bags" if ids have weights). Other tables are looked up id by id, in an EmbeddingCollection
("sequences_<width>", because torchrec requires one width in each). So are rows with a codec, in "coded_bags_<width>",
which pools the decoded vectors. Rows that are integers have separate collections of this kind.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchrec.modules.embedding_configs import (
    BaseEmbeddingConfig,
    EmbeddingBagConfig,
    EmbeddingConfig,
    PoolingType,
)
from torchrec.modules.embedding_modules import get_embedding_names_by_table

from embcomp.codecs.integers import Integers
from embcomp.initial_rows import Moments, Rule, draw_rows, moments_of, shared_rule
from embcomp.match import match
from embcomp.methods.base import Chunk, Combiner, Method, Plan, Store, Table, TablePlan, check_size, start_like
from embcomp.methods.full import Full

OPEN = 2**63 - 1  # num_embeddings of an open id space, where torchrec's configuration wants a number
_MOST_OPEN = 1 << 20  # ids by which the vectors of an open id space are scaled, where no rows are
_SAMPLE = 4096  # vectors by which the moments of an `init_fn` are known


@dataclass(frozen=True)
class Read:
    """One chunk of one feature, which is a key of an inner collection."""

    branch: str
    key: str
    feature: str
    table: str
    chunk: int
    chunks: int  # how many the table has
    lookups: int
    weighted: bool


@dataclass(frozen=True)
class Output:
    """One key of the result, and the reads that it is combined from."""

    key: str
    feature: str
    plan: TablePlan
    dim: int
    reads: tuple[Read, ...]
    divide: bool  # a mean over more than the rows that one look-up pools

    @property
    def pooled(self) -> bool:
        return not self.reads[0].branch.startswith("sequences")


@dataclass(frozen=True)
class Layout:
    """The outputs in the order of the replaced class, and the torchrec tables of each branch."""

    outputs: list[Output]
    configs: dict[str, list[EmbeddingBagConfig] | list[EmbeddingConfig]]
    stores: dict[str, Store]

    def reads(self, branch: str) -> list[Read]:
        """Return the reads of a branch in the order of its collection's features."""
        by_key = {read.key: read for output in self.outputs for read in output.reads if read.branch == branch}
        return [by_key[name] for config in self.configs[branch] for name in config.feature_names]


def assign(names: Sequence[str], methods: Mapping[str, Method]) -> dict[str, Method]:
    """Return the method of each table: that of the first glob pattern that matches its name, `Full()` if none does.

    Raises:
        ValueError: a pattern other than "*" matches no table.
    """
    full = Full()
    matched = match(methods, [[name] for name in names])
    return {name: full if method is None else method for name, method in zip(names, matched, strict=True)}


def plan_tables(
    configs: Sequence[BaseEmbeddingConfig], methods: Mapping[str, Method]
) -> dict[str, tuple[Plan, TablePlan]]:
    """Return for each table the plan of its group (the tables of one method instance), and its part of the plan."""
    chosen = assign([config.name for config in configs], methods)
    tables = {
        c.name: Table(c.name, None if c.num_embeddings >= OPEN else c.num_embeddings, c.embedding_dim) for c in configs
    }
    planned: dict[str, tuple[Plan, TablePlan]] = {}
    groups = {id(method): method for method in chosen.values()}
    owners: dict[str, str | int] = {}
    free = (name for n in itertools.count() if (name := f"shared_{n}" if n else "shared") not in tables)
    for number, method in enumerate(groups.values()):
        members = [table for name, table in tables.items() if chosen[name] is method]
        plan = method.plan(members, group=next(free) if method.shares_store else "shared")
        check_size(plan.sizes, members)
        for table in plan.tables:
            planned[table.table.name] = (plan, table)
            for chunk in table.chunks:
                owner = number if method.shares_store else table.table.name
                if owners.setdefault(chunk.store, owner) != owner:
                    raise ValueError(
                        f"table {table.table.name!r} and another would both keep rows as {chunk.store!r}: rename one"
                    )
    return planned


def make_layout(
    configs: Sequence[EmbeddingBagConfig] | Sequence[EmbeddingConfig], methods: Mapping[str, Method], weighted: bool
) -> Layout:
    """Make the layout for torchrec tables; `weighted` if the ids of the input have weights.

    Raises:
        ValueError: names are duplicate, a pattern matches no table, a method cannot compress a table, or tables on one
            store differ in data type.
    """
    names = [config.name for config in configs]
    if len(set(names)) < len(names):
        raise ValueError(f"duplicate table names in {names}")
    named: list[EmbeddingBagConfig | EmbeddingConfig] = [
        config if config.feature_names else replace(config, feature_names=[config.name]) for config in configs
    ]
    planned = plan_tables(named, methods)
    keys = get_embedding_names_by_table(named)  # pyright: ignore[reportArgumentType]
    single = _single_look_up_stores(planned, weighted)
    rules = _init_rules(named, planned)
    for config in named:
        _start_combiner(config, planned[config.name][1].combiner)
    outputs: list[Output] = []
    inner: dict[str, dict[str, EmbeddingBagConfig | EmbeddingConfig]] = {}
    for config, table_keys in zip(named, keys, strict=True):
        plan, table = planned[config.name]
        means = isinstance(config, EmbeddingBagConfig) and config.pooling == PoolingType.MEAN
        branches = [_branch(config, table, plan.stores[chunk.store], weighted) for chunk in table.chunks]
        in_look_up = means and branches[0] == "bags" and all(c.store in single for c in table.chunks)
        for feature, key in zip(config.feature_names, table_keys, strict=True):
            inside = key.replace("@", " of ")  # sharded row-wise, torchrec takes what follows "@" for the table's name
            reads = tuple(
                Read(branch, f"{inside}#{i}", feature, config.name, i, len(table.chunks), chunk.lookups, chunk.weighted)
                for i, (branch, chunk) in enumerate(zip(branches, table.chunks, strict=True))
            )
            dim = plan.embedding_dim(table)
            outputs.append(Output(key, feature, table, dim, reads, divide=means and not in_look_up))
            for read, chunk in zip(reads, table.chunks, strict=True):
                tables = inner.setdefault(read.branch, {})
                pooling = PoolingType.MEAN if in_look_up else PoolingType.SUM
                _add_feature(tables, config, chunk, plan.stores[chunk.store], pooling, read, rules[chunk.store])
    stores = {name: store for plan, _ in planned.values() for name, store in plan.stores.items()}
    return Layout(outputs, {branch: list(tables.values()) for branch, tables in inner.items()}, stores)  # pyright: ignore


def holds_sequences(branch: str) -> bool:
    """Return whether the collection of a branch returns vectors per id."""
    return branch.startswith("sequences") or "coded" in branch


def _branch(config: BaseEmbeddingConfig, table: TablePlan, store: Store, weighted: bool) -> str:
    kind = "integer_" if isinstance(store.coding, Integers) else ""  # never in one collection with floats
    if not isinstance(config, EmbeddingBagConfig) or not table.combiner.linear:
        return f"sequences_{kind}{store.width}"
    bags = "bags" if store.coding is None else f"coded_bags_{kind}{store.width}"
    return f"weighted_{bags}" if weighted or table.weighted else bags


def _single_look_up_stores(planned: Mapping[str, tuple[Plan, TablePlan]], weighted: bool) -> set[str]:
    """The stores that serve a single table with one unweighted row per id, whose look-up may take the mean itself."""
    reads: dict[str, list[tuple[str, Chunk]]] = {}
    for name, (_, table) in planned.items():
        for chunk in table.chunks:
            reads.setdefault(chunk.store, []).append((name, chunk))
    return {
        store
        for store, users in reads.items()
        if not weighted
        and len({name for name, _ in users}) == 1
        and all(chunk.lookups == 1 and not chunk.weighted for _, chunk in users)
    }


def _add_feature(
    tables: dict[str, EmbeddingBagConfig | EmbeddingConfig],
    config: EmbeddingBagConfig | EmbeddingConfig,
    chunk: Chunk,
    store: Store,
    pooling: PoolingType,
    read: Read,
    rule: Rule,
) -> None:
    if chunk.store in tables:
        existing = tables[chunk.store]
        if existing.data_type != config.data_type:
            raise ValueError(
                f"table {config.name!r} is {config.data_type}, but shares a store with tables of {existing.data_type}; "
                "give it its own instance of the method"
            )
        if read.key not in existing.feature_names:
            existing.feature_names.append(read.key)
        return
    settings = {
        "num_embeddings": store.rows,
        "embedding_dim": store.width,
        "name": chunk.store,
        "data_type": config.data_type,
        "feature_names": [read.key],
        "init_fn": functools.partial(draw_rows, init=store.init, summands=store.summands, like=rule),
    }
    if isinstance(config, EmbeddingBagConfig):
        bag_settings = {**settings, "pooling": pooling}
        tables[chunk.store] = (
            EmbeddingConfig(**settings) if holds_sequences(read.branch) else EmbeddingBagConfig(**bag_settings)
        )
    else:
        tables[chunk.store] = EmbeddingConfig(**settings)


def _init_rules(
    configs: Sequence[BaseEmbeddingConfig], planned: Mapping[str, tuple[Plan, TablePlan]]
) -> dict[str, Rule]:
    """The rules that draw the vectors of each store: those of its tables, or torchrec's default."""
    readers: dict[str, dict[str, Rule | None]] = {}
    rows: dict[str, int] = {}
    for config in configs:
        plan, table = planned[config.name]
        for chunk in table.chunks:
            readers.setdefault(chunk.store, {})[config.name] = _init_rule(config)
            store, ids = plan.stores[chunk.store], table.table.num_embeddings
            rows[chunk.store] = ids if ids is not None and store.init.startswith("chain") else store.rows
    return {
        store: shared_rule(list(rules.values())) or functools.partial(_uniform, rows=rows[store])
        for store, rules in readers.items()
    }


def _init_rule(config: BaseEmbeddingConfig) -> Rule | None:
    """The rule by which the replaced table draws its rows; None for torchrec's default."""
    default = config.weight_init_min is None and config.weight_init_max is None
    bounds = {"a": config.get_weight_init_min(), "b": config.get_weight_init_max()}
    rule = config.init_fn
    own = isinstance(rule, functools.partial) and rule.func is torch.nn.init.uniform_ and rule.keywords == bounds
    return None if default and own else rule


def _start_combiner(config: BaseEmbeddingConfig, combiner: Combiner) -> None:
    """Draw the parameters of a combiner, for vectors with the moments of the replaced table."""
    if not any(isinstance(submodule, Combiner) and submodule.draws for submodule in combiner.modules()):
        return
    rule = _init_rule(config) or functools.partial(_uniform, rows=min(config.num_embeddings, _MOST_OPEN))
    if not isinstance(rule, Moments):
        sample = torch.empty(min(config.num_embeddings, _SAMPLE), config.embedding_dim, device="cpu")
        rule(sample)
        rule = moments_of(sample)
    start_like(combiner, rule)


def _uniform(weight: Tensor, rows: int) -> None:
    """Draw rows as torchrec does for a table of `rows` rows, of which these may be a part."""
    bound = math.sqrt(1 / rows)
    torch.nn.init.uniform_(weight, -bound, bound)
