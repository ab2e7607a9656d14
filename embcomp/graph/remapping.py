"""`remap_`: another map under a trained table, its rows and optimizer state warm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from embcomp.graph.alignment import warm_rows
from embcomp.graph.cluster_map import ClusterMap
from embcomp.graph.mixtures import Mixture
from embcomp.methods.base import Encoder
from embcomp.methods.graphhash import ClusterEncoder
from embcomp.methods.soft_graphhash import MixtureEncoder
from embcomp.nn.table import CompressedTable


@dataclass(frozen=True)
class Place:
    """Where a module keeps what a map decides.

    Attributes:
        encoder: of the table.
        rows: the table's rows, the trained parameter.
        states: of its fused optimizer, a row of each for each row.
        resized: takes the number of ids from the encoder, once its map has changed.
    """

    encoder: Encoder
    rows: Tensor
    states: list[Tensor] = field(default_factory=list)
    resized: Callable[[], None] = lambda: None


def remap_(
    module: nn.Module,
    new: ClusterMap | Mixture,
    counts: Tensor | None = None,
    *,
    table: str | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Puts a new map into a trained module of `GraphHash`, `DoubleGraphHash` or `SoftGraphHash`, in place.

    After `extend` nothing but the map changes; after a new clustering rows are those of `warm_rows`, so `align` first.
    Hashed rows stay what they are. The number of ids follows the map. State of the optimizer that has a row for each
    row (sums of squared gradients, moments) becomes the same means; that of fused tables is found without `optimizer`.
    A mixture can only grow (`Mixture.extend`): its rows stay.

    Args:
        module: `CompressedEmbedding`, `CompressedEmbeddingBag`, or a compressed torchrec collection, plain or fused.
        new: a map with as many rows; for `SoftGraphHash` a longer mixture.
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
    place = _place(module, table)
    encoder = place.encoder
    if type(encoder) is MixtureEncoder and isinstance(new, Mixture):
        encoder.set_mixture(new)
        place.resized()
        return
    if type(encoder) is not ClusterEncoder or not isinstance(new, ClusterMap):
        raise ValueError(
            "remap_ wants a ClusterMap for a table of GraphHash or a Mixture for one of SoftGraphHash, got a "
            f"{type(new).__name__} for one of {encoder.config['method']}"
        )
    held = [place.rows.detach(), *place.states, *_states(optimizer, place.rows)]
    held = list({tensor.data_ptr(): tensor for tensor in held}.values())  # a handle of fused tables has their state
    old = encoder.cluster_map()
    warm = [warm_rows(tensor.reshape(len(tensor), -1), old, new, counts).view_as(tensor) for tensor in held]
    encoder.set_map(new)
    place.resized()
    for tensor, values in zip(held, warm, strict=True):
        tensor.copy_(values)


def _place(module: nn.Module, table: str | None) -> Place:
    if isinstance(module, CompressedTable):
        if table is not None:
            raise ValueError(f"table={table!r}: {type(module).__name__} is one table; leave it out")

        def resized() -> None:
            module.num_embeddings = module.encoder.table.num_embeddings

        return Place(module.encoder, module._store(0).weight, resized=resized)
    if not hasattr(module, "branches"):
        raise ValueError(
            "remap_ wants a CompressedEmbedding, a CompressedEmbeddingBag or a compressed torchrec collection, "
            f"got {module!r}; give it the module of the table, not the model"
        )
    from embcomp.torchrec.remap import place_of  # torchrec is imported already: the module is its own

    return place_of(module, table)


def _states(optimizer: torch.optim.Optimizer | None, rows: Tensor) -> list[Tensor]:
    """What the optimizer keeps for each row."""
    state = {} if optimizer is None else optimizer.state.get(rows, {})
    return [kept for kept in state.values() if isinstance(kept, Tensor) and kept.shape[:1] == rows.shape[:1]]
