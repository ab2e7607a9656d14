"""The encoder of `SemanticIds(neighbours=...)`: a new item reads the rows of its nearest training items."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.methods.semantic_encoder import SemanticEncoder
from embcomp.ops.hashing import readable
from embcomp.ops.packing import bits_for, pack, packed_words, unpack
from embcomp.ops.search import lower_bound
from embcomp.semantic_ids.neighbours import Neighbours

FULL = 255  # the weight of a row that all neighbours read
_BLOCK = 1 << 20  # pieces of neighbours at a time


class NeighbourEncoder(SemanticEncoder):
    """A `SemanticEncoder` in which the items of `neighbours` read the rows that most of their neighbours read.

    The weight of a row is the (weighted) share of the neighbours that read it, in steps of 1/255. The vector is then
    the weighted mean of their vectors, without the rows that few of them read.
    """

    maps: ClassVar[tuple[str, ...]] = (*SemanticEncoder.maps, "new_ids", "words", "shares")

    new_ids: Tensor
    words: Tensor
    shares: Tensor

    def __init__(self, *args: Any, neighbours: Neighbours, neighbour_rows: int, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.neighbour_rows, self.bits = neighbour_rows, bits_for(self.rows)
        rows, shares = self._votes(neighbours)
        found = shares[:, 0] > 0  # others have no neighbour with a supported piece, and read their own
        ids, rows, shares = neighbours.ids[found], rows[found], shares[found]
        if not ids.numel():  # a place for look-ups to miss
            ids, rows, shares = (
                ids.new_full((1,), -1),
                rows.new_zeros(1, neighbour_rows),
                shares.new_zeros(1, neighbour_rows),
            )
        self.register_buffer("new_ids", ids if self.table.num_embeddings is None else ids.to(torch.int32))
        self.register_buffer("words", pack(rows, self.bits))
        self.register_buffer("shares", shares)
        self.config["new_items"] = ids.numel()

    def _votes(self, neighbours: Neighbours) -> tuple[Tensor, Tensor]:
        """The rows that most neighbours read, int64 [n, neighbour_rows], best first, and their weights, uint8."""
        step = max(1, _BLOCK // max(1, neighbours.nearest.shape[1] * len(self.spans)))
        blocks = zip(neighbours.nearest.long().split(step), neighbours.weights.split(step), strict=True)
        found = [self._votes_of(nearest, weights) for nearest, weights in blocks]
        return torch.cat([rows for rows, _ in found]), torch.cat([shares for _, shares in found])

    def _votes_of(self, nearest: Tensor, each: Tensor) -> tuple[Tensor, Tensor]:
        each = each.masked_fill(nearest < 0, 0)
        each = each / each.sum(1, keepdim=True).clamp(min=torch.finfo(each.dtype).tiny)
        nearest = nearest.clamp(min=0)
        rows, weights = super()._pieces(nearest.flatten(), None)
        assert weights is not None
        each = each * (self.supported[nearest] != 0)  # a hashed row says nothing of content
        weights = (weights.view(*nearest.shape, len(self.spans)) * each.unsqueeze(2)).flatten(1)
        rows, order = rows.view(weights.shape).sort(1)
        starts = torch.ones_like(rows, dtype=torch.bool)
        starts[:, 1:] = rows[:, 1:] != rows[:, :-1]
        run = starts.cumsum(1) - 1  # equal rows lie side by side: one run each
        votes = torch.zeros_like(weights).scatter_add_(1, run, weights.gather(1, order))
        votes, best = votes.sort(dim=1, descending=True, stable=True)
        rows = torch.zeros_like(rows).scatter_(1, run, rows).gather(1, best)
        spare = max(0, self.neighbour_rows - rows.shape[1])
        rows, votes = (F.pad(part[:, : self.neighbour_rows], (0, spare)) for part in (rows, votes))
        return rows, (votes * FULL).round().clamp(max=FULL).to(torch.uint8)

    def _pieces(self, ids: Tensor, new: Tensor | None) -> tuple[Tensor, Tensor | None]:
        rows, weights = super()._pieces(ids, new)
        assert weights is not None
        narrow = ids.to(self.new_ids.dtype).contiguous()
        place = lower_bound(self.new_ids, narrow).clamp(max=self.new_ids.numel() - 1)
        mixed = self.new_ids[place] == narrow
        rows, weights = self._padded(rows, weights)
        if readable(ids):  # few ids are new: on CPU only theirs are read
            at = mixed.nonzero().squeeze(1)
            rows[at], weights[at] = self._mixtures(place[at])
            return rows, weights
        others, shares = self._mixtures(place)
        mixed = mixed.unsqueeze(1)
        return torch.where(mixed, others, rows), torch.where(mixed, shares, weights)

    def _mixtures(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """The rows, int64 [n, look-ups], and weights, float32, of the new items at these positions."""
        rows = unpack(self.words, self.bits, place, self.neighbour_rows).view(-1, self.neighbour_rows)
        return self._padded(rows, self.shares.index_select(0, place).float() / FULL)

    def _padded(self, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        spare = max(len(self.spans), self.neighbour_rows) - rows.shape[1]
        return (F.pad(rows, (0, spare)), F.pad(weights, (0, spare))) if spare else (rows, weights)

    def growth(self, rows: int) -> int:
        """Return how many more bytes the packed rows take in a table with this many rows."""
        return 4 * (packed_words(self.shares.numel(), bits_for(rows)) - self.words.numel())

    @property
    def fallbacks(self) -> int:
        without = self.supported == 0
        without[self.new_ids[self.new_ids >= 0].long()] = False
        return int(without.sum())

    def extra_repr(self) -> str:
        new = "" if self.new_ids.is_meta else f", {int((self.new_ids >= 0).sum())} new items read rows of neighbours"
        return super().extra_repr() + new
