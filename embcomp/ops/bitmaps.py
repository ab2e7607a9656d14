"""Bitmaps whose set bits can be counted up to any place: bit i is bit i % 8 of byte i // 8, in windows of 256 bits.

Everything is plain torch, on any device, traceable by torch.compile and torch.export.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW = 256  # bits, before which the number of set bits is stored once
_BYTES = WINDOW // 8
_BLOCK = 1 << 20  # bits at a time; a multiple of the window


def bitmap_windows(bits: int) -> int:
    """The number of windows that hold so many bits.

    Example:
        >>> bitmap_windows(1), bitmap_windows(256), bitmap_windows(257)
        (1, 1, 2)
    """
    return -(-bits // WINDOW)


def pack_bitmap(bits: Tensor) -> Tensor:
    """Pack bits into windows.

    Args:
        bits: the bits, bool [N].

    Returns:
        The bitmap, uint8 [bitmap_windows(N), 32]; the bits after the last one are 0.

    Example:
        >>> import torch
        >>> pack_bitmap(torch.tensor([True, False, True, True]))[0, :2]
        tensor([13,  0], dtype=torch.uint8)
    """
    packed = torch.empty(bitmap_windows(len(bits)), _BYTES, dtype=torch.uint8, device=bits.device)
    shifts = torch.arange(8, device=bits.device, dtype=torch.uint8)
    for start in range(0, len(bits), _BLOCK):
        block = bits[start : start + _BLOCK]
        block = F.pad(block, (0, -len(block) % WINDOW)).view(-1, _BYTES, 8).to(torch.uint8)
        first = start // WINDOW
        packed[first : first + len(block)] = (block << shifts).sum(2).to(torch.uint8)
    return packed


def ones_before(bitmap: Tensor) -> Tensor:
    """Count the set bits before each window, int32 [windows]."""
    each = _ones(bitmap).sum(1)
    return (each.cumsum(0) - each).int()


def bits_at(bitmap: Tensor, places: Tensor) -> Tensor:
    """Read bits at places, int64 of any shape; returns bool of that shape."""
    byte = bitmap.view(-1)[places >> 3]
    return ((byte >> (places & 7).to(torch.uint8)) & 1).bool()


def rank_at(bitmap: Tensor, starts: Tensor, places: Tensor) -> Tensor:
    """Count the set bits before each place.

    Args:
        bitmap: the bitmap, uint8 [windows, 32].
        starts: the set bits before each window, from `ones_before`.
        places: the places, int64 [N].

    Returns:
        The numbers, int64 [N].

    Example:
        >>> import torch
        >>> bitmap = pack_bitmap(torch.tensor([True, False, True, True]))
        >>> rank_at(bitmap, ones_before(bitmap), torch.tensor([0, 1, 3]))
        tensor([0, 1, 2])
    """
    window = places // WINDOW
    inside = (places - window * WINDOW).unsqueeze(1)
    before = (inside - 8 * torch.arange(_BYTES, device=places.device)).clamp(0, 8)
    masked = bitmap[window] & ((1 << before) - 1).to(torch.uint8)
    return starts[window].long() + _ones(masked).sum(1)


def _ones(numbers: Tensor) -> Tensor:
    """Count the set bits of bytes."""
    numbers = numbers - (numbers >> 1 & 0x55)
    numbers = (numbers & 0x33) + (numbers >> 2 & 0x33)
    return (numbers + (numbers >> 4)) & 0x0F
