"""The stores of a served model: the calls of `PlainStore`, with fewer bytes and without gradients.

Integer rows are read by kernels that are part of torch (FBGEMM's, if the processor supports them), so torch alone
serves a file with them. These kernels need a scale and a bias in each row. Narrow rows would spend half of their bytes
on these, so several of them are stored side by side in one row of at most 32 values: a row of 16 takes 20 bytes as
int8, 10 as int4.
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
_SIDE_BY_SIDE = 32  # values that share a scale where rows are narrower


class ServedStore(nn.Module, abc.ABC):
    """Rows as they are served.

    Args:
        rows: the number of rows.
        dim: the width of a row.
        dtype: the dtype of the returned vectors.

    Attributes:
        kind: the form in which the rows are stored.
        table: the stored tensor.
    """

    kind: str
    table: Tensor

    def __init__(self, rows: int, dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.rows, self.dim, self.dtype = rows, dim, dtype

    @property
    def device(self) -> torch.device:
        return self.table.device

    @property
    def nbytes(self) -> int:
        """The bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @abc.abstractmethod
    def _pool(self, rows: Tensor, offsets: Tensor, weights: Tensor | None, mode: str) -> Tensor:
        """Pool bags over rows [N], float32 weights [N], offsets [B + 1] -> float32 [B, dim]."""

    def look_up(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum the look-ups of each id, as `PlainStore.look_up` does."""
        count, lookups = rows.shape
        offsets = torch.arange(count + 1, device=rows.device) * lookups
        return self._pool(rows.reshape(-1), offsets, _flat(weights), "sum").to(self.dtype)

    def pool(self, rows: Tensor, offsets: Tensor, weights: Tensor | None = None, mode: str = "sum") -> Tensor:
        """Pool bags, as `PlainStore.pool` does; mode "mean" only if each id reads one row."""
        bounds = offsets if rows.shape[-1] == 1 else offsets * rows.shape[-1]
        return self._pool(rows.reshape(-1), bounds, _flat(weights), mode).to(self.dtype)


def _bags(table: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor | None, mode: str) -> Tensor:
    return F.embedding_bag(rows, table, offsets, mode=mode, per_sample_weights=weights, include_last_offset=True)


def _flat(weights: Tensor | None) -> Tensor | None:
    return None if weights is None else weights.float().reshape(-1).contiguous()


class FloatsStore(ServedStore):
    """A store made from float rows, in one of the dtypes.

    Args:
        rows: the rows, floats [rows, dim], which are copied.
        dtype: the dtype of the returned vectors.
    """

    def __init__(self, rows: Tensor, dtype: torch.dtype) -> None:
        super().__init__(rows.shape[0], rows.shape[1], dtype)
        self.register_buffer("table", self._stored(rows.detach()))

    @abc.abstractmethod
    def _stored(self, rows: Tensor) -> Tensor:
        """Make the table that holds these rows, on the CPU. Raise OverflowError if it cannot hold them."""


class Float32Store(FloatsStore):
    """A store of rows in single precision."""

    kind = "float32"

    def _stored(self, rows: Tensor) -> Tensor:
        return rows.to("cpu", torch.float32, copy=True)

    def _pool(self, rows: Tensor, offsets: Tensor, weights: Tensor | None, mode: str) -> Tensor:
        return F.embedding_bag(
            rows, self.table, offsets, mode=mode, per_sample_weights=weights, include_last_offset=True
        )


class Float16Store(FloatsStore):
    """A store of rows in half precision, added up in single precision."""

    kind = "float16"

    def _stored(self, rows: Tensor) -> Tensor:
        half = rows.to("cpu", torch.float16, copy=True)
        if not bool(half.isfinite().all()):
            raise OverflowError("a value exceeds float16")
        return half

    def _pool(self, rows: Tensor, offsets: Tensor, weights: Tensor | None, mode: str) -> Tensor:
        return pool_vectors(F.embedding(rows, self.table).float(), offsets, mode, weights)


class Int8Store(FloatsStore):
    """A store with 8 bits per value, followed by scale and bias as float32."""

    kind = "int8"

    def _stored(self, rows: Tensor) -> Tensor:
        codes, scale, bias = quantize(self._side_by_side(rows), bits=8, half=False)
        return torch.cat([codes, torch.cat([scale, bias], 1).view(torch.uint8)], 1)

    def _side_by_side(self, rows: Tensor) -> Tensor:
        """Arrange rows as [rows / 2^shift, 2^shift x dim]; the last row is repeated to fill up."""
        self.shift = 0
        while 2 ** (self.shift + 1) * self.dim <= _SIDE_BY_SIDE and 2**self.shift < self.rows:
            self.shift += 1
        missing = -self.rows % 2**self.shift
        return torch.cat([rows, rows[-1:].expand(missing, -1)]).view(-1, self.dim << self.shift)

    @property
    def _kernel(self) -> Callable[..., Tensor]:
        return torch.ops.quantized.embedding_bag_byte_rowwise_offsets

    def _pool(self, rows: Tensor, offsets: Tensor, weights: Tensor | None, mode: str) -> Tensor:
        if not self.shift:
            pooled = self._sum(rows, offsets, weights)
            return pooled / offsets.diff().clamp(min=1).unsqueeze(-1) if mode == "mean" else pooled
        # First all the rows that lie with those asked for, then these among them.
        order = torch.arange(rows.shape[0] + 1, device=rows.device)
        vectors = self._sum(rows >> self.shift, order, None).view(-1, self.dim)
        chosen = (order[:-1] << self.shift) + (rows & (2**self.shift - 1))
        return F.embedding_bag(
            chosen, vectors, offsets, mode=mode, per_sample_weights=weights, include_last_offset=True
        )

    def _sum(self, rows: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
        each = None if weights is None else weights.contiguous()
        rest: tuple[Any, ...] = (False, 0, False, each, None, True)  # sums, nothing pruned, the last offset included
        wide = self._kernel(self.table, rows.contiguous(), offsets.contiguous(), *rest)
        return wide[:, : self.dim] if self.dim % 2 and not self.shift else wide  # int4 holds pairs


class Int4Store(Int8Store):
    """A store with 4 bits per value, the first of a pair in the low half, followed by scale and bias as float16."""

    kind = "int4"

    def _stored(self, rows: Tensor) -> Tensor:
        codes, scale, bias = quantize(self._side_by_side(rows), bits=4, half=True)
        codes = F.pad(codes, (0, codes.shape[1] % 2))
        return torch.cat([codes[:, ::2] | codes[:, 1::2] << 4, torch.cat([scale, bias], 1).half().view(torch.uint8)], 1)

    @property
    def _kernel(self) -> Callable[..., Tensor]:
        return torch.ops.quantized.embedding_bag_4bit_rowwise_offsets


_STORES: dict[str, type[FloatsStore]] = {s.kind: s for s in (Int8Store, Int4Store, Float16Store, Float32Store)}


def serve(rows: Tensor, dtype: Dtype, out: torch.dtype, table: str) -> FloatsStore:
    """Make the store of these rows.

    Args:
        rows: the rows, floats [rows, dim].
        dtype: the form in which to store them.
        out: the dtype of the returned vectors.
        table: the name of a table that reads the rows, for errors.

    Raises:
        ValueError: the dtype cannot hold the values.

    Example:
        >>> import torch
        >>> rows = torch.randn(1000, 16)
        >>> [serve(rows, dtype, torch.float32, "item").table.nbytes // 1000 for dtype in ("float16", "int8", "int4")]
        [32, 20, 10]
    """
    if dtype != "float32" and not bool(rows.isfinite().all()):
        raise ValueError(
            f"table {table!r} holds NaN or infinite values, which {dtype} cannot hold; look for the cause in the "
            "training, or export the table as float32"
        )
    try:
        return _STORES[dtype](rows, out)
    except OverflowError:
        raise ValueError(
            f"table {table!r}: values up to {float(rows.abs().max()):.3g} are too large for {dtype}; export it as "
            f"float32: dtype={{{table!r}: 'float32', '*': {dtype!r}}}"
        ) from None


def _shape_of_4_bits(weight: Tensor, indices: Tensor, offsets: Tensor, *rest: Any) -> Tensor:
    return weight.new_empty((offsets.shape[0] - 1, 2 * (weight.shape[1] - 4)), dtype=torch.float32)


# Tracing asks for the shape of the result, which torch knows for the 8-bit kernel alone.
_KERNEL = "embedding_bag_4bit_rowwise_offsets"
if not torch._C._dispatch_has_kernel_for_dispatch_key(f"quantized::{_KERNEL}", "Meta"):  # pyright: ignore
    _library = torch.library.Library("quantized", "IMPL")
    _library.impl(_KERNEL, _shape_of_4_bits, "Meta")
