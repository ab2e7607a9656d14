"""`remap_`: another map for a trained table. The modules that it supports are registered elsewhere."""

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

    After `extend` only the map changes; after a new clustering the rows are those of `warm_rows`, so `align` it first.
    Hashed rows do not change. The table gets the number of ids of the map. Optimizer state with one row for each row
    (sums of squared gradients, moments) is averaged in the same way; that of fused tables is found without `optimizer`.

    For mixtures: after `Mixture.extend` only the mixture changes; after a new clustering (`align` it, then `mixture`)
    the rows are fitted by least squares, so that the vectors of all ids stay as close as possible to the previous ones.
    Optimizer state stays with the row numbers.

    Args:
        module: a `CompressedEmbedding`, a `CompressedEmbeddingBag`, or a compressed torchrec collection, plain or
            fused.
        new: the new map with as many rows; for `SoftGraphHash` a mixture over as many rows.
        counts: the number of times each id occurs, as in `warm_rows`.
        table: the name of the table, if the module is a collection.
        optimizer: the optimizer that trains the rows outside the backward pass; without it its state stays with the row
            numbers.

    Raises:
        ValueError: the method or module is another one, a collection is sharded or lacks the table, or the maps differ
            in rows; nothing has changed then.

    Example:
        >>> import torch, embcomp
        >>> from embcomp.graph import ClusterMap, remap_
        >>> emb = embcomp.nn.CompressedEmbedding(3, 4, embcomp.GraphHash(ClusterMap.of([0, 1, 1], rows=2)))
        >>> remap_(emb, ClusterMap.of([0, 1, 1, 0], rows=2))
        >>> bool((emb(torch.tensor(3)) == emb(torch.tensor(0))).all())
        True
    """
    raise ValueError(
        "remap_ takes a CompressedEmbedding, a CompressedEmbeddingBag or a compressed torchrec collection, "
        f"got {module!r}; give it the module of the table, not the model"
    )
