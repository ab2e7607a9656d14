"""The list of the promises that every method keeps; a check joins it by its decorator."""

from collections.abc import Callable

from embcomp.testing.example import Example

CHECKS: list[Callable[[Example], None]] = []
"""The promises that every method keeps in plain torch, one function each, which raises AssertionError."""


def check(function: Callable[[Example], None]) -> Callable[[Example], None]:
    """Add a promise to `CHECKS`."""
    CHECKS.append(function)
    return function
