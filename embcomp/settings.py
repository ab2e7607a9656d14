"""The one checker of settings: it compares values with the field types of a configuration when this is made."""

import collections.abc
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, get_args, get_origin
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from embcomp.ops.hashing import MAX_ROWS

MAX_READS = 4096  # rows that one id reads of one store: far more than any method's paper
MAX_DIM = 1 << 20  # of a vector
_INT64 = 2**63


@dataclass(frozen=True)
class Within:
    """The bounds of a number, as metadata of `Annotated`.

    Attributes:
        least: the smallest value.
        most: the largest value, or None.
        below: the value that must not be reached, or None.
        text: the bounds in words, for errors in which the numbers would not read well.
    """

    least: float
    most: float | None = None
    below: float | None = None
    text: str | None = None

    def holds(self, value: float) -> bool:
        """Return whether a number lies within the bounds."""
        return (
            self.least <= value
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.text is not None:
            return self.text
        if self.below is not None:
            return f"in [{self.least}, {self.below})"
        return f"of at least {self.least}" if self.most is None else f"in [{self.least}, {self.most}]"


RowCount = Annotated[int, Within(1, MAX_ROWS, text="in [1, 2^31)")]
ReadCount = Annotated[int, Within(1, MAX_READS)]
Width = Annotated[int, Within(1, MAX_DIM)]
IdCount = Annotated[int, Within(1, _INT64 - 1)]
Share = Annotated[float, Within(0, below=1)]
Bytes = Annotated[int, Within(0, _INT64 - 1, text="in [0, 2^63)")]
Ids = Annotated[Any, "integers"]
"""Integers in a tensor, an array or a list, which become an int64 tensor."""


def checked(value: Any, hint: Any, name: str) -> Any:
    """Convert a setting to its type: integers of NumPy to `int`, arrays to tensors, mappings to copies.

    Args:
        value: the setting.
        hint: its type: `int`, `float`, `bool`, `str`, `Tensor`, a class, `Literal`, `Mapping[str, ...]`, a union of
            these, or one of them in `Annotated` with `Within`. A class may say in `expected` how one is made. Values of
            other types are not checked.
        name: the setting's name, for the error.

    Raises:
        ValueError: the value does not fit; the text names the setting, the value and the expected type.

    Example:
        >>> import numpy as np
        >>> checked(np.int64(7), RowCount | None, "rows")
        7
        >>> checked(True, RowCount | None, "rows")
        Traceback (most recent call last):
        ValueError: rows must be an integer in [1, 2^31), got True
    """
    alternatives = _alternatives(hint)
    for alternative in alternatives:
        of = _mapped(alternative)
        if of is not None and isinstance(value, Mapping):
            return {_checked_key(key, name): checked(item, of, f"{name}[{key!r}]") for key, item in value.items()}
    for alternative in alternatives:
        fitted = _fitted(value, alternative)
        if fitted is not _UNFIT:
            return fitted
    also = [_described(each) for each in alternatives[1:] if each is not type(None) and _mapped(each) is None]
    expected = _outside(value, alternatives[0]) or " or ".join([_described(alternatives[0]), *also])
    raise ValueError(f"{name} must be {expected}, got {shown(value)}")


_HINTS: WeakKeyDictionary[type, dict[str, Any]] = WeakKeyDictionary()


def hints_of(cls: type) -> dict[str, Any]:
    """The types of a class's fields; empty if they cannot be resolved (names that only a type checker sees)."""
    if cls not in _HINTS:
        try:
            _HINTS[cls] = typing.get_type_hints(cls, include_extras=True)
        except NameError:  # which may be resolved later
            return {}
    return _HINTS[cls]


def shown(value: Any) -> str:
    """Format a value for an error message: short, and without reading a tensor."""
    kind = type(value).__name__
    if isinstance(value, Tensor) or (hasattr(value, "__array_interface__") and getattr(value, "ndim", 0)):
        return f"{kind} of {value.dtype} {list(value.shape)}"
    if value is not None and not isinstance(value, str | bytes | Real | complex | list | tuple | dict | torch.dtype):
        return kind
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to write much longer ones
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_UNFIT = object()


def _outside(value: Any, hint: Any) -> str | None:
    """The bound that a number of the right kind breaks, in few words; None otherwise."""
    bounds = _bounds(hint)
    if bounds is None or isinstance(value, bool) or not isinstance(value, Real):
        return None
    if hint.__origin__ is float:
        return str(bounds)
    return f"at least {bounds.least}" if bounds.text is None and value < bounds.least else None


def _alternatives(hint: Any) -> list[Any]:
    if get_origin(hint) in (typing.Union, types.UnionType):
        return [alternative for each in get_args(hint) for alternative in _alternatives(each)]
    return [hint]


def _bounds(hint: Any) -> Within | None:
    return next((item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Within)), None)


def _mapped(hint: Any) -> Any:
    """The type of the values of `Mapping[str, ...]`; None for other types."""
    if get_origin(hint) in (collections.abc.Mapping, dict):
        return get_args(hint)[1]
    return None


def _checked_key(key: Any, name: str) -> str:
    if not isinstance(key, str):
        raise ValueError(f"{name} must map names of tables, got the key {shown(key)}")
    return str(key)


def _fitted(value: Any, hint: Any) -> Any:
    """Convert the value to one type, or return _UNFIT."""
    bounds = _bounds(hint)
    if get_origin(hint) is Annotated:
        if "integers" in hint.__metadata__:
            return _integers(value)
        hint = hint.__origin__
    if hint is Any:
        return value
    if hint in (None, type(None)):
        return None if value is None else _UNFIT
    if hint is bool:
        return bool(value) if isinstance(value, bool) or _numpy_kind(value) == "b" else _UNFIT
    if hint in (int, float):
        return _number(value, hint, bounds or Within(-_INT64, _INT64 - 1))
    if hint is str:
        return str(value) if isinstance(value, str) else _UNFIT
    if get_origin(hint) is Literal:
        return str(value) if isinstance(value, str) and value in get_args(hint) else _UNFIT
    if hint is Tensor:
        return _tensor(value)
    if get_origin(hint) is not None:
        kind = get_origin(hint)
        return value if not isinstance(kind, type) or isinstance(value, kind) else _UNFIT
    return value if not isinstance(hint, type) or isinstance(value, hint) else _UNFIT


def _number(value: Any, kind: type, bounds: Within) -> Any:
    if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
        return _UNFIT
    value = int(value) if kind is int else float(value)  # pyright: ignore[reportArgumentType]
    return value if (kind is int or math.isfinite(value)) and bounds.holds(value) else _UNFIT


def _numpy_kind(value: Any) -> str | None:
    """The kind of a NumPy scalar (NumPy's booleans, "b", are not of type `bool`); None for other values."""
    return value.dtype.kind if hasattr(value, "__array_interface__") and value.shape == () else None


def _tensor(value: Any) -> Any:
    """Convert a value to a dense tensor of numbers whose values can be read, or return _UNFIT."""
    if not isinstance(value, Tensor):
        if (not isinstance(value, Sequence) and not getattr(value, "ndim", 0)) or isinstance(value, str | bytes):
            return _UNFIT
        try:
            value = torch.as_tensor(value, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            return _UNFIT
    readable = value.layout == torch.strided and not value.is_meta and not value.is_complex()
    return value if readable and not value.is_quantized else _UNFIT


def _integers(value: Any) -> Any:
    tensor = _tensor(value)
    if tensor is _UNFIT or (tensor.numel() and (tensor.is_floating_point() or tensor.dtype == torch.bool)):
        return _UNFIT
    return tensor.long()


def _described(hint: Any) -> str:
    bounds = _bounds(hint)
    if get_origin(hint) is Annotated:
        if "integers" in hint.__metadata__:
            return "integers in a tensor, an array or a list"
        hint = hint.__origin__
    if hint in (None, type(None)):
        return "None"
    if hint in (int, float):
        what = "an integer" if hint is int else "a finite number"
        return f"{what} {bounds}" if bounds else what
    if get_origin(hint) is Literal:
        *others, last = map(repr, get_args(hint))
        return f"{', '.join(others)} or {last}" if others else last
    if _mapped(hint) is not None:
        return "a mapping from names of tables"
    if hint is Tensor:
        return "numbers in a dense tensor, an array or a list"
    if hint in (bool, str):
        return "True or False" if hint is bool else "text"
    return getattr(hint, "expected", f"of type {getattr(hint, '__name__', hint)}")
