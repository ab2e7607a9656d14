"""`embcomp.graph.remap_` for modules: rows and optimizer state of a table are carried over to another map."""

import copy

import torch
from torch import Tensor, nn

from embcomp.compress.warm import warm_start
from embcomp.graph.cluster_map import ClusterMap
from embcomp.graph.mixtures import Mixture
from embcomp.graph.remapping import remap_
from embcomp.graph.warming import warm_rows
from embcomp.holders import holder_of
from embcomp.methods.base import Chunk, Concat, TablePlan
from embcomp.methods.graph import ClusterEncoder, MixtureEncoder
from embcomp.optimizers import row_states
from embcomp.trained import Trained


@remap_.register
def _(
    module: nn.Module,
    new: ClusterMap | Mixture,
    counts: Tensor | None = None,
    *,
    table: str | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    holder = holder_of(module, [""])
    exchanged = None if holder is None else holder.exchanged(table)
    if exchanged is None:
        remap_.dispatch(object)(module, new)  # refuses it
        return
    held, resized = exchanged
    assert held.plan is not None
    encoder, store = held.plan.encoder, held.stores[held.plan.chunks[0].store]
    rows = store.weight
    if type(encoder) is MixtureEncoder and isinstance(new, Mixture):
        fitted = _fitted(rows.detach(), encoder, new, counts)
        encoder.set_mixture(new)
        resized()
        rows.detach().copy_(fitted)
        return
    if type(encoder) is not ClusterEncoder or not isinstance(new, ClusterMap):
        raise ValueError(
            "remap_ takes a ClusterMap for a table of GraphHash or a Mixture for one of SoftGraphHash, got a "
            f"{type(new).__name__} for one of {encoder.config['method']}"
        )
    kept = [rows.detach(), *store.states, *row_states(optimizer, rows)]
    kept = list({tensor.data_ptr(): tensor for tensor in kept}.values())  # a handle of fused tables has their state
    old = encoder.cluster_map()
    warm = [warm_rows(tensor.reshape(len(tensor), -1), old, new, counts).view_as(tensor) for tensor in kept]
    encoder.set_map(new)
    resized()
    for tensor, values in zip(kept, warm, strict=True):
        tensor.copy_(values)


@torch.no_grad()
def _fitted(rows: Tensor, encoder: MixtureEncoder, new: Mixture, counts: Tensor | None) -> Tensor:
    """The rows under a new mixture: unchanged if all ids keep their rows, else fitted to the vectors so far."""
    fresh = copy.deepcopy(encoder)
    if fresh.set_mixture(new):
        return rows
    if counts is not None and counts.shape != (encoder.num_ids,):
        raise ValueError(f"counts has shape {list(counts.shape)}, but the old mixture has {encoder.num_ids} ids")
    known = encoder.known() & fresh.known()[: encoder.num_ids]
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
