"""The signatures of all items, hashed once."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from embcomp.ops.buckets import words_for
from embcomp.sdim.sdim import SDIM
from embcomp.sdim.sequences import taken


class ItemSignatures(nn.Module):
    """The signature of every item, hashed once, so that training reads 8 bytes per event instead of hashing it.

    Item vectors change in training and signatures do not: call `refresh` from time to time (each epoch, say), and once
    when the training ends. The table is saved with the model.

    Args:
        sdim: the module whose hashes are used; it is not kept.
        num_items: the number of ids.

    Shapes: ids int64 `[...]` -> int64 `[..., words]`, as `SDIM` takes them. Raises IndexError for an id out of range.

    Example:
        >>> import torch
        >>> from embcomp.sdim import SDIM, ItemSignatures
        >>> items, sdim = torch.nn.Embedding(1000, 16), SDIM(16)
        >>> signatures = ItemSignatures(sdim, 1000).refresh(sdim, items)
        >>> ids, histories = torch.tensor([7, 8]), torch.randint(0, 1000, (2, 50))
        >>> pooled = sdim(
        ...     items(ids), items(histories),
        ...     candidate_signatures=signatures(ids), sequence_signatures=signatures(histories),
        ... )
        >>> pooled.shape
        torch.Size([2, 16])
    """

    table: Tensor

    def __init__(self, sdim: SDIM, num_items: int) -> None:
        super().__init__()
        words = words_for(sdim.groups, sdim.hash_width)
        self.register_buffer("table", torch.zeros(num_items, words, dtype=torch.int64))

    @torch.no_grad()
    def refresh(self, sdim: SDIM, items: Callable[[Tensor], Tensor], chunk: int = 65_536) -> Self:
        """Hash all items again: `items` is their embedding, ids int64 [n] -> float [n, D]. Return this module."""
        for ids in torch.arange(self.table.shape[0], device=self.table.device).split(chunk):
            self.table[ids] = sdim.signatures(items(ids))
        return self

    def forward(self, ids: Tensor) -> Tensor:
        return taken(self.table, ids)
