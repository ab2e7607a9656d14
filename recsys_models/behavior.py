"""A click-through model on candidates and a behavior sequence, with a choice of poolings of the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from embcomp.ops.hashing import readable
from embcomp.sdim import SDIM
from recsys_models.attention import AveragePooling, DINAttention, DotProductAttention
from recsys_models.layers import MLP
from recsys_models.search import ETA, SIM

POOLINGS: dict[str, type[nn.Module]] = {
    "average": AveragePooling,
    "dot": DotProductAttention,
    "din": DINAttention,
    "sim": SIM,
    "eta": ETA,
    "sdim": SDIM,
}


class BehaviorModel(nn.Module):
    """A model that pools the history for each candidate and applies an MLP (Zhou et al. 2018, arXiv 1706.06978).

    With the pooling "din" this is DIN. The MLP reads candidate, pooled history and their product, and dense columns.

    Args:
        items: the embedding of candidates and history: `nn.Embedding`, `embcomp.nn.CompressedEmbedding` or any module
            with an `embedding_dim`, int64 `[*]` -> `[*, D]`.
        pooling: the pooling of the history, a key of `POOLINGS`.
        last: the number of latest events to use, as in "DIN (short)"; None for all.
        categories: the category of each item, int64 `[num_items]`; needed by "sim".
        num_dense: the number of dense columns, possibly 0.
        hidden: the widths of the MLP's hidden layers.
        activation: the activation, see `MLP`.
        dropout: the dropout probability, see `MLP`.
        batch_norm: True to use batch norm, see `MLP`.
        **options: further arguments of the pooling.

    Raises:
        ValueError: a pooling or option is unknown, `last` is below 1, or categories are missing or not needed.

    Shapes: candidates int64 `[B]` or `[B, C]`, history int64 `[B, L]` from the oldest event to the latest, mask bool
    `[B, L]` (True for events), dense float `[B, num_dense]` or `[B, C, num_dense]` -> logits as candidates.

    Example:
        >>> import torch, embcomp
        >>> items = embcomp.nn.CompressedEmbedding(10_000, 32, embcomp.DoubleHash(rows=500))
        >>> model = BehaviorModel(items, pooling="sdim", num_hashes=24)
        >>> history = torch.randint(0, 10_000, (2, 300))
        >>> mask = torch.arange(300) < torch.tensor([[300], [20]])
        >>> model(torch.tensor([7, 8]), history, mask).shape
        torch.Size([2])
        >>> model(torch.tensor([[7, 8, 9], [1, 2, 3]]), history, mask).shape  # three candidates for each user
        torch.Size([2, 3])
    """

    categories: Tensor | None

    def __init__(
        self,
        items: nn.Module,
        *,
        pooling: str = "sdim",
        last: int | None = None,
        categories: Tensor | None = None,
        num_dense: int = 0,
        hidden: Sequence[int] = (200, 80),
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling {pooling!r} is unknown: choose one of {', '.join(POOLINGS)}")
        if last is not None and last < 1:
            raise ValueError(f"last is {last}: give at least 1 event, or None for all")
        if (pooling == "sim") != (categories is not None):
            raise ValueError(f"pooling {pooling!r} {'needs' if pooling == 'sim' else 'does not read'} categories")
        dim: int = items.embedding_dim  # pyright: ignore[reportAssignmentType]
        self.items = items
        self.last = last
        self.num_dense = num_dense
        self.register_buffer("categories", categories)
        try:
            self.pooling = POOLINGS[pooling](dim, **options)
        except TypeError as error:
            raise ValueError(f"pooling {pooling!r}: {error}") from None
        self.mlp = MLP(3 * dim + num_dense, hidden, 1, activation=activation, dropout=dropout, batch_norm=batch_norm)

    def forward(
        self, candidates: Tensor, history: Tensor, mask: Tensor | None = None, dense: Tensor | None = None
    ) -> Tensor:
        if candidates.dim() == 1:
            dense = None if dense is None else dense.unsqueeze(1)
            return self(candidates.unsqueeze(1), history, mask, dense).squeeze(1)
        mask = torch.ones_like(history, dtype=torch.bool) if mask is None else mask
        if self.last is not None:
            history, mask = latest(history, mask, self.last)
        if isinstance(self.pooling, SDIM) and readable(history):
            asked, pooled = self._by_item(self.pooling, candidates, history, mask)
        else:
            asked = self.items(candidates)
            pooled = self.pooling(asked, self.items(history), mask, *self._same(candidates, history))
        return self.head(asked, pooled, dense)

    def head(self, asked: Tensor, pooled: Tensor, dense: Tensor | None = None) -> Tensor:
        """Compute logits [B, C] from candidates' vectors [B, C, D] and their pooled histories, of the same shape.

        It is the part of the model that remains if a `BehaviorStore` pools the histories.
        """
        inputs = [asked, pooled, asked * pooled]
        if self.num_dense or dense is not None:
            if dense is None or dense.shape != (*asked.shape[:-1], self.num_dense):
                given = None if dense is None else list(dense.shape)
                raise ValueError(f"dense has shape {given}, expected {[*asked.shape[:-1], self.num_dense]}")
            inputs.append(dense)
        rows = torch.cat(inputs, dim=-1).flatten(0, -2)
        return self.mlp(rows).view(asked.shape[:-1])

    def _by_item(self, sdim: SDIM, candidates: Tensor, history: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return candidates' vectors and pooled histories, with one look-up and one hash for each distinct item."""
        items, places = distinct(history)
        vectors = self.items(torch.cat((candidates.flatten(), items)))
        asked, events = vectors.split((candidates.numel(), len(items)))
        asked = asked.view(*candidates.shape, vectors.shape[1])
        return asked, sdim(asked, events, mask, places=places)

    def _same(self, candidates: Tensor, history: Tensor) -> tuple[Tensor, ...]:
        """Return whether candidate and event share their category, bool [B, C, L], for the pooling that needs it."""
        if self.categories is None:
            return ()
        return (self.categories[candidates].unsqueeze(2) == self.categories[history].unsqueeze(1),)


def distinct(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct ids, ascending, and the position of each id among them, like `torch.unique`.

    Example:
        >>> import torch
        >>> distinct(torch.tensor([[9, 7], [7, 5]]))
        (tensor([5, 7, 9]), tensor([[2, 1],
                [1, 0]]))
    """
    low, high = (int(end) for end in ids.aminmax()) if ids.numel() else (0, 0)
    if high - low >= 4 * ids.numel():
        return torch.unique(ids, return_inverse=True)
    seen = torch.zeros(high - low + 1, dtype=torch.bool, device=ids.device)  # ids lie close: several times as fast
    seen[ids - low] = True
    return seen.nonzero().squeeze(1) + low, (seen.cumsum(0) - 1)[ids - low]


def latest(history: Tensor, mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the last `most` events of each history in their order, wherever the padding is.

    Example:
        >>> import torch
        >>> ids, mask = torch.tensor([[5, 6, 7, 0], [8, 0, 0, 0]]), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()
        >>> latest(ids, mask, 2)[0]
        tensor([[6, 7],
                [8, 0]])
    """
    if most >= history.shape[1]:
        return history, mask
    length = history.shape[1]
    position = torch.arange(length, device=history.device)
    # Events rank by place above all padding; the chosen places are then put back in order.
    chosen = torch.where(mask, position + length, length - 1 - position).topk(most, dim=1).indices.sort(dim=1).values
    return history.gather(1, chosen), mask.gather(1, chosen)
