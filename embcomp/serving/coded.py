"""The served stores of tables that were trained in few bits: the packed codes of a codec."""

import torch
from torch import Tensor

from embcomp.codecs.base import Codec, Coded
from embcomp.ops.packed_rows import pack_rows
from embcomp.serving.finite import check_finite
from embcomp.serving.stores import ServedStore


class CodedStore(ServedStore):
    """A store of packed codes and their constants. A traced program uses plain torch, a call here the compiled forms.

    Args:
        codec: the codec of the trained rows.
        coded: the served form of the rows.
        dtype: the dtype of the returned vectors.

    Attributes:
        bits: the bits of a code.
    """

    def __init__(self, codec: Codec, coded: Coded, dtype: torch.dtype) -> None:
        super().__init__(codec.rows, codec.dim, dtype)
        self.coding, self.bits = codec.coding, coded.bits
        self.kind = f"{coded.bits} bit{'s' if coded.bits > 1 else ''}"
        self.register_buffer("table", pack_rows(coded.codes.cpu(), coded.bits))
        self.constants = tuple(coded.constants)
        for name, value in coded.constants.items():
            self.register_buffer(name, value.detach().cpu().clone())

    def look_up(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        if rows.shape[-1] > 1:
            return super().look_up(rows, weights)
        weights = None if weights is None else weights.float().reshape(-1)
        return self._decode(rows.reshape(-1), None, weights).to(self.dtype)

    def _pool(self, rows: Tensor, offsets: Tensor, weights: Tensor | None, mode: str) -> Tensor:
        return self._decode(rows, offsets, weights, mode)

    def _decode(self, rows: Tensor, offsets: Tensor | None, weights: Tensor | None, mode: str = "sum") -> Tensor:
        constants = {name: getattr(self, name) for name in self.constants}
        return self.coding.decode(self.table, self.dim, constants, rows, offsets, weights, mode)


def serve_coded(rows: Tensor, codec: Codec, out: torch.dtype, table: str) -> CodedStore:
    """Make the store of trained rows that have a codec.

    Args:
        rows: the rows as they were trained, floats [rows, width].
        codec: the codec of the rows.
        out: the dtype of the returned vectors.
        table: the name of a table that reads the rows, for errors.

    Raises:
        ValueError: rows or constants are not finite, or a step is 0.
    """
    if not bool(rows.isfinite().all()):
        raise ValueError(
            f"table {table!r} holds NaN or infinite values, which no grid can hold; look for the cause in the training"
        )
    coded = codec.code(rows)
    for name, value in coded.constants.items():
        check_finite(table, name, value)
    return CodedStore(codec, coded, out)
