"""Rows of small integers whose columns differ in width, packed column group by column group without spare bits."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.ops.packed_rows import line_nbytes, pack_rows, packed_nbytes, read_rows

_ALIGNED = 8  # groups begin at a multiple, so that they can be read as long words

Groups = tuple[tuple[int, int], ...]
"""(columns, bits) of each group of neighboring columns."""


def groups_nbytes(rows: int, groups: Groups) -> int:
    """Bytes of packed rows.

    Example:
        >>> groups_nbytes(100, ((2, 4), (5, 1)))
        176
    """
    return sum(-(-packed_nbytes(rows, columns, bits) // _ALIGNED) * _ALIGNED for columns, bits in groups)


@dataclass(frozen=True)
class PackedColumns:
    """Packed rows.

    Attributes:
        data: uint8 [bytes], the groups one after the other, each from `embcomp.ops.packed_rows.pack_rows`.
        rows: how many rows there are.
        groups: how many columns follow each other with how many bits, 1 to 8.
    """

    data: Tensor
    rows: int
    groups: Groups

    @classmethod
    def of(cls, codes: Tensor, groups: Groups) -> "PackedColumns":
        """Pack uint8 [rows, columns].

        Raises:
            ValueError: a code that does not fit its column.

        Example:
            >>> import torch
            >>> packed = PackedColumns.of(torch.tensor([[7, 1], [0, 0], [5, 1]], dtype=torch.uint8), ((1, 3), (1, 1)))
            >>> packed.data.numel(), packed.read(torch.tensor([2]))
            (16, tensor([[5, 1]], dtype=torch.uint8))
        """
        parts = []
        for part, (_, bits) in zip(codes.split([columns for columns, _ in groups], 1), groups, strict=True):
            flat = pack_rows(part, bits).reshape(-1)
            parts.append(F.pad(flat, (0, -flat.numel() % _ALIGNED)))
        return cls(torch.cat(parts), len(codes), groups)

    @property
    def columns(self) -> int:
        """How many columns a row has."""
        return sum(columns for columns, _ in self.groups)

    @property
    def levels(self) -> Tensor:
        """How many values a column takes, int64 [columns]."""
        return torch.cat([torch.full((columns,), 1 << bits) for columns, bits in self.groups]).to(self.data.device)

    def bounds(self) -> Iterator[tuple[int, int]]:
        """Where each group begins and ends, in bytes."""
        start = 0
        for columns, bits in self.groups:
            nbytes = packed_nbytes(self.rows, columns, bits)
            yield start, start + nbytes
            start += -(-nbytes // _ALIGNED) * _ALIGNED

    def read(self, rows: Tensor) -> Tensor:
        """The codes of rows, int64 [n] -> uint8 [n, columns]."""
        found = []
        for (start, end), (columns, bits) in zip(self.bounds(), self.groups, strict=True):
            lines = self.data[start:end].view(-1, line_nbytes(columns, bits))
            found.append(read_rows(lines, bits, columns, rows))
        return torch.cat(found, 1) if len(found) > 1 else found[0]

    def centered(self, rows: Tensor) -> Tensor:
        """The codes of rows less the middle of their column, float32 [n, columns]."""
        return self.read(rows).float() - (self.levels - 1).float() / 2
