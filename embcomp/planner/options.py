"""The options to choose from: ways to store one table, or several tables that share a store."""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from embcomp.methods.base import Method
from embcomp.methods.budget import SMALL, can_balance
from embcomp.methods.frequency import FrequencyHash
from embcomp.methods.full import Full
from embcomp.methods.hashing import HashingTrick
from embcomp.methods.low_bit import LowBit
from embcomp.methods.low_rank import LowRank
from embcomp.methods.plan import Count, Sizes
from embcomp.methods.product_codes import ProductCodes
from embcomp.methods.quotient_remainder import QuotientRemainder, largest_remainder
from embcomp.methods.unified import UnifiedEmbedding, best_chunk_dim
from embcomp.ops.hashing import MAX_ROWS
from embcomp.planner.tables import Held, matches
from embcomp.settings import shown

Options = Sequence[Method] | Mapping[str, Sequence[Method]]
Maker = Callable[[Held], Iterator[Method]]

SHARES = [2 ** (-step / 4) for step in range(2, 20)] + [2 ** (-step / 2) for step in range(10, 21)]
"""The sizes of shared rows to offer, as shares of the values of a table, from .71 to .001.

They are close together down to 1/27: a table with most of the worth would otherwise stay at .18 where .2 fits."""


MANY = 100
"""The number of tables above which each gets fewer options: about 40 instead of 90."""

WIDEST = 0.75
"""The largest rank, as a share of the width; fewer bits are better than wider ones."""

MOST_GROUPS = 6
"""The maximum number of tables in the smaller groups that may share one store."""


@dataclass(frozen=True)
class Option:
    """One way to store some tables.

    Attributes:
        tables: the indices of the tables, in rising order.
        method: the method of all of them.
        served: the bytes of the served form.
        training: the bytes of the training form.
        grows: True if its rows may be enlarged by the rest of a budget.
    """

    tables: tuple[int, ...]
    method: Method
    served: int
    training: int
    grows: bool = False

    def nbytes(self, count: Count) -> int:
        """Return the bytes of the form that the budget limits."""
        return self.served if count == "served" else self.training


def options_of(
    held: Sequence[Held],
    count: Count,
    given: Options | None = None,
    *,
    counts: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, Sequence[Method]] | None = None,
    silent: Collection[int] = (),
    seed: int = 0,
) -> list[Option]:
    """Return all options of the tables: the given ones, or the usual ones.

    Args:
        held: the tables.
        count: the form whose bytes are limited; with "training" no option saves served bytes alone.
        given: methods for all tables, or by pattern; tables that no pattern matches get the usual ones. A method whose
            tables share a store is one option for all tables that it is given to.
        counts: the number of times each id occurs, by table name; adds options with own rows for frequent ids.
        extra: further options by table name, in addition to the usual ones.
        silent: the tables that seem to carry no information, which must not disturb others in a shared store.
        seed: the seed of the hashes.

    Raises:
        TypeError: an option is not a method.
        ValueError: a pattern matches no table, or no option fits a table.
    """
    asked = _by_table(held, given)
    options: list[Option] = []
    for i, table in enumerate(held):
        methods = asked.get(i)
        if table.kept:
            options += priced([i], [table], [Full()])
            continue
        if methods is None:
            usual = _usual(table, count, (counts or {}).get(table.name), seed, coarse=len(held) > MANY)
            options += priced([i], [table], [*usual], grows=True)
            options += priced([i], [table], (extra or {}).get(table.name, ()))
            continue
        alone = [method for method in methods if not method.shares_store]
        fitting = priced([i], [table], alone)
        if alone and not fitting:
            raise ValueError(f"table {table.name!r}: {_refusal([table], alone[-1])}; no option given to it fits")
        options += fitting
    options += _shared(held, asked, count, silent, seed)
    stored = {i for option in options for i in option.tables}
    for i, table in enumerate(held):
        if i not in stored:
            why = [f": {_refusal(_sharing(held, asked, i, method), method)}" for method in asked.get(i, ())][-1:]
            remedy = "add embcomp.Full() to its options, or keep it"
            raise ValueError(f"table {table.name!r}: no option fits it{''.join(why)}; {remedy}")
    return options


def _by_table(held: Sequence[Held], given: Options | None) -> dict[int, list[Method]]:
    if given is None:
        return {}
    by_pattern = given if isinstance(given, Mapping) else {"*": given}
    for pattern, methods in by_pattern.items():
        if not isinstance(methods, Sequence) or not methods or not all(isinstance(m, Method) for m in methods):
            raise TypeError(
                "options must be methods, such as [embcomp.Full(), embcomp.LowBit(bits=4)], or such lists by pattern; "
                f"got {shown(methods)}"
            )
        if not any(matches(table, pattern) for table in held):
            raise ValueError(
                f"options: the pattern {pattern!r} matches no table; the tables are {[t.name for t in held]}"
            )
    asked = {}
    for i, table in enumerate(held):
        pattern = next((pattern for pattern in by_pattern if matches(table, pattern)), None)
        if pattern is not None:
            asked[i] = list(by_pattern[pattern])
    return asked


def priced(
    numbers: Sequence[int], held: Sequence[Held], methods: Sequence[Method], grows: bool = False
) -> list[Option]:
    """Return the options with their bytes; methods that do not fit are left out."""
    tables, priced = [table.table for table in held], []
    for method in methods:
        try:
            if all(isinstance(m, Full) for m in [method]) and any(t.num_embeddings is None for t in tables):
                raise ValueError("an open id space has no full table")
            sizes = method.sizes(tables, "shared")
        except ValueError:
            continue
        narrow = any(table.widths == "fbgemm" for table in held) and any(s.width % 4 for s in sizes.stores.values())
        if narrow and not isinstance(method, Full):  # which leaves the table as it is
            continue
        priced.append(_option(numbers, held, method, sizes, grows))
    return priced


def _option(numbers: Sequence[int], held: Sequence[Held], method: Method, sizes: Sizes, grows: bool) -> Option:
    """The option of a method for some tables, with all bytes that it takes."""
    if isinstance(method, Full) and all(table.again for table in held):
        return Option(tuple(numbers), method, 0, 0)
    apart = 0 if isinstance(method, Full) else sum(table.apart for table in held)
    return Option(tuple(numbers), method, sizes.nbytes("served") + apart, sizes.nbytes("training") + apart, grows)


def _sharing(held: Sequence[Held], asked: Mapping[int, Sequence[Method]], i: int, method: Method) -> list[Held]:
    """The tables that a method was to store together with table i, which comes first."""
    if not method.shares_store:
        return [held[i]]
    others = [j for j, methods in asked.items() if j != i and any(m is method for m in methods)]
    return [held[i], *(held[j] for j in others if held[j].home == held[i].home and not held[j].kept)]


def _refusal(tables: Sequence[Held], method: Method) -> str:
    """The reason why a method does not fit tables."""
    try:
        method.sizes([table.table for table in tables])
    except ValueError as error:
        return str(error).removeprefix(f"table {tables[0].name!r}: ")
    if not any(table.widths == "fbgemm" for table in tables):
        return f"{type(method).__name__} cannot store it"
    return f"{type(method).__name__} has rows whose width FBGEMM cannot hold (it must be a multiple of 4)"


def _usual(held: Held, count: Count, counts: Tensor | None, seed: int, coarse: bool) -> Iterator[Method]:
    """Yield the usual methods: fewer bits, narrower rows, codes, shared rows.

    Small tables only get fewer bits, or fewer values that keep their ids apart, or one row for all ids, which is for
    those that say nothing.
    """
    ids, width = held.table.num_embeddings, held.table.embedding_dim
    if ids is None:
        yield from (HashingTrick(rows=2**k, seed=seed) for k in range(4, 27))
        return
    yield Full()
    served = count == "served"
    if ids <= SMALL:
        yield from (LowBit(bits=bits) for bits in (8, 4)) if served else (HashingTrick(rows=1, seed=seed),)
        if not served and width % 2 == 0:
            yield QuotientRemainder(combine="concat")
        return
    if served:
        yield from (LowBit(bits=bits) for bits in (8, 6, 4, 3, 2, 1))
    for rank in _ranks(width):
        narrow = LowRank(rank=rank)
        yield from (
            (LowBit(bits=bits, of=narrow) for bits in ((8, 4, 2) if coarse else (8, 4, 3, 2))) if served else (narrow,)
        )
    if served:
        for parts in {width // 2, width // 4} - {0}:
            if width % parts == 0:
                yield from (ProductCodes(parts=parts, codes=codes) for codes in (16, 256) if ids >= 4 * codes)
    shares = SHARES[2:18:4] + SHARES[18::2] if coarse else SHARES
    for share in shares if served or coarse else _finer(shares):
        rows = int(ids * share)
        if rows < 1:
            break
        if rows > MAX_ROWS:
            continue
        unified = _unified([held], share, seed)
        hashed: list[Method] = [] if unified is None else [unified]
        if not served and 2 * ids**0.5 < rows:
            hashed.append(QuotientRemainder(rows=largest_remainder(held.table, rows)))
            if width % 2 == 0:
                hashed.append(QuotientRemainder(rows=largest_remainder(held.table, 2 * rows), combine="concat"))
        if counts is not None and rows > 1:
            hashed.append(FrequencyHash(rows=rows, counts=counts, tail="double", seed=seed))
        for method in hashed:
            yield from (
                (LowBit(bits=bits, of=method) for bits in ((4, 2) if coarse else (4, 3, 2))) if served else (method,)
            )


def _finer(shares: Sequence[float]) -> list[float]:
    """The shares, and one between each two: without bits to trade, one step of a large table equals a small table."""
    return sorted({*shares, *((a * b) ** 0.5 for a, b in itertools.pairwise(shares))}, reverse=True)


def _ranks(width: int) -> list[int]:
    """The ranks to offer: 1, 2, 3, 4, 6, 8, 12, ... up to three quarters of the width."""
    steps = sorted({int(base * 2**k) for base in (1, 1.5) for k in range(width.bit_length())})
    return [rank for rank in steps if 1 <= rank <= WIDEST * width]


def _unified(held: Sequence[Held], share: float, seed: int) -> UnifiedEmbedding | None:
    """One store with a share of the values of the tables; None if it would have too many rows."""
    tables = [table.table for table in held]
    values = sum(table.nbytes for table in held) * share / 4
    balanced = can_balance(tables)
    chunk = best_chunk_dim(tables, int(values * 4), balanced=balanced)
    rows = max(1, int(values / chunk))
    return UnifiedEmbedding(rows=rows, chunk_dim=chunk, balanced=balanced, seed=seed) if rows <= MAX_ROWS else None


def _shared(
    held: Sequence[Held], asked: Mapping[int, Sequence[Method]], count: Count, silent: Collection[int], seed: int
) -> list[Option]:
    """The options over several tables of one home: one store for all large ones, and the requested ones."""
    options = []
    for home in dict.fromkeys(table.home for table in held):
        free = [i for i, t in enumerate(held) if t.home == home and not t.kept]
        usual = [i for i in free if i not in asked and i not in silent]
        large = [i for i in usual if (held[i].table.num_embeddings or 0) > SMALL]
        for members in _groups(held, large):
            for share in SHARES:
                method = _unified([held[i] for i in members], share, seed)
                if method is None:
                    continue
                around: list[Method] = [LowBit(bits=bits, of=method) for bits in (4, 3, 2)]
                methods = around if count == "served" else [method]
                options += priced(members, [held[i] for i in members], methods, grows=True)
        groups: dict[int, tuple[Method, list[int]]] = {}
        for i in free:
            for method in asked.get(i, ()):
                if method.shares_store:
                    groups.setdefault(id(method), (method, []))[1].append(i)
        for method, numbers in groups.values():
            options += priced(numbers, [held[i] for i in numbers], [method])
    return options


def _groups(held: Sequence[Held], large: Sequence[int]) -> Iterator[list[int]]:
    """Yield tables that may share one store: all large ones of a home, and the largest 2, 3, ... of them."""
    order = sorted(large, key=lambda i: -held[i].nbytes)
    for size in sorted({*range(2, min(len(order), MOST_GROUPS) + 1), len(order)} - {0, 1}):
        members = sorted(order[:size])
        if math.gcd(*[held[i].table.embedding_dim for i in members]) > 1:
            yield members


def rows_of(method: Method) -> int | None:
    """Return the number of shared rows, of a method or of the one inside it; None if ids do not share rows."""
    rows = getattr(method, "rows", None)
    inner = getattr(method, "of", None)
    return rows if isinstance(rows, int) else rows_of(inner) if isinstance(inner, Method) else None
