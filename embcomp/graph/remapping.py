"""`remap_`: another map under a trained table. What modules it knows is registered by who knows them."""

from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from embcomp.graph.cluster_map import ClusterMap
from embcomp.graph.mixtures import Mixture


@singledispatch
def remap_(
    module: Any,
    new: ClusterMap | Mixture,
    counts: Tensor | None = None,
    *,
    table: str | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Put a new map into a trained module of `GraphHash`, `DoubleGraphHash` or `SoftGraphHash`, in place.

    After `extend` nothing but the map changes; after a new clustering rows are those of `warm_rows`, so `align` first.
    Hashed rows stay what they are. The number of ids follows the map. State of the optimizer that has a row for each
    row (sums of squared gradients, moments) becomes the same means; that of fused tables is found without `optimizer`.

    Likewise for mixtures: after `Mixture.extend` nothing but the mixture changes; after a new clustering (`align` it,
    then `mixture`) the rows become those by which the vectors of all ids stay as close as they can to what they were,
    by least squares. State of the optimizer stays with the row numbers.

    Args:
        module: `CompressedEmbedding`, `CompressedEmbeddingBag`, or a compressed torchrec collection, plain or fused.
        new: a map with as many rows; for `SoftGraphHash` a mixture over as many.
        counts: as in `warm_rows`.
        table: which table of a collection.
        optimizer: what trains the rows outside the backward pass; without it its state stays with the row numbers.

    Raises:
        ValueError: another method or module, a collection without that table, a sharded one, maps that differ in rows;
            nothing has changed then.

    Example:
        >>> import torch, embcomp
        >>> from embcomp.graph import ClusterMap, remap_
        >>> emb = embcomp.nn.CompressedEmbedding(3, 4, embcomp.GraphHash(ClusterMap.of([0, 1, 1], rows=2)))
        >>> remap_(emb, ClusterMap.of([0, 1, 1, 0], rows=2))
        >>> bool((emb(torch.tensor(3)) == emb(torch.tensor(0))).all())
        True
    """
    raise ValueError(
        "remap_ wants a CompressedEmbedding, a CompressedEmbeddingBag or a compressed torchrec collection, "
        f"got {module!r}; give it the module of the table, not the model"
    )
