"""`remap_`: another map under a trained table, its rows and optimizer state warm."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from embcomp.graph.alignment import warm_rows
from embcomp.graph.cluster_map import ClusterMap
from embcomp.graph.mixtures import Mixture
from embcomp.methods.base import Chunk, Concat, Encoder, TablePlan
from embcomp.methods.graphhash import ClusterEncoder
from embcomp.methods.soft_graphhash import MixtureEncoder
from embcomp.nn.table import CompressedTable
from embcomp.warm import Trained, warm_start


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
    place = _place(module, table)
    encoder = place.encoder
    if type(encoder) is MixtureEncoder and isinstance(new, Mixture):
        fitted = _fitted(place.rows.detach(), encoder, new, counts)
        encoder.set_mixture(new)
        place.resized()
        place.rows.detach().copy_(fitted)
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


@torch.no_grad()
def _fitted(rows: Tensor, encoder: MixtureEncoder, new: Mixture, counts: Tensor | None) -> Tensor:
    """The rows under a new mixture: as they are where all ids keep theirs, else a fit to the vectors so far."""
    fresh = copy.deepcopy(encoder)
    if fresh.set_mixture(new):
        return rows
    if counts is not None and counts.shape != (encoder.num_ids,):
        raise ValueError(f"counts has shape {list(counts.shape)}, but the old mixture has {encoder.num_ids} ids")
    known = (encoder.weights[:, 0] > 0) & (fresh.weights[: encoder.num_ids, 0] > 0)
    share = known.float() if counts is None else counts.to(known.device).float() * known
    (read,) = encoder.encode(torch.arange(encoder.num_ids, device=rows.device))
    assert read.weights is not None
    vectors = torch.zeros(encoder.num_ids, rows.shape[1], device=rows.device)
    for column in range(encoder.k):
        vectors += rows[read.rows[:, column]].float() * read.weights[:, column, None]
    fitted = rows.clone()
    plan = TablePlan(fresh.table, fresh, (Chunk("rows", encoder.k, weighted=True),), Concat())
    warm_start([Trained(plan, vectors, share)], {"rows": fitted})
    return fitted


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
