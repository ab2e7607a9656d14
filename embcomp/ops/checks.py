"""The one place for checks before C++ reads an array, and before a public call uses an argument.

Arrays reach C++ as addresses, so every call passes them by `int64`, `float32` and the like, which check device, type,
shape and contiguity. Values that C++ uses as indices (ids, rows, offsets, lengths) are checked in one pass each. On a
GPU and inside compiled or exported graphs no check reads a value, which would synchronise.
"""

import ctypes
import warnings
from typing import Any

import torch
from torch import Tensor

from embcomp.ops import native

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
MOST_ROWS = 2**32 - 1
"""The maximum number of rows of a table, and of look-ups of a call, that compiled functions support."""


_PLAIN = (Tensor, torch.nn.Parameter)


class Address(ctypes.c_void_p):
    """An address that keeps its tensor alive."""

    tensor: Tensor


def pointer(name: str, tensor: Tensor | None, dtype: torch.dtype, *shape: int) -> ctypes.c_void_p:
    """Return the address of a tensor for a C function; None gives a null pointer.

    Args:
        name: the name of the argument, for errors.
        tensor: a contiguous tensor on the CPU, which lives as long as the address.
        dtype: the dtype that the C function reads.
        shape: the shape that the C function reads.

    Raises:
        RuntimeError: the tensor is on another device, whose addresses are invalid here.
        ValueError: the dtype or shape differs, or the memory is not contiguous.
    """
    if tensor is None:
        return ctypes.c_void_p(None)
    if not tensor.is_cpu:
        raise RuntimeError(f"{name}: a tensor is on {tensor.device}, others are on cpu: move the module or its inputs")
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
        got = f"{'' if tensor.is_contiguous() else 'scattered '}{tensor.dtype} {list(tensor.shape)}"
        raise ValueError(f"{name} must be contiguous {dtype} {list(shape)}, got {got}")
    address = Address(tensor.data_ptr())
    address.tensor = tensor
    return address


def int64(name: str, tensor: Tensor | None, *shape: int) -> ctypes.c_void_p:
    """Return the `pointer` of an int64 tensor."""
    return pointer(name, tensor, torch.int64, *shape)


def float32(name: str, tensor: Tensor | None, *shape: int) -> ctypes.c_void_p:
    """Return the `pointer` of a float32 tensor."""
    return pointer(name, tensor, torch.float32, *shape)


def size(number: int) -> ctypes.c_size_t:
    """Convert a number to C's size_t.

    Raises:
        ValueError: the number is negative, which C would read as a huge one.
    """
    if number < 0:
        raise ValueError(f"a size must not be negative, got {number}")
    return ctypes.c_size_t(number)


def readable(*tensors: Tensor) -> bool:
    """Return whether a C function may read the tensors: real CPU memory, and operations are not recorded."""
    if _records():  # first: a compiler cannot trace what follows
        return False
    plain = [type(t) in _PLAIN and t.is_cpu and not _wrapped(t) for t in tensors]  # a generator takes twice as long
    return all(plain)


def is_recorded(tensor: Tensor) -> bool:
    """Return whether operations on the tensor are recorded (compiled, exported, traced, transformed), not done."""
    return _records() or type(tensor) is not Tensor or _wrapped(tensor)


def _records() -> bool:
    """Return whether operations are recorded: by torch.compile, torch.export, torch.jit.trace or a dispatch mode."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore
        return True
    return torch._C._len_torch_dispatch_stack() > 0


def versions(*tensors: Tensor | None) -> tuple[int | None, ...]:
    """Return the write counter of each tensor, for `check_unchanged`; None for tensors without a counter."""
    return tuple(None if t is None or t.is_inference() else t._version for t in tensors)


def check_unchanged(before: tuple[int | None, ...], *tensors: Tensor | None) -> None:
    """Raise RuntimeError, as torch does, if a tensor of the forward pass has been written to since."""
    if versions(*tensors) != before:
        raise RuntimeError(
            "ids, offsets or weights of a look-up were modified by an inplace operation before its backward pass: "
            "give the look-up a copy"
        )


# --- arguments of public calls ---


def check_tensor(value: Any, name: str) -> None:
    """Raise TypeError if `value` is not a tensor, ValueError if sparse, nested or quantised; the text has `name`."""
    if not isinstance(value, Tensor):
        if isinstance(value, torch.fx.Proxy):  # being traced
            return
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}; convert it with torch.as_tensor")
    if value.layout != torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise ValueError(f"{name} must be a dense tensor, got a {kind} one; convert it first")
    if value.is_quantized:
        raise ValueError(f"{name} must not be quantised, got {value.dtype}; convert with {name}.dequantize()")


def check_same_device(tensor: Tensor, name: str, home: torch.device) -> None:
    """Raise ValueError if one is on the meta device, which has no values, and the other is not."""
    if (tensor.device.type == "meta") != (home.type == "meta"):
        raise ValueError(f"{name}: a tensor is on {tensor.device}, others are on {home}; move one of them")


# --- values that are places ---


def check_ids(ids: Tensor, num_embeddings: int | None, table: str) -> Tensor:
    """Check that each id lies in [0, num_embeddings), or is not negative if that is None; return the ids as int64.

    On CPU the error names the value. On a GPU and inside torch.compile or torch.export the check is an asynchronous
    assertion, which costs no synchronisation.

    Raises:
        TypeError: `ids` is not a tensor.
        ValueError: the ids have a floating, complex or boolean dtype, or are sparse or nested.
        IndexError: an id is out of range (a RuntimeError of the device if the assertion is asynchronous).
    """
    check_tensor(ids, f"table {table!r}: ids")
    if ids.dtype not in INTEGERS:
        raise ValueError(f"table {table!r}: ids must be integers, got {ids.dtype}; convert with ids.long()")
    ids = ids.long()
    allowed = "a non-negative id" if num_embeddings is None else f"an id in [0, {num_embeddings})"
    if ids.device.type == "meta":
        return ids
    given = _unwrapped(ids)
    if not readable(given):
        if torch.jit.is_tracing():  # pyright: ignore
            warnings.warn(
                f"table {table!r}: torch.jit.trace drops the check of ids; torch.export keeps it",
                torch.jit.TracerWarning,  # pyright: ignore[reportPrivateImportUsage]
                stacklevel=2,
            )
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


def check_rows_inside(rows: Tensor, offsets: Tensor, num_rows: int) -> None:
    """Raise IndexError if one of rows[offsets[0] : offsets[-1]] is not in the table, which C code does not check."""
    check_inside(rows[int(offsets[0]) : int(offsets[-1])], num_rows)


def check_inside(rows: Tensor, number: int, what: str = "row", of: str = "the table") -> None:
    """Raise IndexError if one of the int64 `rows`, which must be readable, lies outside of [0, number)."""
    if _any_outside(rows, number):
        wrong = rows[_outside(rows, number)]
        raise IndexError(f"{what} {int(wrong[0])} is out of range, {of} has {number} {what}s")


def check_offsets(offsets: Tensor, end: int, first: int | None = None, given: Tensor | None = None) -> None:
    """Raise ValueError unless int64 offsets [n], which must be readable, rise from 0 to at most `end`, with n > 0.

    If `first` is None they may begin later. The text shows `given`, or by default the offsets.
    """
    check_not_empty(offsets)
    lib = native.library()
    if lib is None:
        astray = int(offsets[0]) < 0 or int(offsets[-1]) > end or bool((offsets.diff() < 0).any())
    else:
        offsets = offsets.contiguous()
        address = int64("offsets", offsets, offsets.numel())
        astray = lib.offsets_astray(address, size(offsets.numel()), ctypes.c_int64(end))
    if astray or first not in (None, int(offsets[0])):
        said = _some(offsets if given is None else given)
        raise ValueError(f"offsets must rise from 0 to at most {end}, the number of ids; got {said}")


def check_not_empty(offsets: Tensor) -> None:
    """Raise ValueError unless offsets have one dimension and at least one value."""
    if offsets.dim() != 1 or offsets.numel() == 0:
        raise ValueError(f"offsets must have one dimension and not be empty, got shape {list(offsets.shape)}")


def assert_offsets(offsets: Tensor, end: int) -> None:
    """Check offsets that are not readable, from 0 as in `check_offsets`, by an asynchronous assertion."""
    if offsets.is_meta or (not torch.compiler.is_compiling() and _wrapped(offsets)):
        return
    fits = (offsets[0] == 0) & (offsets[-1] <= end) & (offsets.diff() >= 0).all()
    torch._assert_async(fits, "offsets must rise from 0 to at most the number of ids")  # pyright: ignore


def lengths_fit(lengths: Tensor, sizes: Tensor) -> bool:
    """Return whether lengths int64 [keys, stride] are not negative and add up to sizes int64 [keys]; CPU tensors."""
    lib = native.library()
    if lib is None:
        each = (lengths >= 0) & (lengths <= sizes.unsqueeze(1))
        return bool(each.all()) and torch.equal(lengths.sum(1), sizes)
    lengths, sizes = lengths.contiguous(), sizes.contiguous()
    keys, stride = lengths.shape
    given = int64("lengths", lengths, keys, stride), size(keys), size(stride), int64("sizes", sizes, keys)
    return not lib.lengths_astray(*given)


def _some(tensor: Tensor) -> str:
    """Format the values, or the first of many."""
    values = tensor.flatten()[:20].tolist()
    return f"{values}" if tensor.numel() <= 20 else f"{values[:-1]} and {tensor.numel() - 19} more"


def _wrapped(tensor: Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # pyright: ignore


def _unwrapped(tensor: Tensor) -> Tensor:
    """The tensor below torch.func's transforms: vmap has no assertions, and a C function cannot read a wrapper."""
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
    return bool(lib.any_outside(int64("ids", ids, *ids.shape), size(ids.numel()), ctypes.c_int64(unsigned)))
