"""Look-ups of an inner collection that is neither sharded nor fused: one call per table instead of one per feature.

torchrec's own unsharded forward makes a dense gradient for each feature of a table; here features of a table are
read together.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from embcomp.ops.tables import SumBags


def look_up_bags(collection: Any, features: KeyedJaggedTensor) -> KeyedTensor:
    """`collection(features)`, by fewer calls where the collection is a plain one and nothing is being traced."""
    if type(collection) is not EmbeddingBagCollection or _is_traced(features):
        return collection(features)
    configs = collection.embedding_bag_configs()
    batch, counts = features.stride(), features.length_per_key()
    weights = features.weights() if collection.is_weighted() else None
    pooled: list[Tensor] = []
    first, start = 0, 0
    for config, bag in zip(configs, collection.embedding_bags.values(), strict=True):
        number = len(config.feature_names)
        stop = start + sum(counts[first : first + number])
        bounds = features.offsets()[first * batch : (first + number) * batch + 1] - start
        part = features.values()[start:stop]
        given = None if weights is None else weights[start:stop]
        pooled.append(_pool(bag, part, bounds, given, number, batch))
        first, start = first + number, stop
    return KeyedTensor(
        keys=features.keys(),
        length_per_key=[config.embedding_dim for config in configs for _ in config.feature_names],
        values=pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1),
    )


def _is_traced(features: KeyedJaggedTensor) -> bool:
    """Whether stand-ins are looked up, or graphs are made."""
    return torch.compiler.is_compiling() or type(features.values()) is not Tensor


def _pool(bag: Any, rows: Tensor, bounds: Tensor, weights: Tensor | None, features: int, batch: int) -> Tensor:
    """Bags of all features of one table, [batch, features * dim]."""
    if bag.mode == "sum" and bag.weight.device.type == "cpu" and bag.weight.dtype == torch.float32:
        return SumBags.apply(bag.weight, rows.long(), bounds.long(), weights, features)  # pyright: ignore
    out = F.embedding_bag(
        rows,
        bag.weight,
        bounds,
        mode=bag.mode,
        per_sample_weights=None if weights is None else weights.to(bag.weight.dtype),
        include_last_offset=True,
    ).float()
    return out if features == 1 else out.view(features, batch, -1).transpose(0, 1).reshape(batch, -1)


def look_up_sequences(collection: Any, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
    """`collection(features)`, by fewer calls where the collection is a plain one and nothing is being traced."""
    if type(collection) is not EmbeddingCollection or _is_traced(features):
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
