"""Arrays of small integers without spare bits: entry i is bits [i * bits, (i + 1) * bits) of a stream of int32 words.

The stream is little-endian. It ends with two spare words, so that every entry can be read by one load of 64 bits.
"""

import ctypes

import torch
from torch import Tensor

from embcomp.ops import native
from embcomp.ops.checks import int64, pointer, readable, size

MAX_BITS = 31
_BLOCK = 1 << 20  # entries at a time; a multiple of 32, so that blocks end with a word


def bits_for(values: int) -> int:
    """The bits of an entry with `values` different values: ceil(log2(values)), at least 1.

    Example:
        >>> bits_for(2), bits_for(4096), bits_for(4097)
        (1, 12, 13)
    """
    return max(1, (values - 1).bit_length())


def packed_words(entries: int, bits: int) -> int:
    """The number of int32 words that hold `entries` entries, with the two spare ones."""
    return -(-entries * bits // 32) + 2


def pack(values: Tensor, bits: int) -> Tensor:
    """Pack integers into words.

    Args:
        values: the integers, of any shape, on CPU, each in [0, 2^bits).
        bits: the bits of an entry, 1 to 31.

    Returns:
        The words, int32 [packed_words(values.numel(), bits)].

    Raises:
        ValueError: `bits` is out of range, a value does not fit, or there are 2^32 entries or more.

    Example:
        >>> import torch
        >>> words = pack(torch.tensor([5, 0, 7]), bits=3)
        >>> words.tolist() == [5 + (7 << 6), 0, 0], unpack(words, 3, torch.tensor([2, 0])).tolist()
        (True, [7, 5])
    """
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits must be in [1, {MAX_BITS}], got {bits}")
    values = values.reshape(-1)
    if values.numel() >= 1 << 32:
        raise ValueError(f"a packed array holds less than 2^32 entries, got {values.numel()}")
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < 1 << bits:
        raise ValueError(f"values in [{int(values.min())}, {int(values.max())}] do not fit {bits} bits")
    words = torch.zeros(packed_words(values.numel(), bits), dtype=torch.int64, device="cpu")
    for start in range(0, values.numel(), _BLOCK):
        block = values[start : start + _BLOCK].long()
        at = torch.arange(start, start + block.numel(), device="cpu") * bits
        pair = block << (at & 31)  # below 2^62
        words.index_add_(0, at >> 5, pair & 0xFFFFFFFF)  # bits of different entries never meet: sums are unions
        words.index_add_(0, (at >> 5) + 1, pair >> 32)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def unpack_reference(words: Tensor, bits: int, ids: Tensor, width: int = 1) -> Tensor:
    """Compute `unpack` in plain torch: on any device, traceable by torch.compile and torch.export."""
    if width > 1:
        ids = ids.unsqueeze(-1) * width + torch.arange(width, device=ids.device)
    return unpack_at(words, ids * bits, (1 << bits) - 1)


def unpack_at(words: Tensor, at: Tensor, mask: int | Tensor) -> Tensor:
    """Read the entries that start at these bits, int64 of any shape, in plain torch; each may have its own `mask`."""
    word = at >> 5
    low = words[word].long() & 0xFFFFFFFF
    high = words[word + 1].long()
    return torch.bitwise_right_shift(low | (high << 32), at & 31) & mask  # the sign that it copies is above the mask


def unpack(words: Tensor, bits: int, ids: Tensor, width: int = 1) -> Tensor:
    """Read entries of packed words.

    Args:
        words: the words, int32, from `pack`.
        bits: the bits of an entry.
        ids: the ids to read, int64 [N].
        width: the number of entries of an id; id i reads entries i * width .. i * width + width - 1.

    Returns:
        The entries, int64 [N], or [N, width] if width > 1.

    Raises:
        IndexError: the words do not hold an entry.
        ValueError: `pack` did not make such arrays.

    Example:
        >>> import torch
        >>> words = pack(torch.tensor([[1, 2], [3, 4]]), bits=3)
        >>> unpack(words, 3, torch.tensor([1, 0]), width=2)
        tensor([[3, 4],
                [1, 2]])
    """
    lib = native.library() if readable(words, ids) else None
    if lib is None:
        return unpack_reference(words, bits, ids, width)
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    words, ids = words.contiguous(), ids.contiguous()
    room = _room(words, bits) // width
    out = torch.empty(*ids.shape, *([width] if width > 1 else []), dtype=torch.int64, device=ids.device)
    if lib.unpack(
        pointer("words", words, torch.int32, words.numel()), size(bits), int64("ids", ids, *ids.shape),
        size(ids.numel()), size(width), ctypes.c_int64(room), int64("out", out, *out.shape),
    ):  # fmt: skip
        wrong = ids[(ids < 0) | (ids >= room)]
        raise IndexError(f"entry {int(wrong[0])} is out of range: the words hold {room}")
    return out


def _room(words: Tensor, bits: int) -> int:
    """The number of entries that can be read from words."""
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits must be in [1, {MAX_BITS}], got {bits}")
    if words.numel() < 2:
        raise ValueError(f"words end with two spare ones (see `pack`), got {words.numel()} in all")
    return min((words.numel() - 2) * 32 // bits, (1 << 32) - 1)


def unpack_known_reference(words: Tensor, bits: int, ids: Tensor, entries: int, values: int) -> Tensor:
    """Compute `unpack_known` in plain torch."""
    unpacked = unpack_reference(words, bits, ids.clamp(max=max(entries - 1, 0)))
    return unpacked.masked_fill((ids >= entries) | (unpacked >= values), -1)


def unpack_known(words: Tensor, bits: int, ids: Tensor, entries: int, values: int) -> Tensor:
    """Read entries that may be missing.

    Args:
        words: the words, int32, from `pack`.
        bits: the bits of an entry.
        ids: the ids to read, int64 [N], not negative.
        entries: the number of entries; ids beyond have none.
        values: the bound of valid entries; an entry at or above it means "none".

    Returns:
        The entries, int64 [N]; -1 if there is no entry or it means "none".

    Raises:
        IndexError: an id is negative.
        ValueError: the words do not hold so many entries.

    Example:
        >>> import torch
        >>> unpack_known(pack(torch.tensor([1, 3, 0]), bits=2), 2, torch.tensor([0, 1, 9]), entries=3, values=3)
        tensor([ 1, -1, -1])
    """
    lib = native.library() if readable(words, ids) else None
    if lib is None:
        return unpack_known_reference(words, bits, ids, entries, values)
    words, ids = words.contiguous(), ids.contiguous()
    if not 0 <= entries <= _room(words, bits):
        raise ValueError(f"{entries} entries of {bits} bits do not fit {words.numel()} words")
    out = torch.empty(ids.shape, dtype=torch.int64, device=ids.device)
    if lib.unpack_known(
        pointer("words", words, torch.int32, words.numel()), size(bits), int64("ids", ids, *ids.shape),
        size(ids.numel()), ctypes.c_int64(entries), ctypes.c_int64(values), int64("out", out, *out.shape),
    ):  # fmt: skip
        raise IndexError(f"entry {int(ids.min())} is out of range: entries count from 0")
    return out
