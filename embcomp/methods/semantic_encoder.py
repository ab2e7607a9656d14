"""The encoder of `SemanticIds`: from the codes of an id to the rows of its pieces."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from embcomp.methods.base import Encoder, Rows, Table
from embcomp.ops.hashing import hash_key, hash_rows
from embcomp.ops.search import lower_bound
from embcomp.semantic_ids.pieces.base import Span, numbers


class Range(NamedTuple):
    """The rows [start, start + rows) of one piece, which reads the row of its number, or of its hash under a key."""

    start: int
    rows: int
    key: int | None = None


def ranges_of(spans: Sequence[Span], size: int, rows: int, one_namespace: bool) -> list[Range]:
    """Assign the rows that the pieces of each span read.

    Each piece owns a row if all fit. Otherwise pieces of coarse spans own rows while these take at most half of the
    table, and finer pieces share the remaining rows by hashing.
    """
    if one_namespace:
        return [Range(0, rows, None if size <= rows else 0)] * len(spans)
    many = [size ** len(span) for span in spans]
    limit = rows if sum(many) <= rows else rows // 2
    found, start = [], 0
    for each in many:
        if start + each > limit:
            break
        found.append(Range(start, each))
        start += each
    return found + [Range(start, rows - start, key) for key in range(len(found), len(spans))]


class SemanticEncoder(Encoder):
    """An encoder from the codes of an id to the rows of its supported pieces; an id without any reads hashed rows.

    The codes are stored, not the rows: at 1 or 2 bytes per level they are the smallest form (rows would take 4 bytes
    for each piece), and computing the rows takes a few operations per batch.

    Attributes:
        maps: the names of the buffers that tables with the same codes share.
    """

    maps: ClassVar[tuple[str, ...]] = ("codes", "supported", "as_new", "owners")

    codes: Tensor
    supported: Tensor
    as_new: Tensor | None
    keys: Tensor
    owners: Tensor

    def __init__(
        self,
        table: Table,
        config: Mapping[str, Any],
        *,
        columns: Tensor,
        supported: Tensor,
        spans: Sequence[Span],
        size: int,
        ranges: Sequence[Range],
        rows: int,
        concat: bool,
        weighted: bool,
        dropout: float,
        as_new: Tensor | None,
        seed: int,
        own_ids: bool,
        id_rows: int | None,
        owners: Tensor | None,
    ) -> None:
        super().__init__(table, config)
        self.spans, self.size, self.ranges, self.rows = tuple(spans), size, tuple(ranges), rows
        self.concat, self.weighted, self.dropout, self.seed = concat, weighted, dropout, seed
        self.own_ids, self.id_rows = own_ids, id_rows
        self.register_buffer("codes", columns.clamp(min=0).to(_narrow(size)))
        self.register_buffer("supported", _bits(supported))
        self.register_buffer("as_new", None if as_new is None else _bits(as_new))
        self.register_buffer("keys", self._keys(), persistent=False)
        self.register_buffer("owners", owners)

    def _keys(self) -> Tensor:
        """The keys of the pieces, which all tables of a group share, then those of the fallback and of the id row."""
        ids = self.table.name if self.own_ids else "semantic_ids"
        pieces = [hash_key(self.seed, "semantic_ids", j) for j in range(len(self.spans))]
        fallback = [hash_key(self.seed, f"{ids}/fallback", j) for j in range(len(self.spans) + 1)]
        return torch.tensor([*pieces, *fallback], device="cpu")

    def share_maps(self, other: "SemanticEncoder") -> None:
        """Replace the maps by the equal maps of another table's encoder, so that one copy serves both."""
        for name in self.maps:
            self._buffers[name] = other._buffers[name]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move maps in place, as parameters are moved, so that tables that share them still do on another device."""
        before = {name: self._buffers[name] for name in self.maps}
        super()._apply(fn, recurse)
        for name, map in before.items():
            moved = self._buffers[name]
            if map is None or moved is None or moved is map:
                continue
            if torch._has_compatible_shallow_copy_type(map, moved):  # pyright: ignore[reportPrivateImportUsage]
                map.data = moved
                self._buffers[name] = map
        return self

    def reset_buffers(self) -> None:
        self.keys.copy_(self._keys())

    @property
    def fallbacks(self) -> int:
        """The number of ids without a supported piece, which read hashed rows."""
        return int((self.supported == 0).sum())

    def encode(self, ids: Tensor) -> list[Rows]:
        # In training some ids are read as if they were new, so that the model learns to judge those that are.
        new = torch.rand(ids.shape, device=ids.device) < self.dropout if self.training and self.dropout else None
        rows, weights = self._pieces(ids, new)
        chunks = [Rows(rows, weights)]
        if self.concat:
            split = [None] * len(self.spans) if weights is None else weights.split(1, 1)
            chunks = [Rows(row, weight) for row, weight in zip(rows.split(1, 1), split, strict=True)]
        return chunks if self.id_rows is None else [*chunks, self._id_row(ids, new)]

    def _pieces(self, ids: Tensor, new: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The row of each piece, int64 [N, P], and its weight, 1 if it is read and else 0, float32 [N, P]."""
        count = len(self.spans)
        place = ids.clamp(max=self.codes.shape[0] - 1) if self.table.num_embeddings is None else ids
        columns = self.codes.index_select(0, place).long()
        found = numbers(columns, self.spans, self.size)
        rows = torch.stack([self._rows_of(number, *r) for number, r in zip(found, self.ranges, strict=True)], 1)
        if not self.weighted:
            return rows, None
        bits = self.supported.index_select(0, place).long()
        if self.table.num_embeddings is None:
            bits = torch.where(ids < self.codes.shape[0], bits, 0)
        without = (bits == 0).unsqueeze(1)
        rows = torch.where(without, hash_rows(ids, self.keys[count : 2 * count], self.rows), rows)
        if new is not None and self.as_new is not None:
            bits = torch.where(new, bits & self.as_new.index_select(0, place).long(), bits)
        weights = torch.bitwise_right_shift(bits.unsqueeze(1), torch.arange(count, device=ids.device)) & 1
        weights = torch.where(without, 1, weights).float()
        return rows, weights

    def _rows_of(self, number: Tensor, start: int, rows: int, key: int | None) -> Tensor:
        return start + (number if key is None else hash_rows(number, self.keys[key : key + 1], rows).squeeze(1))

    def _id_row(self, ids: Tensor, new: Tensor | None) -> Rows:
        assert self.id_rows is not None
        if self.owners is None:
            return Rows(hash_rows(ids, self.keys[-1:], self.id_rows))
        narrow = ids.to(self.owners.dtype).contiguous()
        place = lower_bound(self.owners, narrow).clamp(max=self.owners.numel() - 1)
        owned = self.owners[place] == narrow
        read = owned if new is None else owned & ~new
        return Rows(torch.where(owned, place, 0).unsqueeze(1), read.unsqueeze(1).float())

    def extra_repr(self) -> str:
        fallbacks = "" if self.supported.is_meta else f", {self.fallbacks} items on the fallback"
        return f"{self.codes.shape[0]} items, {len(self.spans)} pieces{fallbacks}"


def _bits(pieces: Tensor) -> Tensor:
    """Pack pieces, bool [N, P], into one integer for each item, a bit for each piece."""
    count = pieces.shape[1]
    return (pieces.long() << torch.arange(count, device="cpu")).sum(1).to(_narrow(2**count))


def _narrow(size: int) -> torch.dtype:
    """The smallest integer dtype for values in [0, size)."""
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if size - 1 <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64
