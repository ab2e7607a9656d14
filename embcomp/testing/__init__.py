"""What the author of a method runs: `check_method` holds it to the contract that every method keeps.

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
    """Hold a method to the contract in plain torch (docs/contract.md): one promise after the other.

    Ids of every shape and dtype, bags against their definition, gradients against finite differences, padding, wrong
    ids, state dicts, copies, devices, bytes, budgets. It takes some seconds.

    Args:
        example: a configuration of the method.

    Raises:
        AssertionError: a promise that the method breaks; its traceback names it.

    Example:
        >>> import embcomp
        >>> from embcomp.testing import Example, check_method
        >>> check_method(Example("HashingTrick", lambda tables: embcomp.HashingTrick(rows=7)))
    """
    for check in CHECKS:
        check(example)
