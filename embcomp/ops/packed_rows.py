"""Rows of small integers, packed one after the other: value j of row i is bits [(i * n + j) * bits, ...) of the stream.

The stream is little-endian. Rows are grouped into lines, the fewest consecutive rows that end at a byte: one row if n *
bits is a multiple of 8, at most 8 rows. Everything is plain torch, on any device, traceable by torch.compile and
torch.export.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.ops.checks import readable

_BLOCK = 1 << 20  # values at a time
_CACHE = 1 << 23  # bytes that the last cache of a processor holds at least
_WORDS = {16: torch.complex128, 8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


def rows_of_line(values: int, bits: int) -> int:
    """The number of rows in a line.

    Example:
        >>> rows_of_line(16, bits=4), rows_of_line(10, bits=2)
        (1, 2)
    """
    return 8 // math.gcd(values * bits, 8)


def line_nbytes(values: int, bits: int) -> int:
    """The bytes of a line.

    Example:
        >>> line_nbytes(16, bits=4), line_nbytes(10, bits=2)
        (8, 5)
    """
    return math.lcm(values * bits, 8) // 8


def packed_nbytes(rows: int, values: int, bits: int) -> int:
    """The bytes of packed rows, with a whole last line.

    Example:
        >>> packed_nbytes(1000, 10, bits=2)
        2500
    """
    return -(-rows // rows_of_line(values, bits)) * line_nbytes(values, bits)


def _group(bits: int) -> tuple[int, int]:
    """The smallest number of bytes that holds whole values, and the number of these values."""
    nbytes = math.lcm(bits, 8) // 8
    return nbytes, 8 * nbytes // bits


def pack_rows(values: Tensor, bits: int) -> Tensor:
    """Pack rows of small integers.

    Args:
        values: the values, uint8 [rows, n], each below 2^bits.
        bits: the bits of a value, 1 to 8.

    Returns:
        The packed rows, uint8 [lines, bytes of a line]; the bits after the last row are 0.

    Raises:
        ValueError: a value does not fit.

    Example:
        >>> import torch
        >>> pack_rows(torch.tensor([[1, 2, 3], [15, 0, 0], [7, 0, 0]], dtype=torch.uint8), bits=4)
        tensor([[ 33, 243,   0],
                [  7,   0,   0]], dtype=torch.uint8)
    """
    if values.numel() and int(values.max()) >= 1 << bits:
        raise ValueError(f"value {int(values.max())} does not fit {bits} bits")
    count, width = values.shape
    together = rows_of_line(width, bits)
    lines = F.pad(values, (0, 0, 0, -count % together)).reshape(-(-count // together), together * width)
    packed = values.new_empty(len(lines), line_nbytes(width, bits))
    nbytes, each = _group(bits)
    shifts = torch.arange(each, device=values.device) * bits
    places = torch.arange(nbytes, device=values.device) * 8
    step = max(1, _BLOCK // max(lines.shape[1], 1))
    for start in range(0, len(lines), step):
        block = F.pad(lines[start : start + step], (0, -lines.shape[1] % each)).long()
        words = (block.view(len(block), -1, each) << shifts).sum(-1, keepdim=True)  # bits never meet: sums are unions
        whole = ((words >> places) & 255).to(torch.uint8).flatten(1)
        packed[start : start + step] = whole[:, : packed.shape[1]]
    return packed


def gather_lines(packed: Tensor, lines: Tensor) -> Tensor:
    """Gather lines of a packed table: uint8 [all, bytes], int64 [N] -> uint8 [N, bytes].

    Lines of one word are read as one flat array, which takes torch half the time of copying lines. Of a table beyond
    the cache one word of each line is read first: torch waits for many words at once, but for lines one by one.
    """
    width = packed.shape[1]
    # torch views no words that begin elsewhere, and compilers do not ask where a tensor begins
    fits = width in _WORDS and (torch.compiler.is_compiling() or packed.storage_offset() % width == 0)
    if fits and (width < 16 or readable(packed)):  # compilers do not take complex numbers
        return packed.view(-1).view(_WORDS[width]).index_select(0, lines).view(torch.uint8).view(-1, width)
    if packed.numel() > _CACHE and width % 8 == 0 and readable(packed, lines) and packed.storage_offset() % 8 == 0:
        packed.view(-1).view(torch.int64).index_select(0, lines * (width // 8))
    return packed.index_select(0, lines)


def unpack_lines(packed: Tensor, bits: int, values: int) -> Tensor:
    """Unpack the values of lines.

    Args:
        packed: the lines, uint8 [N, ceil(values * bits / 8)].
        bits: the bits of a value, 1 to 8.
        values: the number of values of a line.

    Returns:
        The values, uint8 [N, values].

    Example:
        >>> import torch
        >>> unpack_lines(torch.tensor([[33, 3]], dtype=torch.uint8), bits=4, values=3)
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
        group_bytes = whole.view(packed.shape[0], groups, nbytes).unbind(-1)
        words = group_bytes[0].to(kind)
        for position, byte in enumerate(group_bytes[1:], 1):
            words = words | (byte.to(kind) << 8 * position)
    mask = 2**bits - 1
    unpacked = torch.stack([((words >> bits * j) & mask).to(torch.uint8) for j in range(each)], -1).flatten(1)
    return unpacked[:, :values] if unpacked.shape[1] > values else unpacked


def read_rows(packed: Tensor, bits: int, values: int, rows: Tensor) -> Tensor:
    """Unpack the values of rows.

    Args:
        packed: the packed rows, uint8 [lines, bytes of a line], from `pack_rows`.
        bits: the bits of a value, 1 to 8.
        values: the number of values of a row.
        rows: the rows to read, int64 [N].

    Returns:
        The values, uint8 [N, values].

    Example:
        >>> import torch
        >>> packed = pack_rows(torch.tensor([[1, 2, 3], [15, 0, 0]], dtype=torch.uint8), bits=4)
        >>> read_rows(packed, 4, 3, torch.tensor([1]))
        tensor([[15,  0,  0]], dtype=torch.uint8)
    """
    together = rows_of_line(values, bits)
    if together == 1:
        return unpack_lines(gather_lines(packed, rows), bits, values)
    unpacked = unpack_lines(gather_lines(packed, rows // together), bits, together * values)
    row_in_line = (rows % together).view(-1, 1, 1).expand(-1, 1, values)
    return unpacked.view(-1, together, values).gather(1, row_in_line).squeeze(1)
