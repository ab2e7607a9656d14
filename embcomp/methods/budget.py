"""Sizing by bytes: the largest configuration whose tables and maps together fit into a budget."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from embcomp.methods.plan import Count, Sizes
from embcomp.methods.table import Table
from embcomp.ops.balanced import MAX_IDS, places
from embcomp.ops.hashing import MAX_ROWS


class Sized(Protocol):
    """A configuration that knows the sizes of its stores, as every method does."""

    def sizes(self, tables: Sequence[Table], group: str = ...) -> Sizes: ...


M = TypeVar("M", bound=Sized)
N = TypeVar("N", bound=Sized)
Made = TypeVar("Made", bound=Sized, covariant=True)

SMALL = 32
"""The rows that a small table keeps, at most one for each id: they cost almost nothing."""


class BudgetTooSmall(ValueError):
    """The error for a budget below the smallest configuration, which takes `least` bytes."""

    def __init__(self, message: str, least: int) -> None:
        super().__init__(message)
        self.least = least

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return type(self), (str(self), self.least)


def too_small(method: type, tables: Sequence[Table], nbytes: int, least: int) -> BudgetTooSmall:
    """Make the error for a budget that does not hold the smallest configuration."""
    names = ", ".join(repr(table.name) for table in tables[:3]) + (", ..." if len(tables) > 3 else "")
    return BudgetTooSmall(
        f"{method.__name__}: a budget of {nbytes} bytes is too small for {names}; the smallest configuration takes "
        f"{least} bytes",
        least,
    )


@dataclass(frozen=True)
class Ladder(Generic[Made]):
    """The configurations of a method ordered by size, from which a budget chooses.

    Attributes:
        make: a function from a size to its configuration.
        price: a function from a size to the sizes of its stores; their bytes must not fall as the size grows.
        least: the smallest size.
        most: the largest size.
    """

    make: Callable[[int], Made]
    price: Callable[[int], Sizes]
    least: int = 1
    most: int = MAX_ROWS

    def around(self, make: Callable[[Any], N], price: Callable[[Sizes], Sizes]) -> "Ladder[N]":
        """Return the ladder of a method that wraps this one, with the same sizes.

        Args:
            make: a function from an inner configuration to the outer one.
            price: a function from the sizes of the inner configuration to those of the outer one.
        """
        return Ladder(lambda size: make(self.make(size)), lambda size: price(self.price(size)), self.least, self.most)

    def largest(self, method: type, tables: Sequence[Table], nbytes: int, count: Count = "served") -> Made:
        """Return the configuration of the largest size that stores at most `nbytes`.

        Raises:
            BudgetTooSmall: the smallest size already exceeds the budget.
        """
        floor = self.price(self.least).nbytes(count)
        if floor > nbytes:
            raise too_small(method, tables, nbytes, floor)
        low, high = self.least, self.least + 1
        while high <= self.most and self.price(high).nbytes(count) <= nbytes:
            low, high = high, high * 2
        high = min(high, self.most + 1)
        while high - low > 1:
            middle = (low + high) // 2
            if self.price(middle).nbytes(count) <= nbytes:
                low = middle
            else:
                high = middle
        return self.make(low)


def largest_within(
    tables: Sequence[Table], nbytes: int, make: Callable[[int], M], most: int | None = None, count: Count = "served"
) -> M:
    """Return the configuration `make(size)` with the largest `size` in [1, most] that stores at most `nbytes`.

    Args:
        tables: the tables of the plan.
        nbytes: the budget in bytes.
        make: a function from a size to its configuration, whose bytes must not fall as the size grows.
        most: the largest size to try; by default the most rows that these tables can have together.
        count: "served" or "training", the form whose bytes the budget limits.

    Raises:
        BudgetTooSmall: `make(1)` already exceeds the budget.
    """
    most = MAX_ROWS * len(tables) if most is None else most
    ladder = Ladder(make, lambda size: make(size).sizes(tables), most=most)
    return ladder.largest(type(make(1)), tables, nbytes, count)


def share_rows(tables: Sequence[Table], total: int) -> int | Mapping[str, int]:
    """Split `total` rows between tables in proportion to their vocabularies, after small tables got a row for each id.

    Each table first gets a row for each id, up to `SMALL` rows; if that would take more than half of the total, all
    tables get about equally many. The rest is split in proportion. Each table gets at least one row and at most as many
    as a table can have, and no table's rows fall as the total grows.

    Returns:
        The rows by table name; a plain number for a single table.

    Example:
        >>> share_rows([Table("user", 1000, 8), Table("gender", 2, 8)], 50)
        {'user': 47, 'gender': 2}
    """
    if len(tables) == 1:
        return min(MAX_ROWS, total)
    sizes = [table.ids_or_raise("splitting a budget by vocabulary") for table in tables]
    floors = _levelled([min(places(min(size, SMALL)), SMALL) for size in sizes], total // 2)
    rest, whole = total - sum(floors), sum(sizes)
    return {
        table.name: min(MAX_ROWS, max(1, floor + rest * size // whole))
        for table, floor, size in zip(tables, floors, sizes, strict=True)
    }


def can_balance(tables: Sequence[Table]) -> bool:
    """Return whether the ids of all tables can be permuted (`embcomp.ops.balanced`)."""
    return all(table.num_embeddings is not None and table.num_embeddings <= MAX_IDS for table in tables)


def _levelled(wished: Sequence[int], total: int) -> list[int]:
    """Grant wishes up to a common level, with a sum of at most `total`; the remainder goes to the first wishes."""
    if sum(wished) <= total:
        return list(wished)
    level = next(level for level in range(max(wished), -1, -1) if sum(min(wish, level) for wish in wished) <= total)
    given = [min(wish, level) for wish in wished]
    left = total - sum(given)
    for i, wish in enumerate(wished):
        if left and wish > level:
            given[i] += 1
            left -= 1
    return given
