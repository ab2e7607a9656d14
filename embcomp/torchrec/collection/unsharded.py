"""The look-up of an inner collection that is neither sharded nor fused: one call per table instead of one per feature.

torchrec's own unsharded forward makes a dense gradient for each feature of a table; here the features of a table are
read together.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from embcomp.ops.bags import pool_rows, transformed
from embcomp.ops.tables import SumBags


def look_up_bags(collection: Any, features: KeyedJaggedTensor) -> KeyedTensor:
    """Compute `collection(features)`, with fewer calls if the collection is plain and nothing is traced."""
    if type(collection) is not EmbeddingBagCollection or is_traced(features):
        _check_means(collection)
        return collection(features)
    configs = collection.embedding_bag_configs()
    bags: list[Any] = list(collection.embedding_bags.values())
    numbers = [len(config.feature_names) for config in configs]
    weights = features.weights() if collection.is_weighted() else None
    if all(bag.mode == "sum" for bag in bags):
        return sum_bags([bag.weight for bag in bags], numbers, features, weights)
    values = _pool_each([(bag.weight, bag.mode) for bag in bags], numbers, features, weights)
    return _keyed(features, [config.embedding_dim for config in configs], numbers, values)


def _check_means(collection: Any) -> None:
    """Raise ValueError if torchrec would divide means of a sharded collection by the wrong numbers.

    torchrec 1.8 is right if all tables are split by rows and all are means; `embcomp.torchrec.shard` is always right.
    """
    if not getattr(collection, "_has_mean_pooling_callback", False) or hasattr(collection, "divides_by_name"):
        return
    by_rows = collection._pooling_type_to_rs_features
    features = [feature for config in collection._embedding_bag_configs for feature in config.feature_names]
    if set(by_rows) != {"MEAN"} or sorted(by_rows["MEAN"]) != sorted(features):
        raise ValueError(
            f"tables {collection._table_names}: torchrec divides means by the numbers of other features where a "
            "collection has tables split by rows beside others; shard the model with embcomp.torchrec.shard, or give "
            "all tables of the collection row_wise, or none"
        )


def sum_bags(
    tables: list[Tensor], numbers: list[int], features: KeyedJaggedTensor, weights: Tensor | None
) -> KeyedTensor:
    """Sum bags of several tables, whose features are consecutive.

    Args:
        tables: the tables, [rows, dim] each.
        numbers: the number of features that read each table.
        features: the rows under the keys of the result.
        weights: a factor for each row, or None.
    """
    dims = [table.shape[1] for table in tables]
    # Columns are kept for the next call: nothing that is made under torch.func may be among them.
    if not transformed() and all(map(_is_plain, tables)):
        columns = _columns(tuple(zip(dims, numbers, strict=True)))
        values = SumBags.apply(features.values().long(), features.offsets().long(), weights, columns, *tables)
    else:
        values = _pool_each([(table, "sum") for table in tables], numbers, features, weights)
    return _keyed(features, dims, numbers, values)


def _keyed(features: KeyedJaggedTensor, dims: list[int], numbers: list[int], values: Tensor) -> KeyedTensor:
    each = [dim for dim, number in zip(dims, numbers, strict=True) for _ in range(number)]
    return KeyedTensor(keys=features.keys(), length_per_key=each, values=values)  # pyright: ignore


def is_traced(features: KeyedJaggedTensor) -> bool:
    """Return whether the features are stand-ins, or a graph is being made."""
    return torch.compiler.is_compiling() or type(features.values()) is not Tensor


def _is_plain(table: Tensor) -> bool:
    return table.device.type == "cpu" and table.dtype == torch.float32


@lru_cache(maxsize=256)
def _columns(widths: tuple[tuple[int, int], ...]) -> list[Tensor]:
    """The first output column of each feature of each table, given as (width, number of features)."""
    columns, first = [], 0
    for width, number in widths:
        columns.append(torch.arange(number, device="cpu") * width + first)
        first += number * width
    return columns


def _pool_each(
    tables: list[tuple[Tensor, str]], numbers: list[int], features: KeyedJaggedTensor, weights: Tensor | None
) -> Tensor:
    """Pool table by table, on any device and in any dtype: [batch, sum of widths]."""
    batch, counts = features.stride(), features.length_per_key()
    pooled: list[Tensor] = []
    first, start = 0, 0
    for (table, mode), number in zip(tables, numbers, strict=True):
        stop = start + sum(counts[first : first + number])
        out = pool_rows(
            table,
            features.values()[start:stop],
            features.offsets()[first * batch : (first + number) * batch + 1] - start,
            None if weights is None else weights[start:stop].to(table.dtype),
            mode,
        ).float()
        pooled.append(out if number == 1 else out.view(number, batch, out.shape[1]).transpose(0, 1).flatten(1))
        first, start = first + number, stop
    return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)


def look_up_sequences(collection: Any, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
    """Compute `collection(features)`, with fewer calls if the collection is plain and nothing is traced."""
    if type(collection) is not EmbeddingCollection or is_traced(features):
        return collection(features)
    counts = features.length_per_key()
    lengths = features.lengths().view(len(counts), -1)
    result: dict[str, JaggedTensor] = {}
    first, start = 0, 0
    for config, table in zip(collection.embedding_configs(), collection.embeddings.values(), strict=True):
        number = len(config.feature_names)
        sizes = counts[first : first + number]
        vectors = F.embedding(features.values()[start : start + sum(sizes)], table.weight).float()  # pyright: ignore
        for i, (key, part) in enumerate(zip(config.feature_names, vectors.split(sizes), strict=True)):
            result[key] = JaggedTensor(values=part, lengths=lengths[first + i])
        first, start = first + number, start + sum(sizes)
    return result
