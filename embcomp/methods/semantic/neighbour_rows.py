"""The rows that new items read by `SemanticIds(neighbours=...)`: those of their nearest training items."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.methods.maps import SharedMaps
from embcomp.ops.hashing import readable
from embcomp.ops.packing import bits_for, pack, packed_words, unpack
from embcomp.ops.search import lower_bound
from embcomp.semantic_ids.neighbours import Neighbours

FULL = 255  # the weight of a row that all neighbours read
_BLOCK = 1 << 20  # pieces of neighbours at a time

Read = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Ids, int64 [N] -> the rows of their pieces, int64 [N, P], and the weights of these, float32 [N, P]."""


class NeighbourRows(SharedMaps):
    """The rows that most neighbours of each new item read, with their weights.

    The weight of a row is the (weighted) share of the neighbours that read it, in steps of 1/255. The vector is then
    the weighted mean of their vectors, without the rows that few of them read.

    Args:
        new_ids: the new items, ascending, integers [n].
        rows: the rows that they read, int64 [n, lookups].
        shares: the weights of these rows, in steps of 1/255, uint8 [n, lookups].
        table_rows: the number of rows of the table.
    """

    new_ids: Tensor
    words: Tensor
    shares: Tensor

    def __init__(self, new_ids: Tensor, rows: Tensor, shares: Tensor, table_rows: int) -> None:
        super().__init__()
        self.lookups, self.bits = rows.shape[1], bits_for(table_rows)
        self.register_buffer("new_ids", new_ids)
        self.register_buffer("words", pack(rows, self.bits))
        self.register_buffer("shares", shares)

    @classmethod
    def of(
        cls, neighbours: Neighbours, read: Read, lookups: int, table_rows: int, dtype: torch.dtype | None = None
    ) -> Self:
        """Count which rows the neighbours of each new item read.

        Args:
            neighbours: the new items and their neighbours.
            read: the look-up of an id's own pieces.
            lookups: the number of rows that a new item reads.
            table_rows: the number of rows of the table.
            dtype: the dtype of the stored ids; that of `neighbours.ids` by default.
        """
        with_votes = [_votes(nearest, weights, read, lookups) for nearest, weights in _blocks(neighbours, read)]
        rows = torch.cat([rows for rows, _ in with_votes])
        shares = torch.cat([shares for _, shares in with_votes])
        mixed = shares[:, 0] > 0  # others have no neighbour with a supported piece, and read their own
        ids, rows, shares = neighbours.ids[mixed], rows[mixed], shares[mixed]
        if not ids.numel():  # a place for look-ups to miss
            ids, rows, shares = ids.new_full((1,), -1), rows.new_zeros(1, lookups), shares.new_zeros(1, lookups)
        return cls(ids if dtype is None else ids.to(dtype), rows, shares, table_rows)

    def mixed_in(self, ids: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Replace the rows and weights of new items among ids, [N, P] each; the result is as wide as the wider."""
        width = max(rows.shape[1], self.lookups)
        narrow = ids.to(self.new_ids.dtype).contiguous()
        position = lower_bound(self.new_ids, narrow).clamp(max=self.new_ids.numel() - 1)
        mixed = self.new_ids[position] == narrow
        rows, weights = _padded(rows, width), _padded(weights, width)
        if readable(ids):  # few ids are new: on CPU only theirs are read
            at = mixed.nonzero().squeeze(1)
            rows[at], weights[at] = self._mixtures(position[at], width)
            return rows, weights
        others, shares = self._mixtures(position, width)
        mixed = mixed.unsqueeze(1)
        return torch.where(mixed, others, rows), torch.where(mixed, shares, weights)

    def _mixtures(self, place: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The rows, int64 [n, width], and weights, float32, of the new items at these positions."""
        rows = unpack(self.words, self.bits, place, self.lookups).view(-1, self.lookups)
        return _padded(rows, width), _padded(self.shares.index_select(0, place).float() / FULL, width)

    def known_ids(self) -> Tensor:
        """The new items, int64 [n], without the place that stands for none."""
        return self.new_ids[self.new_ids >= 0].long()

    def growth(self, rows: int) -> int:
        """Return how many more bytes the packed rows take in a table with this many rows."""
        return 4 * (packed_words(self.shares.numel(), bits_for(rows)) - self.words.numel())

    def extra_repr(self) -> str:
        return "" if self.new_ids.is_meta else f"{self.known_ids().numel()} new items read rows of neighbours"


def _blocks(neighbours: Neighbours, read: Read) -> list[tuple[Tensor, Tensor]]:
    """The neighbours and weights of so many items at a time that their pieces fit into memory."""
    pieces = read(neighbours.ids.new_zeros(1))[0].shape[1]
    step = max(1, _BLOCK // max(1, neighbours.nearest.shape[1] * pieces))
    return list(zip(neighbours.nearest.long().split(step), neighbours.weights.split(step), strict=True))


def _votes(nearest: Tensor, each: Tensor, read: Read, lookups: int) -> tuple[Tensor, Tensor]:
    """The rows that most neighbours read, int64 [n, lookups], best first, and their weights, uint8."""
    each = each.masked_fill(nearest < 0, 0)
    each = each / each.sum(1, keepdim=True).clamp(min=torch.finfo(each.dtype).tiny)
    rows, weights = read(nearest.clamp(min=0).flatten())
    weights = (weights.view(*nearest.shape, rows.shape[1]) * each.unsqueeze(2)).flatten(1)
    rows, order = rows.view(weights.shape).sort(1)
    starts = torch.ones_like(rows, dtype=torch.bool)
    starts[:, 1:] = rows[:, 1:] != rows[:, :-1]
    run = starts.cumsum(1) - 1  # equal rows lie side by side: one run each
    votes = torch.zeros_like(weights).scatter_add_(1, run, weights.gather(1, order))
    votes, best = votes.sort(dim=1, descending=True, stable=True)
    rows = torch.zeros_like(rows).scatter_(1, run, rows).gather(1, best)
    rows, votes = (_padded(values[:, :lookups], lookups) for values in (rows, votes))
    return rows, (votes * FULL).round().clamp(max=FULL).to(torch.uint8)


def _padded(values: Tensor, width: int) -> Tensor:
    spare = width - values.shape[1]
    return F.pad(values, (0, spare)) if spare else values
