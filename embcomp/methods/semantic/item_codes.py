"""The facts about items that the encoders of `SemanticIds` share: codes, and which pieces have support."""

import torch
from torch import Tensor

from embcomp.methods.maps import SharedMaps


class ItemCodes(SharedMaps):
    """The codes of the items, one copy for all tables of a group.

    The codes are stored, not the rows: at 1 or 2 bytes per level they are the smallest form (rows would take 4 bytes
    for each piece), and computing the rows takes a few operations per batch.

    Args:
        columns: the columns of codes that pieces are made of, int64 [N, C], -1 where an item has none.
        supported: the pieces that an item reads, bool [N, P].
        as_new: the pieces that an item would read if it were new, bool [N, P]; None if no item is read as new.
        owners: the ids that own an id row, ascending, integers [n]; None if no id owns one.
        size: the number of values that a column can have.
    """

    codes: Tensor
    supported: Tensor
    as_new: Tensor | None
    owners: Tensor | None

    def __init__(
        self, columns: Tensor, supported: Tensor, as_new: Tensor | None, owners: Tensor | None, size: int
    ) -> None:
        super().__init__()
        self.register_buffer("codes", columns.clamp(min=0).to(_narrow(size)))
        self.register_buffer("supported", _bits(supported))
        self.register_buffer("as_new", None if as_new is None else _bits(as_new))
        self.register_buffer("owners", owners)

    @property
    def count(self) -> int:
        """The number of items."""
        return self.codes.shape[0]


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
