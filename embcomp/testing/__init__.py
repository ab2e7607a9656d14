"""The tests for authors of methods: `check_method` checks a method against the contract of all methods.

Needs the extra `testing`. The checks are plain functions with assertions, and run without pytest, too.
"""

import pytest

pytest.register_assert_rewrite(
    "embcomp.testing.checks", "embcomp.testing.drop_ins"
)  # so that failures say what differs

from embcomp.testing.checks import CHECKS  # noqa: E402
from embcomp.testing.example import Example  # noqa: E402

__all__ = ["CHECKS", "Example", "check_method"]


def check_method(example: Example) -> None:
    """Check a method against the contract in plain torch (docs/contract.md), one promise after the other.

    It covers ids of every shape and dtype, bags against their definition, gradients against finite differences,
    padding, wrong ids, state dicts, copies, devices, bytes and budgets, and takes some seconds.

    Args:
        example: a configuration of the method.

    Raises:
        AssertionError: the method breaks a promise; the traceback names it.

    Example:
        >>> import embcomp
        >>> from embcomp.testing import Example, check_method
        >>> check_method(Example("HashingTrick", lambda tables: embcomp.HashingTrick(rows=7)))
    """
    for check in CHECKS:
        check(example)
