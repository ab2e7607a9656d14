"""Rows of small integers, packed row by row: value j of a row is bits [j * bits, (j + 1) * bits) of its bytes.

The stream of a row is little-endian and starts with a byte, so a row of n values takes ceil(n * bits / 8) bytes and is
read without its neighbours. All in plain torch, on any device, traceable by torch.compile and torch.export.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK = 1 << 20  # values at a time
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


def row_nbytes(values: int, bits: int) -> int:
    """Bytes of a packed row.

    Example:
        >>> row_nbytes(16, bits=4), row_nbytes(5, bits=3)
        (8, 2)
    """
    return -(-values * bits // 8)


def _group(bits: int) -> tuple[int, int]:
    """The fewest bytes that hold whole values, and how many they hold."""
    nbytes = math.lcm(bits, 8) // 8
    return nbytes, 8 * nbytes // bits


def pack_rows(values: Tensor, bits: int) -> Tensor:
    """Packs rows.

    Args:
        values: uint8 [rows, n], each below 2^bits.
        bits: 1 to 8.

    Returns:
        uint8 [rows, ceil(n * bits / 8)]; the bits behind the last value of a row are 0.

    Raises:
        ValueError: a value that does not fit.

    Example:
        >>> import torch
        >>> pack_rows(torch.tensor([[1, 2, 3], [15, 0, 0]], dtype=torch.uint8), bits=4)
        tensor([[33,  3],
                [15,  0]], dtype=torch.uint8)
    """
    if values.numel() and int(values.max()) >= 1 << bits:
        raise ValueError(f"value {int(values.max())} does not fit {bits} bits")
    count, width = values.shape
    packed = values.new_empty(count, row_nbytes(width, bits))
    nbytes, each = _group(bits)
    shifts = torch.arange(each, device=values.device) * bits
    places = torch.arange(nbytes, device=values.device) * 8
    step = max(1, _BLOCK // max(width, 1))
    for start in range(0, count, step):
        block = F.pad(values[start : start + step], (0, -width % each)).long()
        words = (block.view(len(block), -1, each) << shifts).sum(-1, keepdim=True)  # bits never meet: sums are unions
        whole = ((words >> places) & 255).to(torch.uint8).flatten(1)
        packed[start : start + step] = whole[:, : packed.shape[1]]
    return packed


def gather_rows(packed: Tensor, rows: Tensor) -> Tensor:
    """Rows of a packed table: uint8 [all, bytes], int64 [N] -> uint8 [N, bytes].

    Short rows are read as a few long words of one flat array, which takes torch a third of the time of a row that is
    copied.
    """
    width = packed.shape[1]
    word = math.gcd(width, 8)
    each = width // word
    if each > 4:
        return packed.index_select(0, rows)
    words = packed.view(-1).view(_WORDS[word])
    if each > 1:
        rows = (rows.unsqueeze(1) * each + torch.arange(each, device=rows.device)).view(-1)
    return words.index_select(0, rows).view(torch.uint8).view(-1, width)


def unpack_rows(packed: Tensor, bits: int, values: int) -> Tensor:
    """The values of packed rows.

    Args:
        packed: uint8 [N, ceil(values * bits / 8)].
        bits: 1 to 8.
        values: how many a row has.

    Returns:
        uint8 [N, values].

    Example:
        >>> import torch
        >>> unpack_rows(torch.tensor([[33, 3]], dtype=torch.uint8), bits=4, values=3)
        tensor([[1, 2, 3]], dtype=torch.uint8)
    """
    if bits == 8:
        return packed
    nbytes, each = _group(bits)
    if nbytes == 1:
        words = packed
    else:
        kind = torch.int32 if nbytes < 4 else torch.int64
        groups = -(-packed.shape[1] // nbytes)  # as a number, because there may be no row
        whole = F.pad(packed, (0, groups * nbytes - packed.shape[1]))
        parts = whole.view(packed.shape[0], groups, nbytes).unbind(-1)
        words = parts[0].to(kind)
        for place, part in enumerate(parts[1:], 1):
            words = words | (part.to(kind) << 8 * place)
    mask = 2**bits - 1
    found = torch.stack([((words >> bits * j) & mask).to(torch.uint8) for j in range(each)], -1).flatten(1)
    return found[:, :values] if found.shape[1] > values else found
