"""The holders of torchrec's modules with tables, and of their replacements."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from glob import escape
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardedModule
from torchrec.modules.embedding_configs import (
    BaseEmbeddingConfig,
    EmbeddingBagConfig,
    EmbeddingConfig,
    pooling_type_to_str,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from embcomp.additions import check_additions
from embcomp.holders import Held, HeldStore, Holder, Spread, holder_of
from embcomp.initial_rows import Moments
from embcomp.methods.base import Method, Store, Table
from embcomp.methods.full import Full
from embcomp.nn.holders import check_table
from embcomp.swaps import Part, Plain, Swap
from embcomp.torchrec.collection.layout import OPEN, Output, make_layout
from embcomp.torchrec.collection.modules import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection
from embcomp.torchrec.contents import configs_of, weights_of
from embcomp.torchrec.fused.integers import IntegerTables
from embcomp.torchrec.fused.tables import FusedTables

Collection = EmbeddingBagCollection | EmbeddingCollection
Compressed = CompressedEmbeddingBagCollection | CompressedEmbeddingCollection


class KeyedHolder(Holder):
    """A module that is called like a torchrec collection: one module, several tables.

    Attributes:
        configs: the configurations of the tables, before compression.
        bags: True if it returns bags, as a KeyedTensor; False for vectors per id.
        weighted: True if its batches have a weight for each id.
        need_indices: True if its results include the ids.
    """

    configs: list[Any]
    bags: bool
    weighted: bool = False
    need_indices: bool = False

    @property
    def outputs(self) -> list[Output]:
        """The keys of its result, with the reads that each is combined from."""
        return make_layout(self.configs, {}, self.weighted).outputs

    def names(self, table: str) -> list[str]:
        """Return the names that a pattern may match for a table."""
        return [table, *[f"{path}.{table}" for path in self.paths if path]]

    def _plain_tables(self, states: Mapping[str, tuple[Tensor, ...]]) -> Iterator[Held]:
        weights = weights_of(self.module)
        for config in self.configs:
            table, weight = _table(config), weights[config.name]
            kept = states.get(config.name, ())
            store = HeldStore(Store(config.num_embeddings, config.embedding_dim), weight, states=kept)
            yield Held(table, self.names(table.name), {table.name: store})


class CollectionHolder(KeyedHolder, Plain):
    """The holder of an EmbeddingBagCollection or EmbeddingCollection."""

    module: Collection

    def __init__(self, module: Collection, paths: list[str]) -> None:
        super().__init__(module, paths)
        self.bags = isinstance(module, EmbeddingBagCollection)
        self.behaves = type(module) not in (EmbeddingBagCollection, EmbeddingCollection)
        self.configs = configs_of(module)
        if isinstance(module, EmbeddingBagCollection):
            self.weighted = module.is_weighted()
        else:
            self.need_indices = module.need_indices()

    def _tables(self) -> Iterator[Held]:
        return self._plain_tables({})

    @property
    def made(self) -> frozenset[str]:
        return _made(type(self.module))

    def check(self, methods: Mapping[str, Method]) -> None:
        self.check_as_made("compress")

    def check_as_made(self, verb: str) -> None:
        """Raise ValueError for what was changed or added by hand and would be lost; `verb` is for the message."""
        where = f"cannot {verb} {self.paths[0]!r}"
        held: Any = self.module.embedding_bags if self.bags else self.module.embeddings
        check_additions(self.module, where, ["embedding_bags" if self.bags else "embeddings"])
        check_additions(held, where, [config.name for config in self.configs])
        for config in self.configs:
            _check_table(held[config.name], config, f"{where}: table {config.name!r}")

    @classmethod
    def swaps(
        cls,
        members: Sequence["CollectionHolder"],
        chosen: Mapping[Plain, Mapping[str, Method]],
        moments: Mapping[Plain, Mapping[str, Moments]],
    ) -> list[Swap]:
        """Replace whole collections; tables without a method are included unchanged."""
        swaps = []
        for holder in members:
            new = holder.replacement(chosen[holder], moments[holder])
            plans = {output.plan.table.name: output.plan for output in new.assemble.outputs}
            parts = [Part(holder, chosen[holder].get(name, Full()), plan) for name, plan in plans.items()]
            swaps.append(Swap(parts, stores_of(new), [(holder, new)]))
        return swaps

    def replacement(self, methods: Mapping[str, Method], like: Mapping[str, Moments]) -> Compressed:
        """Make the compressed collection, rows drawn like the tables; tables without a method keep trained rows."""
        old: Any = self.module
        device = next(old.parameters()).device
        weights = weights_of(old)
        drawn = [c if weights[c.name].is_meta else dataclasses.replace(c, init_fn=like[c.name]) for c in self.configs]
        exact = {escape(name): methods.get(name, Full()) for name in self.tables}
        new: Compressed = (
            CompressedEmbeddingBagCollection(drawn, exact, device, is_weighted=self.weighted)
            if self.bags
            else CompressedEmbeddingCollection(drawn, exact, device, self.need_indices)
        )
        new._tables = self.configs
        for output in new.assemble.outputs:
            table = output.plan.table
            if output.dim != table.embedding_dim:
                raise ValueError(
                    f"cannot compress {table.name!r}: its width would change from {table.embedding_dim} to "
                    f"{output.dim}, and the model expects the former; build the collection yourself"
                )
        return new.train(old.training)


class FusedHolder(KeyedHolder):
    """The holder of the tables that `fuse_` puts in the place of a collection."""

    form = "fused"
    module: FusedTables

    def __init__(self, module: FusedTables, paths: list[str]) -> None:
        super().__init__(module, paths)
        self.configs, self.bags = module.configs, module.bags
        self.weighted, self.need_indices = module.weighted, module.need_indices

    def _tables(self) -> Iterator[Held]:
        return self._plain_tables(_states(self.module))


class IntegerHolder(KeyedHolder):
    """The holder of rows that are integers without a float copy, which `fuse_` trains in place."""

    form = "fused"
    module: IntegerTables

    def __init__(self, module: IntegerTables, paths: list[str]) -> None:
        super().__init__(module, paths)
        self.configs, self.bags = module.configs, module.pooled

    def _tables(self) -> Iterator[Held]:
        for config, (weight, codec) in zip(self.configs, self.module.tables(), strict=True):
            store = HeldStore(_store(weight, codec), weight, codec)
            yield Held(_table(config), self.names(config.name), {config.name: store})


class CompressedCollectionHolder(KeyedHolder):
    """The holder of a compressed collection, whose inner collections may be fused, sharded or quantised."""

    form = "compressed"
    module: Compressed

    def __init__(self, module: Compressed, paths: list[str]) -> None:
        super().__init__(module, paths)
        self.bags = isinstance(module, CompressedEmbeddingBagCollection)
        self.configs = configs_of(module)
        if isinstance(module, CompressedEmbeddingBagCollection):
            self.weighted = module.is_weighted()
        else:
            self.need_indices = module.need_indices()

    @property
    def outputs(self) -> list[Output]:
        return list(self.module.assemble.outputs)

    def _tables(self) -> Iterator[Held]:
        stores: dict[str, HeldStore] = {}
        for branch in _branches(self.module):
            codecs, states = branch.codecs, _states(branch.collection)
            whole = not isinstance(branch.collection, ShardedModule)
            for name, weight in weights_of(branch.collection).items():
                codec = codecs.get(name)
                stores[name] = HeldStore(_store(weight, codec), weight, codec, states.get(name, ()), whole)
        plans = {output.plan.table.name: output.plan for output in self.outputs}
        for name in [config.name for config in self.configs]:
            plan = plans[name]
            read = {chunk.store: stores[chunk.store] for chunk in plan.chunks}
            yield Held(plan.table, self.names(name), read, plan)

    def exchanged(self, table: str | None) -> tuple[Held, Callable[[], None]]:
        outputs = {output.plan.table.name: output for output in self.outputs}
        if table not in outputs:
            raise ValueError(f"table={table!r}: name one of the collection's tables, {list(outputs)}")
        inner = self.module.branches[outputs[table].reads[0].branch].collection
        if isinstance(inner, IntegerTables):
            raise ValueError(
                f"table {table!r}: rows without a float copy (copy='none') cannot take another map, which would "
                "average them; take copy='float'"
            )
        if not isinstance(inner, Collection | FusedTables):
            raise ValueError(
                f"table {table!r} is sharded or quantised ({type(inner).__name__}): load its state into the collection "
                "as it was before, call remap_ there, and shard or quantise again"
            )
        return self.tables[table], lambda: self._resize(table)

    def _resize(self, table: str) -> None:
        """Take the number of ids of a table from its encoder."""
        module: Any = self.module
        encoder = next(o.plan.encoder for o in self.outputs if o.plan.table.name == table)
        module.assemble.outputs = tuple(
            dataclasses.replace(o, plan=dataclasses.replace(o.plan, table=encoder.table))
            if o.plan.encoder is encoder
            else o
            for o in self.outputs
        )
        ids = encoder.table.num_embeddings
        if ids is not None:
            module._tables = [
                dataclasses.replace(config, num_embeddings=ids) if config.name == table else config
                for config in module._tables
            ]


holder_of.register(EmbeddingBagCollection, CollectionHolder)
holder_of.register(EmbeddingCollection, CollectionHolder)
holder_of.register(CompressedEmbeddingBagCollection, CompressedCollectionHolder)
holder_of.register(CompressedEmbeddingCollection, CompressedCollectionHolder)
holder_of.register(FusedTables, FusedHolder)
holder_of.register(IntegerTables, IntegerHolder)


@holder_of.register
def _(module: ShardedModule, paths: list[str]) -> Holder:
    return _sharded(module, paths)


@holder_of.register
def _(module: DistributedModelParallel, paths: list[str]) -> Holder:
    return _sharded(module, paths, module.fused_optimizer)


def _sharded(module: nn.Module, paths: list[str], optimizer: Any | None = None) -> Holder:
    return Spread(module, paths, f"({type(module).__name__}) is sharded", True, optimizer)


@cache
def _made(kind: type[Collection]) -> frozenset[str]:
    """The names of the attributes that the constructor of a collection sets."""
    meta, sizes = torch.device("meta"), {"num_embeddings": 1, "embedding_dim": 4, "name": "t", "feature_names": ["f"]}
    if kind is EmbeddingBagCollection:
        return frozenset(vars(EmbeddingBagCollection(tables=[EmbeddingBagConfig(**sizes)], device=meta)))
    return frozenset(vars(EmbeddingCollection(tables=[EmbeddingConfig(**sizes)], device=meta)))


def _check_table(table: Any, config: BaseEmbeddingConfig, where: str) -> None:
    """Raise ValueError for a table of a collection that is no longer as torchrec made it."""
    check_table(table, where)
    bag = isinstance(config, EmbeddingBagConfig)
    made = {"padding_idx": None, "max_norm": None, "scale_grad_by_freq": False, "sparse": False}
    made |= {"mode": pooling_type_to_str(config.pooling), "include_last_offset": True} if bag else {}
    for name, value in made.items():
        if getattr(table, name) != value:
            raise ValueError(
                f"{where}: {name} was set to {getattr(table, name)!r} by hand, which the replacement cannot have; "
                f"set it to {value!r}, or replace the collection by modules of torch.nn"
            )


def stores_of(collection: Compressed) -> dict[str, nn.Parameter]:
    """Return the rows of each store of a compressed collection, by name."""
    return {name: weight for branch in _branches(collection) for name, weight in weights_of(branch.collection).items()}


def _branches(collection: Compressed) -> list[Any]:
    return list(collection.branches.values())


def _states(collection: Any) -> dict[str, tuple[Tensor, ...]]:
    """The state of a fused optimizer, by table."""
    if not isinstance(collection, FusedTables | IntegerTables):
        return {}
    kept = zip(collection.names, collection.states, strict=False)  # none before `fuse_` has met them
    return {name: tuple(states.values()) for name, states in kept}


def _store(weight: Tensor, codec: Any) -> Store:
    """The store of trained rows, without the rule that drew them."""
    rows, width = weight.shape
    return Store(rows, width) if codec is None else Store(rows, codec.dim, coding=codec.coding)


def _table(config: BaseEmbeddingConfig) -> Table:
    return Table(config.name, None if config.num_embeddings >= OPEN else config.num_embeddings, config.embedding_dim)
