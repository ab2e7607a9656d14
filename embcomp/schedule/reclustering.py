"""The clustering of a table of `ClusteredHash` from its vectors, between epochs."""

import torch
from torch import Tensor, nn

from embcomp.holders import holder_of
from embcomp.methods.clustered_hash import ClusteredEncoder
from embcomp.methods.table import Table
from embcomp.ops.hashing import hash_key
from embcomp.ops.kmeans import assign, kmeans
from embcomp.optimizers import row_states


@torch.no_grad()
def recluster_(
    module: nn.Module,
    counts: Tensor | None = None,
    *,
    table: str | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    sample: int = 200,
    iterations: int = 20,
) -> None:
    """Cluster the vectors of a table of `ClusteredHash`, and write the clusters into its map and rows, in place.

    For each chunk, k-means runs on a sample of the vectors. T becomes the centroids, h the nearest one of each id, h' a
    new hash, and T' the mean residual of the ids that share its row. Rows that no id reads do not change.

    Optimizer state with one row for each row (sums of squared gradients, moments) is updated, too: a new row gets the
    mean of the state of the rows that its ids read before. Step counts do not change. The seed of the method and the
    number of calls so far, which is part of the state dict, decide every draw, so a resumed training equals an
    uninterrupted one.

    Args:
        module: a `CompressedEmbedding`, a `CompressedEmbeddingBag`, or a compressed torchrec collection, plain or
            fused.
        counts: the occurrences of each id, [num_embeddings]: ids without any are not sampled, and means are weighted by
            them. By default all ids count equally.
        table: the name of the table, if the module is a collection.
        optimizer: the optimizer that trains the rows outside the backward pass.
        sample: the most vectors per cluster that k-means reads.
        iterations: the most iterations of k-means.

    Raises:
        ValueError: the method or module is another one, the collection is sharded, rows are coded, or counts do not
            fit; nothing has changed then.

    Example:
        >>> import torch, embcomp
        >>> emb = embcomp.nn.CompressedEmbedding(1000, 8, embcomp.ClusteredHash(rows=16, chunks=2))
        >>> before = emb.materialize()
        >>> embcomp.recluster_(emb)
        >>> bool((emb.materialize() - before).square().mean() < before.square().mean())
        True
    """
    holder = holder_of(module, [""])
    exchanged = None if holder is None else holder.exchanged(table)
    if exchanged is None:
        raise ValueError(
            "recluster_ takes a CompressedEmbedding, a CompressedEmbeddingBag or a compressed torchrec collection, got "
            f"{type(module).__name__}; give it the module of the table, not the model"
        )
    held, _ = exchanged
    assert held.plan is not None
    encoder, store = held.plan.encoder, held.stores[held.plan.chunks[0].store]
    if not isinstance(encoder, ClusteredEncoder) or store.codec is not None:
        raise ValueError(
            f"table {held.table.name!r}: recluster_ is for float rows of ClusteredHash, got {encoder.config['method']}"
        )
    weigh = _weights(counts, held.table, store.weight)
    kept = [store.weight.detach(), *store.states, *row_states(optimizer, store.weight)]
    kept = list({tensor.data_ptr(): tensor for tensor in kept}.values())  # a handle of fused tables has their state
    new = [tensor.clone() for tensor in kept]
    ids = torch.arange(len(weigh), device=store.weight.device)
    old = [rows.rows for rows in encoder.encode(ids)]
    each = [kept[0][rows].float().sum(1) for rows in old]
    clusters = torch.stack([_cluster(v, weigh, encoder, c, sample, iterations) for c, v in enumerate(each)], 1)
    fresh = encoder.with_map(clusters)
    for rows, vectors, (now, _) in zip(old, each, fresh.encode(ids), strict=True):
        _write_means(new[0], now[:, 0], vectors, weigh)
        _write_means(new[0], now[:, 1], vectors - new[0][now[:, 0]].float(), weigh)
        for before, after in zip(kept[1:], new[1:], strict=True):
            for side in (0, 1):
                _write_means(after, now[:, side], before[rows[:, side]].float(), weigh)
    encoder.set_map(clusters)
    for tensor, values in zip(kept, new, strict=True):
        tensor.copy_(values)


def _cluster(
    vectors: Tensor, weigh: Tensor, encoder: ClusteredEncoder, chunk: int, sample: int, iterations: int
) -> Tensor:
    """Return the cluster of each id, int64 [N]."""
    text = f"recluster {int(encoder.round)}"
    seed = hash_key(encoder.seed, text, chunk) & (2**62 - 1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(vectors), generator=generator).to(vectors.device)
    chosen = order[weigh[order] > 0][: sample * encoder.rows]
    centroids = kmeans(vectors[chosen], encoder.rows, iterations=iterations, tolerance=1e-4, seed=seed, fewer=True)
    return assign(vectors, centroids)[0]


def _write_means(target: Tensor, rows: Tensor, values: Tensor, weigh: Tensor) -> None:
    """Write the weighted mean of the values of each row; rows without any weight do not change."""
    share = weigh.view(-1, *[1] * (values.ndim - 1))
    total = torch.zeros(target.shape, device=target.device).index_add_(0, rows, values * share)
    whole = torch.zeros(len(target), device=target.device).index_add_(0, rows, weigh).view(-1, *[1] * (values.ndim - 1))
    target.copy_(torch.where(whole > 0, total / whole.clamp(min=1e-30), target.float()).to(target.dtype))


def _weights(counts: Tensor | None, table: Table, rows: Tensor) -> Tensor:
    """Return the weight of each id, float32 [num_embeddings]."""
    ids = table.ids_or_raise("recluster_")
    if counts is None:
        return torch.ones(ids, device=rows.device)
    if counts.shape != (ids,) or not bool(((counts >= 0) & counts.isfinite()).all()) or not bool((counts > 0).any()):
        expected = f"finite, not negative, not all zero, [{ids}]"
        raise ValueError(f"table {table.name!r}: counts must be {expected}; got {list(counts.shape)}")
    return counts.to(rows.device).float()
