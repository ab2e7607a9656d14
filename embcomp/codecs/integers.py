"""The codec of rows that are integers, without a float copy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embcomp.codecs.base import Codec, Coded, Coding
from embcomp.ops.grid_rows import grid_bags
from embcomp.ops.integer_tables import codes_of, read_rows, row_nbytes, steps_of, write_rows
from embcomp.ops.packed_rows import packed_nbytes

_STEP_BYTES = 4  # a step is served as float32


@dataclass(frozen=True)
class Integers(Coding):
    """A coding with integers of 8 or 4 bits on a symmetric grid without a zero, and a step for each row.

    Attributes:
        bits: the bits of a value, 8 or 4.
    """

    bits: int

    def row_nbytes(self, dim: int, float_bytes: int) -> int:
        return row_nbytes(dim, self.bits)

    def nbytes(self, rows: int, dim: int, float_bytes: int) -> int:
        return 0

    def served_nbytes(self, rows: int, dim: int) -> int:
        return packed_nbytes(rows, dim, self.bits) + rows * _STEP_BYTES

    def decode(
        self,
        packed: Tensor,
        dim: int,
        constants: Mapping[str, Tensor],
        rows: Tensor,
        offsets: Tensor | None = None,
        weights: Tensor | None = None,
        mode: str = "sum",
    ) -> Tensor:
        return grid_bags(packed, self.bits, dim, constants["step"], 1, rows, offsets, weights, mode)

    def module(self, rows: int, dim: int, device: Any = None, dtype: torch.dtype | None = None) -> "IntegerCodec":
        return IntegerCodec(self, rows, dim)


class IntegerCodec(Codec):
    """A codec that reads and writes rows of integers, uint8 [rows, bytes], which contain their steps; no parameters."""

    def __init__(self, coding: Integers, rows: int, dim: int) -> None:
        super().__init__(coding, rows, dim)
        self.bits = coding.bits

    def forward(self, stored: Tensor, rows: Tensor, measured: Tensor | None) -> Tensor:
        return self.values(stored.flatten(0, -2)).unflatten(0, stored.shape[:-1])

    def values(self, stored: Tensor) -> Tensor:
        return read_rows(stored, self.dim, self.bits)

    @torch.no_grad()
    def fit_(self, stored: Tensor, values: Tensor | None = None) -> None:
        if values is not None:
            stored.copy_(write_rows(stored, values.float(), self.bits))

    def reset_parameters(self) -> None:
        """Do nothing: there are no parameters."""

    @torch.no_grad()
    def code(self, stored: Tensor) -> Coded:
        return Coded(codes_of(stored, self.dim, self.bits), self.bits, {"step": steps_of(stored).reshape(-1)})

    def extra_repr(self) -> str:
        return f"bits={self.bits}"
