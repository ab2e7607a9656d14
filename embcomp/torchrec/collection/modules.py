"""The drop-ins for torchrec's collections: [encoder -> torchrec collection -> combiner]."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    EmbeddingBagCollectionInterface,
    EmbeddingCollection,
    EmbeddingCollectionInterface,
    get_embedding_names_by_table,
)
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from embcomp.codecs.integers import Integers
from embcomp.methods.base import Method
from embcomp.nn.arguments import check_flag, check_home, check_methods
from embcomp.nn.table import move_combiner, reset_combiner
from embcomp.torchrec.checks import check_meta
from embcomp.torchrec.collection.arguments import checked_tables
from embcomp.torchrec.collection.assemble import AssembleBags, AssembleSequences
from embcomp.torchrec.collection.branch import Branch
from embcomp.torchrec.collection.encoder import KeyedEncoder
from embcomp.torchrec.collection.layout import Layout, holds_sequences, make_layout
from embcomp.torchrec.fused.integers import IntegerTables
from embcomp.tracing import NotScripted


def _branches(layout: Layout, weighted: bool, device: torch.device | None) -> nn.ModuleDict:
    encoders = {output.plan.table.name: output.plan.encoder for output in layout.outputs}
    branches = nn.ModuleDict()
    for name, configs in layout.configs.items():
        carries = name.startswith("weighted")
        pooled = not name.startswith("sequences")
        codings = {config.name: coding for config in configs if (coding := layout.stores[config.name].coding)}
        if any(isinstance(coding, Integers) for coding in codings.values()):
            collection = IntegerTables(configs, codings, pooled, device)  # pyright: ignore[reportArgumentType]
            codings = {}  # it decodes by itself
        elif holds_sequences(name):
            collection = EmbeddingCollection(tables=configs, device=device)  # pyright: ignore[reportArgumentType]
        else:
            collection = EmbeddingBagCollection(tables=configs, is_weighted=carries, device=device)  # pyright: ignore
        encoder = KeyedEncoder(layout.reads(name), encoders, carries, ids_weighted=weighted)
        home = next(collection.parameters()).device  # the default device where none is given
        if home.type != "meta":  # maps and keys stay real: only rows wait for their memory
            encoder.to(home)
        stores, kind = layout.stores, next(collection.parameters()).dtype
        codecs = {own: coding.module(stores[own].rows, stores[own].dim, home, kind) for own, coding in codings.items()}
        branches[name] = Branch(encoder, collection, codecs, pooled)
    return branches


class _Collection(NotScripted, nn.Module):
    """The base of both collections, which refuses the state of a collection that is not compressed."""

    _tables: list[Any]
    branches: nn.ModuleDict
    assemble: Any

    def reset_parameters(self) -> None:
        """Draw the rows anew, as in the constructor, and recompute the hash keys (after `to_empty`, say).

        Raises:
            ValueError: the rows are fused or sharded.
        """
        for output in self.assemble.outputs:
            output.plan.encoder.reset_buffers()
        for branch in self.branches.values():
            branch.reset_parameters()  # pyright: ignore[reportCallIssue]
        reset_combiner(self.assemble.combiners)

    def __getattr__(self, name: str) -> Any:
        if name in ("embedding_bags", "embeddings"):
            raise AttributeError(
                f"{type(self).__name__} has no {name!r}: vectors are what it returns for ids, its rows are the "
                "parameters of `branches`, and weights are set before compress_ (init='warm' keeps them)"
            )
        return super().__getattr__(name)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for config in self._tables:
            for held in ("embedding_bags", "embeddings"):
                if (full := f"{prefix}{held}.{config.name}.weight") in state_dict:
                    raise ValueError(
                        f"table {config.name!r}: the state is of a collection that is not compressed ({full!r}); load "
                        "it into the model before compress_ (init='warm' keeps it)"
                    )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # pyright: ignore[reportArgumentType]


class CompressedEmbeddingBagCollection(_Collection, EmbeddingBagCollectionInterface):
    """A compressed `torchrec.EmbeddingBagCollection`: the same keys, order and widths, with smaller tables.

    The rows are held by ordinary torchrec collections, so DistributedModelParallel shards them, fused optimizers train
    them (`embcomp.torchrec.fuse_` in one process) and torchrec.quant serves them.

    Args:
        tables: torchrec's table configurations. `num_embeddings=2**63 - 1` leaves an id space open.
        methods: a method for each table; keys are glob patterns over table names, the first match wins, and unmatched
            tables stay full. Tables matched by one `UnifiedEmbedding` share one store.
        device: the device of the rows.
        is_weighted: True if batches have a weight for each id.

    Raises:
        ValueError: a pattern matches no table, or a method cannot compress its table.

    Example:
        >>> import torch, embcomp
        >>> from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
        >>> from embcomp.torchrec import CompressedEmbeddingBagCollection
        >>> tables = [
        ...     EmbeddingBagConfig(name="users", num_embeddings=9_000, embedding_dim=16, feature_names=["user"]),
        ...     EmbeddingBagConfig(name="films", num_embeddings=500, embedding_dim=16, feature_names=["seen", "film"]),
        ... ]
        >>> collection = CompressedEmbeddingBagCollection(
        ...     tables, {"users": embcomp.DoubleHash(rows=500), "*": embcomp.HashingTrick(rows=400)}
        ... )
        >>> batch = KeyedJaggedTensor.from_lengths_sync(
        ...     keys=["user", "seen", "film"],
        ...     values=torch.tensor([7, 8, 1, 2, 3, 4, 4]),
        ...     lengths=torch.tensor([1, 1, 3, 0, 1, 1]),
        ... )
        >>> out = collection(batch)
        >>> out.keys(), out.values().shape
        (['user', 'seen', 'film'], torch.Size([2, 48]))
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        methods: Mapping[str, Method],
        device: torch.device | str | None = None,
        *,
        is_weighted: bool = False,
    ) -> None:
        super().__init__()
        check_methods(methods)
        check_flag(is_weighted, "is_weighted")
        check_home(device)
        self._tables = checked_tables(tables, EmbeddingBagConfig)
        layout = make_layout(self._tables, methods, is_weighted)
        self._is_weighted = is_weighted
        self.branches = _branches(layout, is_weighted, None if device is None else torch.device(device))
        self.assemble = AssembleBags(layout.outputs, is_weighted)
        move_combiner(self.assemble.combiners, self.device, torch.float32)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Pool the embeddings of a KeyedJaggedTensor of ids: KeyedTensor [B, sum of widths].

        Raises:
            TypeError: `features` is not a KeyedJaggedTensor of tensors.
            KeyError: a feature is missing.
            ValueError: ids are not integers, weights are missing, or lengths, offsets, values, weights and stride
                contradict each other.
            IndexError: an id is out of range.
        """
        check_meta(features, self)
        return self.assemble(features, {name: branch(features) for name, branch in self.branches.items()})

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """Return the configurations of the tables before compression."""
        return self._tables

    def is_weighted(self) -> bool:
        return self._is_weighted

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class CompressedEmbeddingCollection(_Collection, EmbeddingCollectionInterface):
    """A compressed `torchrec.EmbeddingCollection`: vectors per id, the same keys, with smaller tables.

    Args:
        tables: torchrec's table configurations.
        methods: a method for each table, as in `CompressedEmbeddingBagCollection`.
        device: the device of the rows.
        need_indices: True to return the ids as the weights of the result, as in torchrec.

    Example:
        >>> import torch, embcomp
        >>> from torchrec import EmbeddingConfig, KeyedJaggedTensor
        >>> from embcomp.torchrec import CompressedEmbeddingCollection
        >>> tables = [EmbeddingConfig(name="films", num_embeddings=5_000, embedding_dim=8, feature_names=["seen"])]
        >>> collection = CompressedEmbeddingCollection(tables, {"*": embcomp.QuotientRemainder()})
        >>> batch = KeyedJaggedTensor.from_lengths_sync(["seen"], torch.tensor([1, 2, 3]), torch.tensor([2, 1]))
        >>> collection(batch)["seen"].values().shape
        torch.Size([3, 8])
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingConfig],
        methods: Mapping[str, Method],
        device: torch.device | str | None = None,
        need_indices: bool = False,
    ) -> None:
        super().__init__()
        check_methods(methods)
        check_flag(need_indices, "need_indices")
        check_home(device)
        self._tables = checked_tables(tables, EmbeddingConfig)
        layout = make_layout(self._tables, methods, weighted=False)
        self.branches = _branches(layout, False, None if device is None else torch.device(device))
        self.assemble = AssembleSequences(layout.outputs, need_indices)
        move_combiner(self.assemble.combiners, self.device, torch.float32)

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Look up embeddings per id: a JaggedTensor [N, width] for each key. Raises like the bag collection."""
        check_meta(features, self)
        return self.assemble(features, {name: branch(features) for name, branch in self.branches.items()})

    def embedding_configs(self) -> list[EmbeddingConfig]:
        """Return the configurations of the tables before compression."""
        return self._tables

    def need_indices(self) -> bool:
        return self.assemble.need_indices

    def embedding_dim(self) -> int:
        """Return the width of the vectors.

        Raises:
            ValueError: the tables have several widths.
        """
        widths = sorted({config.embedding_dim for config in self._tables})
        if len(widths) > 1:
            raise ValueError(f"the tables are of the widths {widths}: ask each of `embedding_configs()`")
        return widths[0]

    def embedding_names_by_table(self) -> list[list[str]]:
        """Return the keys of each table's features, as torchrec names them."""
        return get_embedding_names_by_table(self._tables)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
