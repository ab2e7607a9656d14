"""Balanced hashing: a keyed permutation of a known id space, cut into rows (specified in docs/hashing.md).

A hash draws rows with replacement, so that of n ids in n rows about a third have a row alone, and some share a row with
three others. If the id space is known to be [0, n), its ids are permuted instead: each row is read by n / rows ids,
rounded up or down, and by one id if there are rows for all `places`.

The permutation is an unbalanced Feistel network of 4 half rounds over pairs (high, low), each a multiply-shift hash
with two 64-bit numbers of the key (Dietzfelbinger 1996, strongly universal).
"""

import ctypes
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embcomp.ops import native
from embcomp.ops.checks import int64, readable, size

KEY_WORDS = 8
MAX_IDS = 2**60
_WORD = (1 << 32) - 1
Number = int | Tensor


def balanced_key(seed: int, table: str, chunk: int) -> list[int]:
    """Return the 8 signed 64-bit numbers of one balanced hash: SHA-512 of the text whose SHA-256 is `hash_key`.

    Example:
        >>> len(balanced_key(seed=0, table="user_id", chunk=0))
        8
    """
    digest = hashlib.sha512(f"embcomp/1/{seed}/{chunk}/{table}".encode()).digest()
    return [int.from_bytes(digest[i : i + 8], "little", signed=True) for i in range(0, 64, 8)]


@dataclass(frozen=True)
class Domain:
    """The domain of a permutation, high * 2^low_bits + low with `high` values of high, and its scaling to rows.

    It is the smallest domain of this shape that holds the ids, which exceeds their number by less than its square root
    (`places`). If there are more rows, it is the largest domain that fits into them, so that the ids spread over all
    rows. The scaling is a multiply-shift.
    """

    low_bits: int
    high: int
    scale: int
    shift: int

    @property
    def numbers(self) -> tuple[int, int, int, int, int, int]:
        """The numbers low_bits, mask of low_bits bits, shift from 64 bits to low_bits, high, scale and shift."""
        mask = (1 << self.low_bits) - 1
        return self.low_bits, mask, min(64 - self.low_bits, 63), self.high, self.scale, self.shift

    @classmethod
    def of(cls, num_embeddings: int, rows: int) -> "Domain":
        if not 1 <= num_embeddings <= MAX_IDS:
            raise ValueError(f"a balanced hash takes 1 .. 2^60 ids, got {num_embeddings}; use a plain hash")
        low_bits = (num_embeddings - 1).bit_length() // 2
        high = max(-(-num_embeddings >> low_bits), rows >> low_bits)
        places = high << low_bits
        if places <= rows:
            return cls(low_bits, high, 1, 0)
        shift = 62 - rows.bit_length()
        return cls(low_bits, high, (rows << shift) // places, shift)


def places(num_embeddings: int) -> int:
    """Return how many rows keep all ids apart: num_embeddings plus less than its square root.

    Example:
        >>> [places(n) for n in (1, 2, 7, 18, 1000)]
        [1, 2, 8, 20, 1024]
    """
    domain = Domain.of(num_embeddings, 1)
    return domain.high << domain.low_bits


def balanced_rows_reference(ids: Tensor, keys: Tensor, domain: Domain) -> Tensor:
    """Compute `balanced_rows` in plain torch: on any device, traceable by torch.compile and torch.export."""
    return balanced_rows_each(ids, [keys[:, i, None] for i in range(KEY_WORDS)], *domain.numbers)


def balanced_rows_each(
    ids: Tensor,
    keys: Sequence[Tensor],
    low_bits: Number,
    low_mask: Number,
    low_shift: Number,
    high_places: Number,
    scale: Number,
    shift: Number,
) -> Tensor:
    """Compute rows under keys and domains that may differ from id to id, in plain torch.

    Args:
        ids: the ids, int64 of any shape.
        keys: the `KEY_WORDS` numbers of the keys, int64 of a shape that broadcasts with that of the ids.
        low_bits: the first of `Domain.numbers`; this and the following are numbers, or int64 that broadcasts.
        low_mask: the second of `Domain.numbers`.
        low_shift: the third of `Domain.numbers`.
        high_places: the fourth of `Domain.numbers`.
        scale: the fifth of `Domain.numbers`.
        shift: the sixth of `Domain.numbers`.
    """
    high, low = ids >> low_bits, ids & low_mask
    for i in range(0, KEY_WORDS, 4):
        a, b, c, d = keys[i : i + 4]
        low = low ^ ((torch.addcmul(b, high, a) >> low_shift) & low_mask)  # the upper bits, as many as low has
        high = (high + ((_upper(torch.addcmul(d, low, c)) * high_places) >> 32)) % high_places
    return (((high << low_bits) + low) * scale) >> shift


def _upper(x: Tensor) -> Tensor:
    """The upper 32 bits, as an unsigned number."""
    return (x >> 32) & _WORD


def balanced_rows(ids: Tensor, keys: Tensor, num_embeddings: int, rows: int, out: Tensor | None = None) -> Tensor:
    """Compute the rows of `ids` under each key, [keys, ids].

    Args:
        ids: the ids, int64 [N], each in [0, num_embeddings), which is not checked.
        keys: the keys, int64 [K, 8], from `balanced_key`.
        num_embeddings: the number of ids.
        rows: the number of rows, 1 .. 2^31 - 1.
        out: a tensor to write into, int64 [K, N], contiguous.

    Returns:
        The rows, int64 [K, N] in [0, rows). Under each key at most ceil(places / rows) ids have the same row, where
        `places` is num_embeddings plus less than its square root.

    Example:
        >>> import torch
        >>> keys = torch.tensor([balanced_key(0, "item", 0)])
        >>> balanced_rows(torch.arange(1000), keys, num_embeddings=1000, rows=1100).unique().numel()
        1000
    """
    domain = Domain.of(num_embeddings, rows)
    lib = native.library() if readable(ids, keys, *([] if out is None else [out])) else None
    if lib is None:
        key_rows = balanced_rows_reference(ids, keys, domain)
        return key_rows if out is None else out.copy_(key_rows)
    if out is None:
        out = torch.empty(len(keys), ids.numel(), dtype=torch.int64, device=ids.device)
    ids, keys = ids.contiguous(), keys.contiguous()
    numbers = map(ctypes.c_int64, (domain.low_bits, domain.high, domain.scale, domain.shift))
    lib.balanced_rows(
        int64("ids", ids, ids.numel()), size(ids.numel()), int64("keys", keys, len(keys), KEY_WORDS), size(len(keys)),
        int64("out", out, len(keys), ids.numel()), *numbers,
    )  # fmt: skip
    return out
