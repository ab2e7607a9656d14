"""Rows of small integers whose columns differ in width, packed column group by column group without spare bits."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.ops.packed_rows import line_nbytes, pack_rows, packed_nbytes, read_rows

_ALIGNED = 8  # groups begin at a multiple, so that they can be read as long words

Groups = tuple[tuple[int, int], ...]
"""The number of columns and the bits of each group of adjacent columns."""


def groups_nbytes(rows: int, groups: Groups) -> int:
    """The bytes of packed rows.

    Example:
        >>> groups_nbytes(100, ((2, 4), (5, 1)))
        176
    """
    return sum(-(-packed_nbytes(rows, columns, bits) // _ALIGNED) * _ALIGNED for columns, bits in groups)


@dataclass(frozen=True)
class PackedColumns:
    """Packed rows whose columns differ in width.

    Attributes:
        data: the groups one after the other, each from `embcomp.ops.packed_rows.pack_rows`, uint8 [bytes].
        rows: the number of rows.
        groups: the number of columns and the bits, 1 to 8, of each group of adjacent columns.
    """

    data: Tensor
    rows: int
    groups: Groups

    @classmethod
    def of(cls, codes: Tensor, groups: Groups) -> "PackedColumns":
        """Pack codes, uint8 [rows, columns].

        Raises:
            ValueError: a code does not fit its column.

        Example:
            >>> import torch
            >>> packed = PackedColumns.of(torch.tensor([[7, 1], [0, 0], [5, 1]], dtype=torch.uint8), ((1, 3), (1, 1)))
            >>> packed.data.numel(), packed.read(torch.tensor([2]))
            (16, tensor([[5, 1]], dtype=torch.uint8))
        """
        parts = []
        for group_codes, (_, bits) in zip(codes.split([columns for columns, _ in groups], 1), groups, strict=True):
            flat = pack_rows(group_codes, bits).reshape(-1)
            parts.append(F.pad(flat, (0, -flat.numel() % _ALIGNED)))
        return cls(torch.cat(parts), len(codes), groups)

    @property
    def columns(self) -> int:
        """The number of columns of a row."""
        return sum(columns for columns, _ in self.groups)

    @property
    def levels(self) -> Tensor:
        """The number of values of each column, int64 [columns]."""
        return torch.cat([torch.full((columns,), 1 << bits) for columns, bits in self.groups]).to(self.data.device)

    def bounds(self) -> Iterator[tuple[int, int]]:
        """Yield the first byte of each group, and its end."""
        start = 0
        for columns, bits in self.groups:
            nbytes = packed_nbytes(self.rows, columns, bits)
            yield start, start + nbytes
            start += -(-nbytes // _ALIGNED) * _ALIGNED

    def read(self, rows: Tensor) -> Tensor:
        """Return the codes of rows, int64 [n] -> uint8 [n, columns]."""
        codes = []
        for (start, end), (columns, bits) in zip(self.bounds(), self.groups, strict=True):
            lines = self.data[start:end].view(-1, line_nbytes(columns, bits))
            codes.append(read_rows(lines, bits, columns, rows))
        return torch.cat(codes, 1) if len(codes) > 1 else codes[0]

    def centered(self, rows: Tensor) -> Tensor:
        """Return the codes of rows minus the middle of their column, float32 [n, columns]."""
        return self.read(rows).float() - (self.levels - 1).float() / 2
