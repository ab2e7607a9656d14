"""The enlargement of an option by bytes that a plan leaves: more shared rows, or a wider rank."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from embcomp.methods.base import Method
from embcomp.methods.low_rank import LowRank
from embcomp.methods.plan import Count
from embcomp.planner.estimates import Estimates
from embcomp.planner.options import WIDEST, Option, priced, rows_of
from embcomp.planner.tables import Held


def enlarged(option: Option, held: Sequence[Held], count: Count, left: int, judge: Estimates) -> Option:
    """Return the option with as many shared rows, or as wide a rank, as further bytes hold, at most twice as many.

    It only grows as far as the expected loss does not rise: more rows that no training reads make the grid of few bits
    coarser.

    Args:
        option: the option.
        held: its tables.
        count: the bytes to count.
        left: the number of bytes that may be added.
        judge: the estimate, which examines the larger options.
    """
    size = size_of(option.method)
    if size is None or not option.grows:
        return option

    def made(size: int) -> Option | None:
        method = resized(option.method, size)
        if rows_of(method) is None and size > WIDEST * min(table.table.embedding_dim for table in held):
            return None
        found = priced(option.tables, held, [method])
        return found[0] if found and found[0].nbytes(count) - option.nbytes(count) <= left else None

    low, high = size, 2 * size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if made(middle) is None else (middle, high)
    while low > size and (larger := made(low)) is not None:
        judge.learn(larger)
        if judge.loss(larger) <= judge.loss(option):
            return larger
        low = (size + low) // 2
    return option


def size_of(method: Method) -> int | None:
    """Return the number of rows, or else the rank, of a method or of the one inside it; None if it has neither."""
    rows = rows_of(method)
    if rows is not None or isinstance(method, LowRank):
        return method.rank if rows is None else rows  # pyright: ignore[reportAttributeAccessIssue]
    inner = getattr(method, "of", None)
    return size_of(inner) if isinstance(inner, Method) else None


def resized(method: Method, size: int) -> Method:
    """Return the method with another size, where `size_of` found it."""
    fields: dict[str, Any] = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    if isinstance(fields.get("rows"), int):
        return dataclasses.replace(method, rows=size)
    if isinstance(method, LowRank) and rows_of(method) is None:
        return dataclasses.replace(method, rank=size)
    return dataclasses.replace(method, of=resized(fields["of"], size))
