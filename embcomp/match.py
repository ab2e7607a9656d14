"""The one rule by which patterns choose tables: shell globs over a table's names, of which the first match wins."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

V = TypeVar("V")


def fits(pattern: str, names: Sequence[str]) -> bool:
    """Return whether a glob pattern matches one of the names of a table, case-sensitively."""
    return any(fnmatchcase(name, pattern) for name in names)


def match(patterns: Mapping[str, V], names: Sequence[Sequence[str]], argument: str = "") -> list[V | None]:
    """Return the value of the first pattern that matches each table, or None if no pattern does.

    Args:
        patterns: a value for each glob pattern, in the order in which they are tried.
        names: the names of each table that a pattern may match; messages use the first.
        argument: the name of the argument that the patterns come from, for messages.

    Raises:
        ValueError: a pattern other than "*" matches no table.

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
