"""Sizing by bytes: the largest configuration whose tables and maps together stay within a budget."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from embcomp.methods.plan import Count, Sizes
from embcomp.methods.table import Table
from embcomp.ops.balanced import MAX_IDS, places
from embcomp.ops.hashing import MAX_ROWS


class Sized(Protocol):
    """A configuration that says what it would store, as every method does."""

    def sizes(self, tables: Sequence[Table], group: str = ...) -> Sizes: ...


M = TypeVar("M", bound=Sized)
N = TypeVar("N", bound=Sized)
Made = TypeVar("Made", bound=Sized, covariant=True)

SMALL = 32
"""A table keeps so many rows, where it has as many ids: they cost next to nothing."""


class BudgetTooSmall(ValueError):
    """A budget below the smallest configuration, which takes `least` bytes."""

    def __init__(self, message: str, least: int) -> None:
        super().__init__(message)
        self.least = least

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return type(self), (str(self), self.least)


def too_small(method: type, tables: Sequence[Table], nbytes: int, least: int) -> BudgetTooSmall:
    """The error for a budget that does not hold the smallest configuration."""
    names = ", ".join(repr(table.name) for table in tables[:3]) + (", ..." if len(tables) > 3 else "")
    return BudgetTooSmall(
        f"{method.__name__}: a budget of {nbytes} bytes is too small for {names}; the smallest configuration takes "
        f"{least} bytes",
        least,
    )


@dataclass(frozen=True)
class Ladder(Generic[Made]):
    """The configurations of a method by size, from which a budget chooses.

    Attributes:
        make: the configuration of a size.
        price: what it will store, in numbers alone, never less for a larger size.
        least: the smallest size.
        most: the largest size.
    """

    make: Callable[[int], Made]
    price: Callable[[int], Sizes]
    least: int = 1
    most: int = MAX_ROWS

    def around(self, make: Callable[[Any], N], price: Callable[[Sizes], Sizes]) -> "Ladder[N]":
        """The same sizes of a method around this one.

        Args:
            make: the outer configuration of an inner one.
            price: what the outer stores of what the inner does.
        """
        return Ladder(lambda size: make(self.make(size)), lambda size: price(self.price(size)), self.least, self.most)

    def largest(self, method: type, tables: Sequence[Table], nbytes: int, count: Count = "served") -> Made:
        """The configuration of the largest size that stores at most `nbytes`.

        Raises:
            BudgetTooSmall: the smallest size is already larger than the budget.
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
    """The configuration `make(size)` with the largest `size` in [1, most] that stores at most `nbytes`.

    Args:
        tables: what the plan is made for.
        nbytes: the budget in bytes.
        make: a configuration for a size; its bytes must not fall as the size grows.
        most: the largest size to try; by default as many rows as that many tables can have.
        count: which bytes the budget is of.

    Raises:
        BudgetTooSmall: `make(1)` is already larger than the budget.
    """
    most = MAX_ROWS * len(tables) if most is None else most
    ladder = Ladder(make, lambda size: make(size).sizes(tables), most=most)
    return ladder.largest(type(make(1)), tables, nbytes, count)


def share_rows(tables: Sequence[Table], total: int) -> int | Mapping[str, int]:
    """`total` rows split by share of the vocabulary, after what keeps the ids of small tables apart.

    A table gets rows for its ids, up to `SMALL` of them, before the rest is split; where that would take over half of
    the total, equally many. At least one row each, and no more than a table can have; none falls as the total grows.

    Returns:
        Rows by name of the table; a plain number for a single table.

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
    """Whether the ids of all tables can be permuted (`embcomp.ops.balanced`)."""
    return all(table.num_embeddings is not None and table.num_embeddings <= MAX_IDS for table in tables)


def _levelled(wished: Sequence[int], total: int) -> list[int]:
    """At most what is wished for, and at most `total` together: equally many, and one more for the first of them."""
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
