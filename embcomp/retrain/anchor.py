"""A loss that keeps vectors near those of an earlier training."""

import torch
from torch import Tensor

from embcomp.retrain.vectors import Vectors, rows_of, vectors_of


def anchor_loss(module: Vectors, old: Vectors, ids: Tensor, *, weight: float = 0.1) -> Tensor:
    """Compute the squared distance of a batch's vectors to those of an earlier training, to be added to the loss.

    It is weight * mean over the ids of |e(id) - e_old(id)|^2. An index of yesterday's vectors then answers today's
    queries without alignment (`docs/retrain.md`). It reads combined vectors, so it works with every method.

    Args:
        module: the table in training: an embedding or its drop-in, or a function from ids to vectors.
        old: the earlier table, or its vectors [n, embedding_dim]; it gets no gradient.
        ids: the ids of the batch, integers of any shape. Ids beyond the earlier table are new, and left out.
        weight: the weight of the loss.

    Returns:
        A scalar; 0 if all ids are new.

    Raises:
        TypeError: an argument holds no vectors.
        ValueError: the vectors differ in width, or the weight is negative.

    Example:
        >>> import torch, embcomp
        >>> table = embcomp.nn.CompressedEmbedding(1000, 8, embcomp.HashingTrick(rows=100))
        >>> yesterday = table.materialize().detach()[:900]
        >>> embcomp.anchor_loss(table, yesterday, torch.tensor([3, 7, 950])).item()
        0.0
        >>> embcomp.anchor_loss(table, yesterday + 1.0, torch.tensor([3, 7, 950]), weight=0.5).item()
        4.0
    """
    if not weight >= 0:
        raise ValueError(f"weight must not be negative, got {weight!r}")
    ids = ids.reshape(-1)
    known = rows_of(old)
    if known is not None:
        ids = ids[ids < known]
    new_vectors = vectors_of(module, ids, "module")
    if not len(ids):
        return new_vectors.sum() * 0.0
    with torch.no_grad():
        old_vectors = vectors_of(old, ids, "old").to(new_vectors)
    if new_vectors.shape != old_vectors.shape:
        raise ValueError(
            f"the old vectors are {old_vectors.shape[1]} wide, the new ones {new_vectors.shape[1]}: an anchor holds "
            "tables of one width"
        )
    return weight * (new_vectors - old_vectors).square().sum(1).mean()
