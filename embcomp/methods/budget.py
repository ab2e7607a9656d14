"""Sizing by bytes: the largest configuration whose tables and maps together stay within a budget."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from embcomp.methods.base import Method, Table
from embcomp.ops.hashing import MAX_ROWS

M = TypeVar("M", bound=Method)


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
        names = ", ".join(repr(table.name) for table in tables[:3]) + (", ..." if len(tables) > 3 else "")
        raise ValueError(
            f"{type(least).__name__}: a budget of {nbytes} bytes is too small for {names}; "
            f"the smallest configuration takes {floor} bytes"
        )
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


def share_rows(tables: Sequence[Table], total: int) -> int | Mapping[str, int]:
    """`total` rows split by share of the vocabulary, at least one each and no more than a table can have.

    A plain number for a single table.
    """
    if len(tables) == 1:
        return total
    sizes = [table.ids_or_raise("splitting a budget by vocabulary") for table in tables]
    whole = sum(sizes)
    return {table.name: min(MAX_ROWS, max(1, total * size // whole)) for table, size in zip(tables, sizes, strict=True)}
