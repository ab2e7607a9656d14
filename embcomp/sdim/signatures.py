"""Signatures: the bucket of a vector in every group, packed into int64."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from embcomp.ops.buckets import words_for
from embcomp.sdim.sequences import taken

if TYPE_CHECKING:
    from embcomp.sdim.sdim import SDIM


def pack(codes: Tensor, hash_width: int) -> Tensor:
    """Codes int64 [..., G], each below 2^hash_width -> signatures int64 [..., words].

    Example:
        >>> import torch
        >>> pack(torch.tensor([[5, 1, 7]]), hash_width=3)  # 7 * 64 + 1 * 8 + 5
        tensor([[461]])
    """
    groups, each = codes.shape[-1], 63 // hash_width
    words = words_for(groups, hash_width)
    codes = nn.functional.pad(codes, (0, words * each - groups)).unflatten(-1, (words, each))
    return (codes << hash_width * torch.arange(each, device=codes.device)).sum(-1)


def unpack(signatures: Tensor, groups: int, hash_width: int) -> Tensor:
    """Signatures int64 [..., words] -> codes int64 [..., groups]; undoes `pack`.

    Example:
        >>> import torch
        >>> unpack(torch.tensor([[461]]), groups=3, hash_width=3)
        tensor([[5, 1, 7]])
    """
    each = 63 // hash_width
    group = torch.arange(groups, device=signatures.device)
    words = signatures if signatures.shape[-1] == 1 else signatures.index_select(-1, group // each)
    return (words >> hash_width * (group % each)) & ((1 << hash_width) - 1)


class ItemSignatures(nn.Module):
    """The signature of every item, hashed once, so that training gathers 8 bytes an event rather than hash it.

    Item vectors move in training and signatures do not: call `refresh` now and then (each epoch, say), and once when
    the training ends. The table is saved with the model.

    Args:
        sdim: whose hashes they are; not kept.
        num_items: how many ids there are.

    Shapes: ids int64 `[...]` -> int64 `[..., words]`, as `SDIM` takes them. Raises IndexError for an id that is none.

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
    def refresh(self, sdim: SDIM, items: Callable[[Tensor], Tensor], chunk: int = 65_536) -> ItemSignatures:
        """Hash all items anew: `items` is their embedding, ids int64 [n] -> float [n, D]. Returns itself."""
        for ids in torch.arange(self.table.shape[0], device=self.table.device).split(chunk):
            self.table[ids] = sdim.signatures(items(ids))
        return self

    def forward(self, ids: Tensor) -> Tensor:
        return taken(self.table, ids)
