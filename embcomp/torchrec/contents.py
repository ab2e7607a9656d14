"""The contents of a collection of any of torchrec's kinds: the configurations and the weights of its tables."""

from typing import Any

from torch import nn


def configs_of(collection: Any) -> list[Any]:
    """Return the configurations of the tables of a collection of bags or of sequences."""
    if hasattr(collection, "embedding_bag_configs"):
        return list(collection.embedding_bag_configs())
    return list(collection.embedding_configs())


def weights_of(collection: Any) -> dict[str, nn.Parameter]:
    """Return the weights of the tables of a collection, by name."""
    tables = collection.embeddings if hasattr(collection, "embeddings") else collection.embedding_bags
    return {name: table.weight for name, table in tables.items()}
