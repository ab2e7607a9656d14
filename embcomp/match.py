"""The one way in which patterns choose tables: shell globs over the names of a table, the first that fits wins."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

V = TypeVar("V")


def fits(pattern: str, names: Sequence[str]) -> bool:
    """Whether a glob pattern fits one of the names of a table; case counts."""
    return any(fnmatchcase(name, pattern) for name in names)


def match(patterns: Mapping[str, V], names: Sequence[Sequence[str]], argument: str = "") -> list[V | None]:
    """The value of the first pattern that fits each table, or None where no pattern does.

    Args:
        patterns: a value by glob pattern, in the order in which they are tried.
        names: for each table the names that a pattern may fit; messages use the first.
        argument: the argument that the patterns come from, for messages.

    Raises:
        ValueError: a pattern other than "*" fits no table.

    Example:
        >>> match({"user*": 1, "*.id": 2}, [["user_id"], ["item.id"], ["country"]])
        [1, 2, None]
    """
    for pattern in patterns:
        if pattern != "*" and not any(fits(pattern, own) for own in names):
            known = [own[0] for own in names]
            raise ValueError(
                f"{argument and f'{argument}: '}pattern {pattern!r} matches no table; the tables are {known}"
            )
    return [next((value for pattern, value in patterns.items() if fits(pattern, own)), None) for own in names]
