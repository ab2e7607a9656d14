"""The checks of arguments that the constructors of `embcomp.nn` and `embcomp.torchrec` share."""

from collections.abc import Mapping
from typing import Any

import torch

from embcomp.methods.base import Method
from embcomp.settings import checked, shown

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""The dtypes that rows are trained in."""


def check_method(method: Any) -> None:
    """Raise TypeError if `method` is not a configuration."""
    if not isinstance(method, Method):
        raise TypeError(f"method must be {Method.expected}, got {shown(method)}")


def check_methods(methods: Any) -> None:
    """Raise TypeError if `methods` is not a mapping from patterns to configurations."""
    if not isinstance(methods, Mapping):
        raise TypeError(f"methods must map patterns to {Method.expected}, got {shown(methods)}")
    for pattern, method in methods.items():
        if not isinstance(pattern, str) or not isinstance(method, Method):
            raise TypeError(
                f"methods[{pattern!r}] must be {Method.expected}, under a pattern of text, got {shown(method)}"
            )


def check_home(device: Any, dtype: Any = None) -> None:
    """Raise ValueError for a device that does not exist, or a dtype that rows cannot be trained in."""
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"dtype must be one of {', '.join(map(str, FLOATS))}, got {shown(dtype)}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, ValueError, OverflowError, AssertionError) as error:
        raise ValueError(f"device: {str(error).splitlines()[0][:200]}") from None


def check_flag(value: Any, name: str) -> None:
    """Raise ValueError if `value` is not a bool."""
    checked(value, bool, name)
