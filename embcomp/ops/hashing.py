"""The hash of embcomp from ids to rows, specified in docs/hashing.md so that other languages compute the same rows.

key  = first 8 bytes, little-endian, of SHA-256("embcomp/1/<seed>/<chunk>/<table>") z    = splitmix64_finaliser(id XOR
key)          (all arithmetic modulo 2^64) row  = ((z >> 32) * rows) >> 32                  (multiply-shift instead of a
division)
"""

import ctypes
import hashlib
from typing import Any

import torch
from torch import Tensor

from embcomp.ops import native
from embcomp.ops.checks import check_ids, int64, is_recorded, readable, size

__all__ = [
    "MAX_ROWS",
    "check_ids",
    "hash_key",
    "hash_rows",
    "hash_rows_by_key",
    "hash_rows_reference",
    "is_recorded",
    "readable",
]

MAX_ROWS = 2**31 - 1
_C1 = 0xBF58476D1CE4E5B9 - 2**64
_C2 = 0x94D049BB133111EB - 2**64


def hash_key(seed: int, table: str, chunk: int) -> int:
    """Return the 64-bit key, as a signed integer, of one hash function of one table.

    Example:
        >>> hash_key(seed=0, table="user_id", chunk=0) == hash_key(seed=0, table="user_id", chunk=1)
        False
    """
    digest = hashlib.sha256(f"embcomp/1/{seed}/{chunk}/{table}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift int64 right logically: torch's `>>` copies the sign bit, and uint64 has no shifts on CPU."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash_rows_reference(ids: Tensor, keys: Tensor, rows: int) -> Tensor:
    """Compute `hash_rows` in plain torch: on any device, traceable by torch.compile and torch.export."""
    return hash_rows_each(ids.unsqueeze(-1), keys, rows)


def hash_rows_each(ids: Tensor, keys: Tensor, rows: int | Tensor) -> Tensor:
    """Compute rows in plain torch under keys and ranges that may differ from id to id, all of broadcastable shapes."""
    z = ids ^ keys
    z = (z ^ _shift_right(z, 30)) * _C1
    z = (z ^ _shift_right(z, 27)) * _C2
    z = z ^ _shift_right(z, 31)
    return (_shift_right(z, 32) * rows) >> 32


def hash_rows(ids: Tensor, keys: Tensor, rows: int, out: Tensor | None = None) -> Tensor:
    """Compute the rows of `ids` under each key.

    Args:
        ids: the ids, int64 [N], any values.
        keys: the keys, int64 [K], from `hash_key`.
        rows: the number of rows, 1 .. 2^31 - 1; the probability of a row differs from 1 / rows by less than 2^-32.
        out: the tensor to write the rows into, int64 [N, K] and contiguous; by default a new one.

    Returns:
        The rows, int64 [N, K] in [0, rows).

    Example:
        >>> import torch
        >>> hash_rows(torch.tensor([7, 2**62]), torch.tensor([hash_key(0, "item", 0)]), rows=1000)
        tensor([[771],
                [307]])
    """
    _check_out(out, ids.numel(), keys.numel())
    lib = native.library() if readable(ids, keys, *([] if out is None else [out])) else None
    if lib is None:
        found = hash_rows_reference(ids, keys, rows)
        return found if out is None else out.copy_(found)
    if out is None:
        out = torch.empty(ids.numel(), keys.numel(), dtype=torch.int64, device=ids.device)
    lib.hash_rows(*_arguments(ids.contiguous(), keys.contiguous(), rows), int64("out", out, *out.shape))
    return out


def hash_rows_by_key(ids: Tensor, keys: Tensor, rows: int, out: Tensor | None = None) -> Tensor:
    """Compute `hash_rows` transposed, [K, N]: the rows of each key lie together, as the chunks of a vector need them.

    If `out` is given, int64 [K, N] and contiguous, the rows are written into it.
    """
    _check_out(out, keys.numel(), ids.numel())
    lib = native.library() if readable(ids, keys, *([] if out is None else [out])) else None
    if lib is None:
        key_rows = hash_rows_reference(ids, keys, rows).t()
        return key_rows if out is None else out.copy_(key_rows)
    if out is None:
        out = torch.empty(keys.numel(), ids.numel(), dtype=torch.int64, device=ids.device)
    into = int64("out", out, keys.numel(), ids.numel())
    lib.hash_rows_by_key(*_arguments(ids.contiguous(), keys.contiguous(), rows), into)
    return out


def _check_out(out: Tensor | None, *shape: int) -> None:
    if out is not None and (out.shape != shape or not out.is_contiguous()):
        raise ValueError(f"out must be contiguous {list(shape)}, got {list(out.shape)}")


def _arguments(ids: Tensor, keys: Tensor, rows: int) -> tuple[Any, ...]:
    """The arguments that both C functions take, without `out`."""
    if not 1 <= rows <= MAX_ROWS:
        raise ValueError(f"rows must be in [1, 2^31), got {rows}")
    given, theirs = int64("ids", ids, ids.numel()), int64("keys", keys, keys.numel())
    return given, size(ids.numel()), theirs, size(keys.numel()), ctypes.c_int64(rows)
