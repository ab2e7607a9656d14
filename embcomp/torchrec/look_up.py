"""Look-ups of an inner collection that is neither sharded nor fused: one call per table instead of one per feature.

torchrec's own unsharded forward makes a dense gradient for each feature of a table; here features of a table are read together.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor


def look_up_bags(collection, features: KeyedJaggedTensor) -> KeyedTensor:
    """`collection(features)`, by fewer calls where the collection is torchrec's plain one and nothing is being traced."""
    if type(collection) is not EmbeddingBagCollection or torch.compiler.is_compiling():
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
        out = F.embedding_bag(
            features.values()[start:stop],
            bag.weight,  # pyright: ignore[reportArgumentType]
            bounds,
            mode=bag.mode,  # pyright: ignore[reportArgumentType]
            per_sample_weights=None if weights is None else weights[start:stop].to(bag.weight.dtype),  # pyright: ignore
            include_last_offset=True,
        ).float()
        pooled.append(out if number == 1 else out.view(number, batch, -1).transpose(0, 1).reshape(batch, -1))
        first, start = first + number, stop
    return KeyedTensor(
        keys=features.keys(),
        length_per_key=[config.embedding_dim for config in configs for _ in config.feature_names],
        values=pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1),
    )


def look_up_sequences(collection, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
    """`collection(features)`, by fewer calls where the collection is torchrec's plain one and nothing is being traced."""
    if type(collection) is not EmbeddingCollection or torch.compiler.is_compiling():
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
