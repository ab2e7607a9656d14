"""The statistics of whole tables that codecs need, wherever the rows are held."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.modules.embedding_modules import EmbeddingCollection

from embcomp.torchrec.contents import weights_of
from embcomp.torchrec.fused.integers import IntegerTables
from embcomp.torchrec.fused.tables import FusedTables


def local_tables(collection: nn.Module) -> dict[str, Tensor]:
    """Return the stored rows of tables that this process holds whole, by name; empty for a sharded collection."""
    fused = isinstance(collection, FusedTables) and not collection.bags
    if type(collection) is EmbeddingCollection or fused or isinstance(collection, IntegerTables):
        return dict(weights_of(collection))
    return {}


def measure(collection: nn.Module, codecs: nn.ModuleDict) -> dict[str, Tensor | None]:
    """Compute `Codec.measure` of the whole table of each codec, by name; sharded tables are summed over all processes.

    Raises:
        TypeError: the rows of this kind of collection cannot be found.
    """
    if isinstance(collection, ShardedEmbeddingCollection):
        return _of_shards(collection, codecs)
    tables = local_tables(collection)
    if not tables and codecs:
        raise TypeError(f"the rows of a {type(collection).__name__} cannot be found, but its codecs need them")
    return {name: codec.measure(tables[name]) for name, codec in codecs.items()}  # pyright: ignore[reportCallIssue]


def _of_shards(collection: ShardedEmbeddingCollection, codecs: nn.ModuleDict) -> dict[str, Tensor | None]:
    """The sums of the local shards, added up over the processes in one call."""
    sums: dict[str, Tensor] = {}
    for name, codec in codecs.items():
        nothing = codec.measure(torch.empty(0, codec.dim, device=collection._device))  # pyright: ignore
        if nothing is not None:
            parts = [codec.measure(rows, first) for rows, first in _shards(collection, name, codec.dim)]  # pyright: ignore
            sums[name] = sum(parts, nothing)
    if sums:
        whole = torch.cat([value.reshape(-1) for value in sums.values()])
        torch.distributed.all_reduce(whole, group=collection._env.process_group)
        cut = whole.split([value.numel() for value in sums.values()])
        sums = {name: part.view_as(value) for (name, value), part in zip(sums.items(), cut, strict=True)}
    return {name: sums.get(name) for name in codecs}


def _shards(collection: ShardedEmbeddingCollection, table: str, dim: int) -> Iterator[tuple[Tensor, int]]:
    """Yield the values of each shard of a table that this process holds, and the index of its first row.

    A table that every process holds whole is counted on rank 0.
    """
    shards = collection._model_parallel_name_to_local_shards.get(table)
    if shards is None:
        if collection._env.rank == 0:
            weight: Any = collection.embeddings[table].weight
            yield weight.detach()[:, :dim], 0
        return
    for shard in shards:
        first, column = shard.metadata.shard_offsets
        yield shard.tensor.detach()[:, : max(0, dim - column)], first
