"""The checks for values that TOML can write but that settings do not take."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any


def no_settings(values: Any, key: str = "") -> Iterator[str]:
    """Yield a message for each NaN or infinity, date, and integer of more than 64 bits, with its key."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from no_settings(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for index, value in enumerate(values):
            yield from no_settings(value, f"{key}[{index}]")
    elif isinstance(values, float) and not math.isfinite(values):
        yield f"{key}: must be a finite number, not {values}"
    elif isinstance(values, int) and not -(2**63) <= values < 2**63:
        yield f"{key}: {str(values)[:20]}... is beyond 64 bits"
    elif not isinstance(values, str | int | float | bool | None):
        yield f"{key}: a date or time, {values}, is not a setting; put it in quotes if it is text"
