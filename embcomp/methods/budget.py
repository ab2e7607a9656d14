"""Sizing by bytes: the largest configuration whose tables and maps together stay within a budget."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from embcomp.methods.base import FLOAT_BYTES, Count, Method, Table
from embcomp.ops.hashing import MAX_ROWS

M = TypeVar("M", bound=Method)


class BudgetTooSmall(ValueError):
    """A budget below the smallest configuration, which takes `least` bytes."""

    def __init__(self, message: str, least: int) -> None:
        super().__init__(message)
        self.least = least

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return type(self), (str(self), self.least)


def too_small(method: type[Method], tables: Sequence[Table], nbytes: int, least: int) -> BudgetTooSmall:
    """The error for a budget that does not hold the smallest configuration."""
    names = ", ".join(repr(table.name) for table in tables[:3]) + (", ..." if len(tables) > 3 else "")
    return BudgetTooSmall(
        f"{method.__name__}: a budget of {nbytes} bytes is too small for {names}; the smallest configuration takes "
        f"{least} bytes",
        least,
    )


def largest_within(
    tables: Sequence[Table],
    nbytes: int,
    make: Callable[[int], M],
    most: int | None = None,
    cost: Callable[[M], int] | None = None,
) -> M:
    """The configuration `make(size)` with the largest `size` in [1, most] whose plan stores at most `nbytes`.

    Args:
        tables: what the plan is made for.
        nbytes: the budget in bytes.
        make: a configuration for a size; its bytes must not fall as the size grows.
        most: the largest size to try; by default as many rows as that many tables can have.
        cost: the bytes of a configuration, for methods whose plan is expensive to make; by default its plan is asked.

    Raises:
        ValueError: `make(1)` is already larger than the budget.
    """

    def size_of(size: int) -> int:
        method = make(size)
        return method.plan(tables).nbytes() if cost is None else cost(method)

    most = MAX_ROWS * len(tables) if most is None else most
    least = make(1)
    floor = least.plan(tables).nbytes()
    if floor > nbytes:
        raise too_small(type(least), tables, nbytes, floor)
    low, high = 1, 2
    while high <= most and size_of(high) <= nbytes:
        low, high = high, high * 2
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if size_of(middle) <= nbytes:
            low = middle
        else:
            high = middle
    return make(low)


def largest_around(tables: Sequence[Table], nbytes: int, make: Callable[[int], M], count: Count) -> M:
    """The configuration `make(size)` of a wrapper that stores the most bytes, at most `nbytes`.

    Args:
        tables: what the plan is made for.
        nbytes: the budget.
        make: a configuration for a budget of the method inside, in float bytes; `BudgetTooSmall` below its least.
        count: which bytes the budget is of.

    Raises:
        BudgetTooSmall: no budget of the method inside takes so few bytes.
    """
    most = nbytes * 32  # one bit for each float

    def size_of(method: M) -> int:
        plan = method.plan(tables)
        return plan.served_nbytes() if count == "served" else plan.training_nbytes()

    try:
        least = make(0)
    except BudgetTooSmall as error:
        least = make(error.least)
    floor = size_of(least)
    if floor > nbytes:
        raise too_small(type(least), tables, nbytes, floor)
    low, high, low_bytes, best = 0, most + 1, floor, least
    guess = nbytes
    for _ in range(16):  # a secant: bytes rise almost in proportion
        if high - low <= 1:
            break
        middle = min(max(guess, low + 1), high - 1)
        try:
            method = make(middle)
        except BudgetTooSmall:
            low = guess = middle
            guess = (low + high) // 2
            continue
        stored = size_of(method)
        if stored <= nbytes:
            if middle >= most or (stored == low_bytes and middle - low > nbytes // 2):
                return method  # all that the method can take
            low, best, low_bytes = middle, method, stored
        else:
            high = middle
        slope = max(1e-3, stored / middle)  # bytes for a byte of the method inside
        guess = low + max(1, int((nbytes - low_bytes) / slope)) if stored <= nbytes else (low + high) // 2
        if high - low <= FLOAT_BYTES:  # less than the narrowest row
            break
    return best


def share_rows(tables: Sequence[Table], total: int) -> int | Mapping[str, int]:
    """`total` rows split by share of the vocabulary, at least one each and no more than a table can have.

    A plain number for a single table.
    """
    if len(tables) == 1:
        return total
    sizes = [table.ids_or_raise("splitting a budget by vocabulary") for table in tables]
    whole = sum(sizes)
    return {table.name: min(MAX_ROWS, max(1, total * size // whole)) for table, size in zip(tables, sizes, strict=True)}
