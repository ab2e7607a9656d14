"""From ids to rows: the hash of embcomp, specified in docs/hashing.md so that other languages compute the same rows.

key  = first 8 bytes, little-endian, of SHA-256("embcomp/1/<seed>/<chunk>/<table>")
z    = splitmix64_finaliser(id XOR key)          (all arithmetic modulo 2^64)
row  = ((z >> 32) * rows) >> 32                  (multiply-shift instead of a division)
"""

import ctypes
import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from embcomp.ops import native

MAX_ROWS = 2**31 - 1
_C1 = 0xBF58476D1CE4E5B9 - 2**64
_C2 = 0x94D049BB133111EB - 2**64


def hash_key(seed: int, table: str, chunk: int) -> int:
    """The 64-bit key, as a signed integer, of one hash function of one table.

    Example:
        >>> hash_key(seed=0, table="user_id", chunk=0) == hash_key(seed=0, table="user_id", chunk=1)
        False
    """
    digest = hashlib.sha256(f"embcomp/1/{seed}/{chunk}/{table}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64: torch's `>>` copies the sign bit, and uint64 has no shifts on CPU."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash_rows_reference(ids: Tensor, keys: Tensor, rows: int) -> Tensor:
    """`hash_rows` in plain torch: any device, traceable by torch.compile and torch.export."""
    z = ids.unsqueeze(-1) ^ keys
    z = (z ^ _shift_right(z, 30)) * _C1
    z = (z ^ _shift_right(z, 27)) * _C2
    z = z ^ _shift_right(z, 31)
    return (_shift_right(z, 32) * rows) >> 32


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """The address of a contiguous CPU tensor for a C function; None gives a null pointer.

    Raises:
        RuntimeError: the tensor is on another device, whose addresses say nothing here.
    """
    if tensor is not None and not tensor.is_cpu:
        raise RuntimeError(f"a tensor is on {tensor.device}, others are on cpu: move the module or its inputs")
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def hash_rows(ids: Tensor, keys: Tensor, rows: int) -> Tensor:
    """Rows of `ids` under each key.

    Args:
        ids: int64 [N], any values.
        keys: int64 [K], from `hash_key`.
        rows: the range, 1 .. 2^31 - 1; a row's probability differs from 1 / rows by less than 2^-32.

    Returns:
        int64 [N, K] in [0, rows).

    Example:
        >>> import torch
        >>> hash_rows(torch.tensor([7, 2**62]), torch.tensor([hash_key(0, "item", 0)]), rows=1000)
        tensor([[771],
                [307]])
    """
    lib = native.library() if readable(ids, keys) else None
    if lib is None:
        return hash_rows_reference(ids, keys, rows)
    out = torch.empty(ids.numel(), keys.numel(), dtype=torch.int64, device=ids.device)
    call(lib.hash_rows, ids, keys, rows, out)
    return out


def hash_rows_by_key(ids: Tensor, keys: Tensor, rows: int, out: Tensor | None = None) -> Tensor:
    """`hash_rows` with the keys first, [K, N]: each key's rows lie together, as chunks of a vector want them.

    They are written into `out`, where it is given: int64 [K, N], contiguous.
    """
    if out is not None and (out.shape != (keys.numel(), ids.numel()) or not out.is_contiguous()):
        raise ValueError(f"out must be contiguous {[keys.numel(), ids.numel()]}, got {list(out.shape)}")
    lib = native.library() if readable(ids, keys, *([] if out is None else [out])) else None
    if lib is None:
        found = hash_rows_reference(ids, keys, rows).t()
        return found if out is None else out.copy_(found)
    if out is None:
        out = torch.empty(keys.numel(), ids.numel(), dtype=torch.int64, device=ids.device)
    call(lib.hash_rows_by_key, ids, keys, rows, out)
    return out


def call(function: Callable[..., None], ids: Tensor, keys: Tensor, *rest: Tensor | int) -> None:
    """A C function of ids and keys, each followed by its number, and of what else it takes."""
    ids, keys = ids.contiguous(), keys.contiguous()
    others = [pointer(x) if isinstance(x, Tensor) else ctypes.c_int64(x) for x in rest]
    function(pointer(ids), ctypes.c_size_t(ids.numel()), pointer(keys), ctypes.c_size_t(len(keys)), *others)


def readable(*tensors: Tensor) -> bool:
    """Whether a C function may read them: real memory of this process, and nothing records what is done with it."""
    if _records():
        return False
    return all(type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" and not _wrapped(t) for t in tensors)


def is_recorded(tensor: Tensor) -> bool:
    """Whether what is done with it is recorded (compiled, exported, traced, transformed), not done."""
    return _records() or type(tensor) is not Tensor or _wrapped(tensor)


def _records() -> bool:
    """Whether operations are recorded now: by torch.compile, torch.export, torch.jit.trace or a mode, as make_fx's."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore
        return True
    return torch._C._len_torch_dispatch_stack() > 0


def check_ids(ids: Tensor, num_embeddings: int | None, table: str) -> Tensor:
    """`ids` as int64, after checking that each lies in [0, num_embeddings), or is not negative when that is None.

    On CPU the error names the value. On a GPU and inside torch.compile or torch.export the check is an asynchronous
    assertion, which costs no synchronisation.

    Raises:
        ValueError: ids of a floating, complex or boolean dtype.
        IndexError: an id out of range (a RuntimeError of the device where the assertion is asynchronous).
    """
    if ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise ValueError(f"table {table!r}: ids must be integers, got {ids.dtype}; convert with ids.long()")
    ids = ids.long()
    allowed = "a non-negative id" if num_embeddings is None else f"an id in [0, {num_embeddings})"
    if ids.device.type == "meta":
        return ids
    given = _unwrapped(ids)
    if not readable(given):
        inside = ~_outside(given, num_embeddings)
        torch._assert_async(inside.all(), f"table {table!r}: expected {allowed}")  # pyright: ignore
        return ids
    if _any_outside(given, num_embeddings):
        wrong = given[_outside(given, num_embeddings)]
        raise IndexError(
            f"table {table!r}: id {int(wrong[0])} is out of range, expected {allowed} "
            f"({wrong.numel()} of {given.numel()} ids are wrong)"
        )
    return ids


def _wrapped(tensor: Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # pyright: ignore


def _unwrapped(tensor: Tensor) -> Tensor:
    """The memory below torch.func's transforms: vmap knows no assertions, and a C function reads no wrapper."""
    while not torch.compiler.is_compiling() and _wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)  # pyright: ignore
    return tensor


def _outside(ids: Tensor, limit: int | None) -> Tensor:
    return ids < 0 if limit is None else (ids < 0) | (ids >= limit)


def _any_outside(ids: Tensor, limit: int | None) -> bool:
    lib = native.library()
    if lib is None:
        return bool(_outside(ids, limit).any())
    ids = ids if ids.is_contiguous() else _unwrapped(ids.contiguous())
    unsigned = 2**63 if limit is None else limit  # the C function compares without a sign
    return bool(lib.any_outside(pointer(ids), ctypes.c_size_t(ids.numel()), ctypes.c_int64(unsigned)))


def check_rows_inside(rows: Tensor, offsets: Tensor, num_rows: int) -> None:
    """Raises IndexError when one of rows[offsets[0] : offsets[-1]] is no row of the table: C code would not notice."""
    own = rows[int(offsets[0]) : int(offsets[-1])]
    if _any_outside(own, num_rows):
        wrong = own[_outside(own, num_rows)]
        raise IndexError(f"row {int(wrong[0])} is out of range, the table has {num_rows} rows")
