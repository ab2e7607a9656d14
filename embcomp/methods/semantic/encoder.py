"""The encoder of `SemanticIds`: from the codes of an id to the rows of its pieces."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from embcomp.methods.base import ENCODERS, Encoder, Rows, Table
from embcomp.methods.maps import SharedMaps
from embcomp.methods.semantic.item_codes import ItemCodes
from embcomp.methods.semantic.neighbour_rows import NeighbourRows
from embcomp.methods.semantic.reading import Reading
from embcomp.methods.semantic.upgrade import upgraded
from embcomp.methods.together import Parts
from embcomp.ops.hashing import hash_key, hash_rows
from embcomp.ops.search import lower_bound
from embcomp.ops.together.pieces import pieces


class SemanticEncoder(Encoder):
    """An encoder from the codes of an id to the rows of its supported pieces; an id without any reads hashed rows.

    Args:
        table: the table whose ids are encoded.
        config: the settings that a state dict keeps.
        items: the codes of the items, which tables of the same codes hold together.
        reading: the settings by which codes read rows.
        mixtures: the rows that new items read instead of their own; held together, too.
    """

    items: ItemCodes
    mixtures: NeighbourRows | None
    keys: Tensor

    def __init__(
        self,
        table: Table,
        config: Mapping[str, Any],
        items: ItemCodes,
        reading: Reading,
        mixtures: NeighbourRows | None = None,
    ) -> None:
        super().__init__(table, config)
        self.items, self.reading = items, reading
        self.register_module("mixtures", mixtures)
        self.register_buffer("keys", self._keys(), persistent=False)

    def _keys(self) -> Tensor:
        """The keys of the pieces, which all tables of a group share, then those of the fallback and of the id row."""
        seed, count = self.reading.seed, len(self.reading.spans)
        ids = self.table.name if self.reading.own_ids else "semantic_ids"
        pieces = [hash_key(seed, "semantic_ids", j) for j in range(count)]
        fallback = [hash_key(seed, f"{ids}/fallback", j) for j in range(count + 1)]
        return torch.tensor([*pieces, *fallback], device="cpu")

    def reset_buffers(self) -> None:
        self.keys.copy_(self._keys())

    # The maps by the names under which they are saved.
    codes = property(lambda self: self.items.codes)
    supported = property(lambda self: self.items.supported)
    as_new = property(lambda self: self.items.as_new)
    owners = property(lambda self: self.items.owners)
    new_ids = property(lambda self: self.mixtures.new_ids)
    words = property(lambda self: self.mixtures.words)
    shares = property(lambda self: self.mixtures.shares)

    @property
    def fallbacks(self) -> int:
        """The number of ids without a supported piece or neighbours, which read hashed rows."""
        without = self.items.supported == 0
        if self.mixtures is not None:
            without[self.mixtures.known_ids()] = False
        return int(without.sum())

    def encode(self, ids: Tensor) -> list[Rows]:
        reading = self.reading
        # In training some ids are read as if they were new, so that the model learns to judge those that are.
        learns = self.training and reading.dropout
        new = torch.rand(ids.shape, device=ids.device) < reading.dropout if learns else None
        rows, weights = self.pieces(ids, new)
        if self.mixtures is not None:
            assert weights is not None
            rows, weights = self.mixtures.mixed_in(ids, rows, weights)
        chunks = [Rows(rows, weights)]
        if reading.concat:
            split = [None] * len(reading.spans) if weights is None else weights.split(1, 1)
            chunks = [Rows(row, weight) for row, weight in zip(rows.split(1, 1), split, strict=True)]
        return chunks if reading.id_rows is None else [*chunks, self._id_row(ids, new)]

    def together_with(self, chunk: int) -> Hashable | None:
        """Return a key of encoders that read alike; None where ids read other rows than those of pieces."""
        reading, items = self.reading, self.items
        if self.mixtures is not None or reading.concat or reading.dropout or reading.id_rows is not None:
            return None
        return reading, items.codes.dtype, items.codes.shape[1], items.supported.dtype

    @classmethod
    def encode_together(cls, asked: Parts) -> Rows:
        """Return the rows of several encoders (`embcomp.methods.together`)."""
        reading = asked.encoder_of[0].reading
        supported = asked.buffers("supported") if reading.weighted else None
        codes, keys = asked.buffers("codes"), asked.buffers("keys")
        return Rows(*pieces(asked.batch, codes, supported, keys, reading.plan(), reading.size, reading.rows))

    def pieces(self, ids: Tensor, new: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the row of each piece of an id, and whether it is read.

        Args:
            ids: the ids, int64 [N].
            new: the ids to read as if they were new, bool [N]; None for none.

        Returns:
            The rows, int64 [N, P], and their weights, 1 or 0, float32 [N, P]; None if every piece is read.
        """
        items, reading, is_open = self.items, self.reading, self.table.num_embeddings is None
        count = len(reading.spans)
        known_ids = ids.clamp(max=items.count - 1) if is_open else ids
        rows = reading.rows_of(items.codes.index_select(0, known_ids).long(), self.keys)
        if not reading.weighted:
            return rows, None
        bits = items.supported.index_select(0, known_ids).long()
        if is_open:
            bits = torch.where(ids < items.count, bits, 0)
        without = (bits == 0).unsqueeze(1)
        rows = torch.where(without, hash_rows(ids, self.keys[count : 2 * count], reading.rows), rows)
        if new is not None and items.as_new is not None:
            bits = torch.where(new, bits & items.as_new.index_select(0, known_ids).long(), bits)
        weights = torch.bitwise_right_shift(bits.unsqueeze(1), torch.arange(count, device=ids.device)) & 1
        return rows, torch.where(without, 1, weights).float()

    def content_pieces(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `pieces` does, with weights of 0 for ids whose hashed rows tell nothing of content."""
        rows, weights = self.pieces(ids)
        assert weights is not None
        return rows, weights * (self.items.supported[ids] != 0).unsqueeze(1)

    def _id_row(self, ids: Tensor, new: Tensor | None) -> Rows:
        owners, id_rows = self.items.owners, self.reading.id_rows
        assert id_rows is not None
        if owners is None:
            return Rows(hash_rows(ids, self.keys[-1:], id_rows))
        narrow = ids.to(owners.dtype).contiguous()
        own_row = lower_bound(owners, narrow).clamp(max=owners.numel() - 1)
        owned = owners[own_row] == narrow
        read = owned if new is None else owned & ~new
        return Rows(torch.where(owned, own_row, 0).unsqueeze(1), read.unsqueeze(1).float())

    def _shared(self) -> list[SharedMaps]:
        return [maps for maps in (self.items, self.mixtures) if maps is not None]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for maps in self._shared():
            maps.save_for(destination, prefix, keep_vars)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        shared = [(maps, maps.of_state(state_dict, prefix)) for maps in self._shared()]
        rest = {key: value for key, value in state_dict.items() if not any(key in own for _, own in shared)}
        super()._load_from_state_dict(rest, prefix, *args, **kwargs)
        for maps, own in shared:
            maps.load_for(own, prefix, *args, **kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(upgraded(state))

    def extra_repr(self) -> str:
        fallbacks = "" if self.items.supported.is_meta else f", {self.fallbacks} items on the fallback"
        return f"{self.items.count} items, {len(self.reading.spans)} pieces{fallbacks}"


ENCODERS["NeighbourEncoder"] = SemanticEncoder  # in files of before, of items with neighbours
