"""A table of rows for the semantic codes of items, level by level."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CodeLevels(nn.Module):
    """A table with a row for each code of each level.

    Args:
        codes: the codes of the items, integers `[num_items, levels]`, -1 at all levels for an item without content.
        dim: the width D of a row.
        codebook_size: the number of codes of a level, by default the largest code plus one.

    Raises:
        ValueError: the codes have another shape, or one is beyond the code book.

    Shapes: ids int64 `[*]` -> `[*, levels, D]`, zeros without content.
    """

    codes: Tensor

    def __init__(self, codes: Tensor, dim: int, codebook_size: int | None = None) -> None:
        super().__init__()
        if codes.dim() != 2 or codes.is_floating_point() or not codes.numel():
            raise ValueError(f"codes must be integers [num_items, levels], got {codes.dtype} {list(codes.shape)}")
        size = int(codes.max()) + 1 if codebook_size is None else codebook_size
        if int(codes.max()) >= size or int(codes.min()) < -1:
            raise ValueError(f"codes lie within {int(codes.min())} .. {int(codes.max())}, but a level has {size} codes")
        self.levels, self.size = codes.shape[1], size
        # one row more at each level, which stays zero, for items without content
        known = torch.where(codes < 0, size, codes).to(torch.uint8 if size < 256 else torch.int32)
        self.register_buffer("codes", known)
        self.rows = nn.Parameter(torch.randn(self.levels, size, dim) * 0.02 * self.levels**0.5)

    def forward(self, ids: Tensor) -> Tensor:
        codes = self.codes[ids].long()
        first = torch.arange(self.levels, device=ids.device) * self.size
        known = (codes < self.size).unsqueeze(-1)
        rows = F.embedding(first + codes.clamp(max=self.size - 1), self.rows.flatten(0, 1))
        return torch.where(known, rows, 0.0)

    def groups(self) -> Tensor:
        """Return a group number for each item, int64 `[num_items]`, equal if all codes but the last are equal.

        Items without content, and all items if there is a single level, are groups of one.
        """
        alone = torch.arange(len(self.codes), device=self.codes.device)
        if self.levels == 1:
            return alone
        _, number = self.codes[:, :-1].unique(dim=0, return_inverse=True)
        return torch.where(self.codes[:, 0] < self.size, number, alone + len(alone))
