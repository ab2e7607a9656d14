"""QuotientRemainder: compositional embeddings, which give every id its own vector from two small tables."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from embcomp.methods.base import (
    Chunk,
    Concat,
    Encoder,
    Ladder,
    Method,
    Plan,
    Product,
    Rows,
    Sizes,
    Store,
    Sum,
    Table,
    TablePlan,
    check_rows,
    per_table,
    side_store,
)
from embcomp.methods.budget import share_rows
from embcomp.methods.together import Parts
from embcomp.ops.hashing import MAX_ROWS
from embcomp.ops.together.batch import LARGEST
from embcomp.ops.together.digits import digits
from embcomp.settings import RowCount


class QuotientRemainderEncoder(Encoder):
    """An encoder from an id to (id // rows, id % rows)."""

    def __init__(self, table: Table, config: Mapping[str, Any], rows: int):
        super().__init__(table, config)
        self.divisor = rows

    def encode(self, ids: Tensor) -> list[Rows]:
        quotient = ids // self.divisor
        return [Rows(quotient.unsqueeze(-1)), Rows((ids - quotient * self.divisor).unsqueeze(-1))]

    @classmethod
    def encode_together(cls, asked: Parts) -> Rows:
        """Encode the ids of several encoders at once (`embcomp.methods.together`)."""
        below = [1 if chunk else encoder.divisor for encoder, chunk in asked.parts]
        radix = [encoder.divisor if chunk else LARGEST for encoder, chunk in asked.parts]
        return Rows(digits(asked.batch, below, radix))


def smallest_pair(num_embeddings: int) -> int:
    """Return the r that minimises r + ceil(num_embeddings / r); it is close to the square root.

    Example:
        >>> smallest_pair(10_000)
        100
    """
    root = math.isqrt(num_embeddings)
    near = range(max(1, root - 2), root + 3)
    return min(near, key=lambda r: (r + -(-num_embeddings // r), r))


@dataclass(frozen=True, kw_only=True, eq=False)
class QuotientRemainder(Method):
    """A method with e(id) = Q[id // rows] * R[id % rows] (Shi et al. 2020, arXiv 1909.02107, sections 2 and 3.1).

    The vectors are combined before pooling, so that multi-hot bags are exact. The id space must be closed.

    Args:
        rows: the rows of the remainder table R, or a mapping from table names to rows; the quotient table Q has
            ceil(num_embeddings / rows). By default the pair with the fewest rows in total.
        combine: "mul", "sum" or "concat"; with "concat" each table has half of the width.

    Example:
        >>> import torch, embcomp
        >>> emb = embcomp.nn.CompressedEmbedding(10_000, 16, embcomp.QuotientRemainder())
        >>> embcomp.nbytes(emb) == 4 * 16 * (100 + 100)
        True
    """

    sized_in_steps: ClassVar[bool] = True

    rows: RowCount | Mapping[str, RowCount] | None = None
    combine: Literal["mul", "sum", "concat"] = "mul"

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        stores = {}
        for table in tables:
            ids = table.ids_or_raise("QuotientRemainder")
            rows = per_table(self.rows, table, "rows")
            rows = smallest_pair(ids) if rows is None else check_rows(rows, table.name)
            dim = table.embedding_dim
            if self.combine == "concat" and dim % 2:
                raise ValueError(f"table {table.name!r}: embedding_dim {dim} is odd; concat needs an even one")
            half = dim // 2 if self.combine == "concat" else dim
            summands = 2 if self.combine == "sum" else 1
            first, second = ("unit", "factor") if self.combine == "mul" else ("table", "table")
            stores[side_store(table, "quotient", tables)] = Store(-(-ids // rows), half, first, summands)
            stores[table.name] = Store(rows, half, second, summands)
        return Sizes(stores)

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        stores, plans = dict(self.sizes(tables).stores), []
        for table in tables:
            quotient, rows = side_store(table, "quotient", tables), stores[table.name].rows
            encoder = QuotientRemainderEncoder(table, {**self.config(), "rows": rows}, rows)
            combiner = {"mul": Product, "sum": Sum, "concat": Concat}[self.combine]()
            plans.append(TablePlan(table, encoder, (Chunk(quotient), Chunk(table.name)), combiner))
        return Plan(stores, plans)

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return the usual ladder, with the rows of both tables of a pair together as the size."""

        def make(size: int) -> Self:
            shares = share_rows(tables, size)
            rows = {table.name: largest_remainder(table, per_table(shares, table, "rows")) for table in tables}
            return cls(rows=rows if len(tables) > 1 else rows[tables[0].name], **fixed)

        return Ladder(make, lambda size: make(size).sizes(tables), most=MAX_ROWS * len(tables))


def largest_remainder(table: Table, total: int) -> int:
    """Return the largest r with r + ceil(num_embeddings / r) <= total, or that of the smallest pair if none fits.

    It is at most num_embeddings, as no id would reach further rows.
    """
    ids = table.ids_or_raise("QuotientRemainder")
    low = smallest_pair(ids)
    if total < low + -(-ids // low):
        return low
    high = min(total, ids + 1, MAX_ROWS + 1)
    while high - low > 1:  # r + ceil(ids / r) rises with r from the smallest pair on, but for steps of the ceiling
        middle = (low + high) // 2
        low, high = (middle, high) if middle + -(-ids // middle) <= total else (low, middle)
    return low
