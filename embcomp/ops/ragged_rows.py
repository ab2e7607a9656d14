"""Packed rows of small integers whose bits differ from row to row, one row after the other in one stream of bits.

The number of bits of each row is packed beside the rows, and the start of every 32nd row is stored; or, if that takes
fewer bytes, the first row of each run of rows with equal bits, the bits of the run and its start: rows that are sorted
by their bits need no map. Everything is plain torch, on any device, traceable by torch.compile and torch.export.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.ops.packing import bits_for, pack, packed_words, unpack, unpack_at

TOGETHER = 32  # rows whose start is stored once
_BLOCK = 1 << 14  # rows at a time


def ragged_nbytes(rows: int, dim: int, bits: int, most: int, runs: int | None = None) -> int:
    """Return the bytes of packed rows: of the stream, the numbers of bits and the starts.

    Args:
        rows: the number of rows.
        dim: the number of values of a row.
        bits: the sum over all rows of the bits of a value.
        most: the most bits of a value.
        runs: the number of runs of rows with equal bits, or None to count the numbers of single rows.

    Example:
        >>> ragged_nbytes(64, 4, bits=64 * 3, most=3)  # 96 bytes, 16 of numbers, 8 of starts, 16 spare ones
        136
        >>> ragged_nbytes(64, 4, bits=64 * 3, most=3, runs=1)  # 96 bytes, 9 of the run, 8 spare ones
        113
    """
    places = _map_nbytes(rows, most)
    if runs is not None:
        places = min(places, run_nbytes(rows, most) * runs)
    return 4 * packed_words(dim, bits) + places


def _map_nbytes(rows: int, most: int) -> int:
    blocks = -(-rows // TOGETHER)
    return 4 * packed_words(blocks * TOGETHER, bits_for(most + 1)) + blocks * _starts(rows, most).itemsize


def run_nbytes(rows: int, most: int) -> int:
    """Return the bytes that a run of rows with equal bits takes beside its rows."""
    return 1 + 2 * _starts(rows, most).itemsize


def _starts(rows: int, most: int) -> torch.dtype:
    return torch.int32 if rows * most < 2**31 else torch.int64


def pack_ragged(values: Tensor, bits: Tensor, most: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Pack rows.

    Args:
        values: the values, int64 [rows, dim], each below 2^bits; those of rows without bits are ignored.
        bits: the bits of each row's values, int64 [rows], 0 to `most`.
        most: the most bits of a value, at most 8.

    Returns:
        The stream, uint8 [bytes, 1]; and the places of rows in it: "widths", the packed numbers of bits, int32, and
        "starts", their sum before every 32nd row; or for each run "firsts", its first row, "widths", uint8, "starts".
    """
    rows, dim = values.shape
    values, bits = values.cpu(), bits.cpu()
    before = bits.cumsum(0) - bits
    words = torch.zeros(packed_words(dim, int(bits.sum())), dtype=torch.int64, device="cpu")
    for start in range(0, rows, _BLOCK):
        own = bits[start : start + _BLOCK].unsqueeze(1)
        at = before[start : start + _BLOCK].unsqueeze(1) * dim + torch.arange(dim, device="cpu") * own
        pair = (values[start : start + _BLOCK] & ((1 << own) - 1)) << (at & 31)
        words.index_add_(0, (at >> 5).reshape(-1), (pair & 0xFFFFFFFF).reshape(-1))  # bits never meet: sums are unions
        words.index_add_(0, ((at >> 5) + 1).reshape(-1), (pair >> 32).reshape(-1))
    stream = torch.where(words >= 1 << 31, words - (1 << 32), words).int().view(torch.uint8).unsqueeze(1)
    own, number = bits.unique_consecutive(return_counts=True)
    if len(own) * run_nbytes(rows, most) < _map_nbytes(rows, most):
        firsts = number.cumsum(0) - number
        places = {"firsts": firsts, "starts": before[firsts]}
        return stream, {name: each.to(_starts(rows, most)) for name, each in places.items()} | {"widths": own.byte()}
    numbers = pack(F.pad(bits, (0, -rows % TOGETHER)), bits_for(most + 1))
    return stream, {"widths": numbers, "starts": before[::TOGETHER].to(_starts(rows, most))}


def read_ragged(
    stream: Tensor, dim: int, places: Mapping[str, Tensor], most: int, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Read rows that `pack_ragged` packed.

    Args:
        stream: the stream, uint8 [bytes, 1].
        dim: the number of values of a row.
        places: the places of rows in the stream, of `pack_ragged`; other entries are ignored.
        most: the most bits of a value.
        rows: the rows to read, int64 [N].

    Returns:
        The values, int64 [N, dim], 0 in rows without bits; and the bits of each row's values, int64 [N].

    Example:
        >>> import torch
        >>> stream, places = pack_ragged(torch.tensor([[5, 6], [9, 9], [1, 0]]), torch.tensor([4, 0, 1]), most=4)
        >>> read_ragged(stream, 2, places, 4, torch.tensor([2, 0, 1]))
        (tensor([[1, 0],
                [5, 6],
                [0, 0]]), tensor([1, 4, 0]))
    """
    own, before = _of_runs(places, rows) if "firsts" in places else _of_map(places, most, rows)
    at = before.unsqueeze(1) * dim + torch.arange(dim, device=rows.device) * own.unsqueeze(1)
    mask = torch.bitwise_left_shift(torch.ones_like(own), own) - 1
    return unpack_at(stream.view(-1).view(torch.int32), at, mask.unsqueeze(1)), own


def _of_map(places: Mapping[str, Tensor], most: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bits of each row, and the sum of the bits of the rows before it."""
    block = rows // TOGETHER
    position = (rows - block * TOGETHER).unsqueeze(1)
    bits = unpack(places["widths"], bits_for(most + 1), block, TOGETHER)
    earlier = (bits * (torch.arange(TOGETHER, device=rows.device) < position)).sum(1)
    return bits.gather(1, position).squeeze(1), places["starts"][block].long() + earlier


def _of_runs(places: Mapping[str, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
    firsts = places["firsts"].long()
    run = torch.searchsorted(firsts, rows, right=True) - 1
    own = places["widths"][run].long()
    return own, places["starts"][run].long() + (rows - firsts[run]) * own
