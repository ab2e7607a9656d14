"""A torchrec collection as a place where `compress_` swaps tables."""

from collections.abc import Mapping
from dataclasses import replace
from glob import escape
from typing import Any

from torch import Tensor, nn
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from embcomp.codecs.base import Codec
from embcomp.initial_rows import Moments
from embcomp.methods.base import Method, Table
from embcomp.methods.full import Full
from embcomp.sites import Site
from embcomp.torchrec.collections import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection
from embcomp.torchrec.layout import OPEN

Compressed = CompressedEmbeddingBagCollection | CompressedEmbeddingCollection


class TorchrecSite(Site):
    """An EmbeddingBagCollection or EmbeddingCollection: one module, several tables."""

    def __init__(self, module: nn.Module, paths: list[str]) -> None:
        super().__init__(module, paths)
        self.bags = isinstance(module, EmbeddingBagCollection)
        self.configs: list[Any] = list(
            module.embedding_bag_configs() if self.bags else module.embedding_configs()  # pyright: ignore
        )
        self.tables = {config.name: _table(config) for config in self.configs}

    def names(self, table: str) -> list[str]:
        return [table, *[f"{path}.{table}" for path in self.paths]]

    def weight(self, table: str) -> Tensor:
        held = self.module.embedding_bags if self.bags else self.module.embeddings
        return held[table].weight  # pyright: ignore

    def check(self, methods: Mapping[str, Method]) -> None:
        if any(
            part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
            for part in self.module.modules()
        ):
            raise ValueError(f"cannot compress {self.paths[0]!r}: it has hooks, which would be lost; remove them first")

    def replacement(self, methods: Mapping[str, Method], like: Mapping[str, Moments]) -> Compressed:
        """The compressed collection, its rows drawn like the tables; those without a method keep their trained rows."""
        old: Any = self.module
        device = next(old.parameters()).device
        drawn = [c if self.weight(c.name).is_meta else replace(c, init_fn=like[c.name]) for c in self.configs]
        exact = {escape(name): methods.get(name, Full()) for name in self.tables}
        if isinstance(old, EmbeddingBagCollection):
            new: Compressed = CompressedEmbeddingBagCollection(drawn, exact, device, is_weighted=old.is_weighted())
        else:
            assert isinstance(old, EmbeddingCollection)
            new = CompressedEmbeddingCollection(drawn, exact, device, old.need_indices())
        new._tables = self.configs
        for output in new.assemble.outputs:
            table = output.plan.table
            if output.dim != table.embedding_dim:
                raise ValueError(
                    f"cannot compress {table.name!r}: its width would change from {table.embedding_dim} to "
                    f"{output.dim}, and the model expects the former; build the collection yourself"
                )
        return new.train(old.training)


def stores_of(collection: Compressed) -> dict[str, nn.Parameter]:
    """The rows of each store of a compressed collection, by name."""
    found: dict[str, nn.Parameter] = {}
    for branch in collection.branches.values():
        inner: Any = branch.collection
        held = inner.embeddings if branch.sequences else inner.embedding_bags
        found.update({name: module.weight for name, module in held.items()})
    return found


def codecs_of(collection: Compressed) -> dict[str, Codec]:
    """The codec of each store of a compressed collection that has one, by name."""
    branches: Any = collection.branches.values()
    return {name: codec for branch in branches for name, codec in branch.codecs.items()}


def _table(config: BaseEmbeddingConfig) -> Table:
    return Table(config.name, None if config.num_embeddings >= OPEN else config.num_embeddings, config.embedding_dim)
