"""The codec of few rows of few columns: whole rows are kept by one rule, and their first columns by another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.codecs.base import Codec, Coded, Coding, weighed
from embcomp.codecs.columns import Columns
from embcomp.codecs.sparse import VALUE_BYTES, Sparse


@dataclass(frozen=True)
class NarrowRows(Coding):
    """The first columns of some rows of a table; all others are zero.

    Attributes:
        mask: the mask of the kept rows.
        first: the number of their columns.
    """

    rounds: ClassVar[bool] = False

    mask: Sparse
    first: Columns

    def nbytes(self, rows: int, dim: int, float_bytes: int) -> int:
        return self.mask.nbytes(rows, dim, float_bytes) + self.first.nbytes(rows, dim, float_bytes)

    def served_nbytes(self, rows: int, dim: int) -> int:
        return self.served_with(rows, self.mask.kept, self.first.width)

    def served_with(self, rows: int, kept: int, width: int) -> int:
        """Return the bytes of the served form with so many rows and columns."""
        return self.mask.map_nbytes(rows) + kept * width * VALUE_BYTES

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
        kept = self.mask.decode(packed, self.mask.block, constants, rows)
        return weighed(F.pad(kept, (0, dim - kept.shape[1])), offsets, weights, mode)

    def module(self, rows: int, dim: int, device: Any = None, dtype: torch.dtype | None = None) -> "NarrowRowsCodec":
        return NarrowRowsCodec(self, rows, dim, device, dtype)


class NarrowRowsCodec(Codec):
    """A codec that masks rows, and then columns; while it searches, as the rules of both.

    Attributes:
        mask: the codec of the rows.
        first: the codec of the columns, for as many rows as are kept.
    """

    def __init__(
        self, coding: NarrowRows, rows: int, dim: int, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(coding, rows, dim)
        self.narrow = coding
        self.mask = coding.mask.module(rows, dim, device, dtype)
        self.first = coding.first.module(coding.mask.kept, dim, device, dtype)

    def reset_parameters(self) -> None:
        self.mask.reset_parameters()
        self.first.reset_parameters()

    @property
    def served_nbytes(self) -> int:
        """The bytes of the served form; of all rows and columns while they are searched."""
        kept = self.rows if bool(self.mask.searching) else self.narrow.mask.kept
        width = self.dim if bool(self.first.searching) else int(self.first.width)
        return self.narrow.served_with(self.rows, kept, width)

    def forward(self, stored: Tensor, rows: Tensor, measured: Tensor | None) -> Tensor:
        return self.first(self.mask(stored, rows, None), rows, None)

    def fit_(self, stored: Tensor, values: Tensor | None = None) -> None:
        self.mask.fit_(stored, values)
        self.first.fit_(stored, values)

    @torch.no_grad()
    def code(self, stored: Tensor) -> Coded:
        kept = self.mask.code(stored)
        values = self.first.code(kept.constants["values"]).constants["values"]
        return Coded(kept.codes, 8, {**kept.constants, "values": values})
