"""The list of what every method keeps; a check joins it by its decorator."""

from collections.abc import Callable

from embcomp.testing.example import Example

CHECKS: list[Callable[[Example], None]] = []
"""What every method keeps in plain torch, one function for each promise; each raises AssertionError."""


def check(function: Callable[[Example], None]) -> Callable[[Example], None]:
    """Add a promise to `CHECKS`."""
    CHECKS.append(function)
    return function
