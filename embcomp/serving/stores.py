"""Stores of a served model: the calls of `PlainStore`, fewer bytes, no gradients.

Integer rows are read by the kernels that torch itself brings for them (FBGEMM's, where the processor has them), so a
file with them is served by torch alone. Their rows are not padded: a row of 16 takes 24 bytes as int8 (codes, and scale
and bias as float32), 12 as int4 (scale and bias as float16).
"""

import abc
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embcomp.nn.stores import pool_vectors
from embcomp.serving.quantize import quantize

Dtype = Literal["int8", "int4", "float16", "float32"]
DTYPES: tuple[Dtype, ...] = ("int8", "int4", "float16", "float32")


class ServedStore(nn.Module, abc.ABC):
    """Rows as they are served.

    Args:
        rows: floats [rows, dim]; copied.
        dtype: of the vectors that come out.

    Attributes:
        kind: how the rows are stored.
    """

    kind: Dtype
    table: Tensor

    def __init__(self, rows: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.rows, self.dim = rows.shape
        self.dtype = dtype
        self.register_buffer("table", self.stored(rows))

    @property
    def device(self) -> torch.device:
        return self.table.device

    @staticmethod
    @abc.abstractmethod
    def row_bytes(dim: int) -> int:
        """What a row takes."""

    @staticmethod
    @abc.abstractmethod
    def stored(rows: Tensor) -> Tensor:
        """The table that holds these rows. Raises OverflowError where it cannot."""

    @abc.abstractmethod
    def look_up(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """See `PlainStore.look_up`."""

    @abc.abstractmethod
    def pool(self, rows: Tensor, offsets: Tensor, weights: Tensor | None = None, mode: str = "sum") -> Tensor:
        """See `PlainStore.pool`."""


class Float32Store(ServedStore):
    """Rows as they are."""

    kind = "float32"

    @staticmethod
    def row_bytes(dim: int) -> int:
        return 4 * dim

    @staticmethod
    def stored(rows: Tensor) -> Tensor:
        return rows.detach().to("cpu", torch.float32, copy=True)

    def look_up(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        vectors = F.embedding(rows, self.table).float()
        if weights is not None:
            vectors = vectors * weights.float().unsqueeze(-1)
        return (vectors.squeeze(1) if rows.shape[1] == 1 else vectors.sum(1)).to(self.dtype)

    def pool(self, rows: Tensor, offsets: Tensor, weights: Tensor | None = None, mode: str = "sum") -> Tensor:
        each = None if weights is None else weights.float().reshape(-1)
        bags: dict[str, Any] = {"mode": mode, "per_sample_weights": each, "include_last_offset": True}
        return F.embedding_bag(rows.reshape(-1), self.table, offsets * rows.shape[1], **bags).to(self.dtype)


class Float16Store(Float32Store):
    """Rows in half precision, added up in single precision."""

    kind = "float16"

    @staticmethod
    def row_bytes(dim: int) -> int:
        return 2 * dim

    @staticmethod
    def stored(rows: Tensor) -> Tensor:
        half = rows.detach().to("cpu", torch.float16)
        if bool(half.isinf().any()):
            raise OverflowError("a value exceeds float16")
        return half

    def pool(self, rows: Tensor, offsets: Tensor, weights: Tensor | None = None, mode: str = "sum") -> Tensor:
        # The look-ups of an id are added up first; "mean" is asked for where each id has one.
        vectors = self.look_up(rows, weights).float()
        return pool_vectors(vectors, offsets, mode).to(self.dtype)


class Int8Store(ServedStore):
    """8 bits a value; after them scale and bias of the row as float32."""

    kind = "int8"

    @staticmethod
    def row_bytes(dim: int) -> int:
        return dim + 8

    @staticmethod
    def stored(rows: Tensor) -> Tensor:
        codes, scale, bias = quantize(rows, bits=8, half=False)
        return torch.cat([codes, torch.cat([scale, bias], 1).view(torch.uint8)], 1)

    @property
    def _sum(self) -> Callable[..., Tensor]:
        return torch.ops.quantized.embedding_bag_byte_rowwise_offsets

    def look_up(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        count, lookups = rows.shape
        return self._pool(rows, torch.arange(count + 1, device=rows.device) * lookups, weights).to(self.dtype)

    def pool(self, rows: Tensor, offsets: Tensor, weights: Tensor | None = None, mode: str = "sum") -> Tensor:
        pooled = self._pool(rows, offsets * rows.shape[1], weights)
        if mode == "mean":
            pooled = pooled / offsets.diff().clamp(min=1).unsqueeze(-1)
        return pooled.to(self.dtype)

    def _pool(self, rows: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
        each = None if weights is None else weights.float().reshape(-1).contiguous()
        rest: tuple[Any, ...] = (False, 0, False, each, None, True)  # sums, nothing pruned, the last offset included
        return self._sum(self.table, rows.reshape(-1).contiguous(), offsets.contiguous(), *rest)[:, : self.dim]


class Int4Store(Int8Store):
    """4 bits a value, the first of a pair in the low half; after them scale and bias of the row as float16."""

    kind = "int4"

    @staticmethod
    def row_bytes(dim: int) -> int:
        return -(-dim // 2) + 4

    @staticmethod
    def stored(rows: Tensor) -> Tensor:
        codes, scale, bias = quantize(rows, bits=4, half=True)
        codes = F.pad(codes, (0, codes.shape[1] % 2))
        return torch.cat([codes[:, ::2] | codes[:, 1::2] << 4, torch.cat([scale, bias], 1).half().view(torch.uint8)], 1)

    @property
    def _sum(self) -> Callable[..., Tensor]:
        return torch.ops.quantized.embedding_bag_4bit_rowwise_offsets


STORES: dict[str, type[ServedStore]] = {
    store.kind: store for store in (Int8Store, Int4Store, Float16Store, Float32Store)
}


def serve(rows: Tensor, dtype: Dtype, out: torch.dtype, table: str) -> ServedStore:
    """The store of these rows in the dtype asked for, or in a float dtype whose rows are no wider.

    A row of 4 values takes 12 bytes as int8, because of its scale and bias, and 8 as float16.

    Args:
        rows: floats [rows, dim].
        dtype: the widest that is allowed.
        out: dtype of the vectors that come out.
        table: a table that reads the rows, for the error.

    Raises:
        ValueError: the dtype cannot hold the values.

    Example:
        >>> import torch
        >>> wide, narrow = torch.randn(5, 64), torch.randn(5, 4)
        >>> [serve(rows, "int8", torch.float32, "item").kind for rows in (wide, narrow)]
        ['int8', 'float16']
    """
    if dtype == "float32":
        return Float32Store(rows, out)
    if not bool(rows.isfinite().all()):
        raise ValueError(
            f"table {table!r} holds NaN or infinite values, which {dtype} cannot serve; find out where training went "
            "wrong, or export the table as float32"
        )
    asked = STORES[dtype]
    kind = asked if asked.row_bytes(rows.shape[1]) < Float16Store.row_bytes(rows.shape[1]) else Float16Store
    for store in dict.fromkeys((kind, asked)):
        try:
            return store(rows, out)
        except OverflowError:
            continue
    largest = float(rows.abs().max())
    raise ValueError(
        f"table {table!r}: values up to {largest:.3g} are too large for {dtype}; export the table as float32 "
        f"(dtype={{{table!r}: 'float32', '*': {dtype!r}}}), or train it with weight decay"
    )


def _meta_of_4_bits(weight: Tensor, indices: Tensor, offsets: Tensor, *rest: Any) -> Tensor:
    return weight.new_empty((offsets.shape[0] - 1, 2 * (weight.shape[1] - 4)), dtype=torch.float32)


# Tracing asks for the shape of the result, which torch knows for the 8-bit kernel alone.
_KERNEL = "embedding_bag_4bit_rowwise_offsets"
if not torch._C._dispatch_has_kernel_for_dispatch_key(f"quantized::{_KERNEL}", "Meta"):  # pyright: ignore
    _library = torch.library.Library("quantized", "IMPL")
    _library.impl(_KERNEL, _meta_of_4_bits, "Meta")
