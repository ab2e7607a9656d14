"""A table as a tensor train of three small cores, whose slices are multiplied for an id."""

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from embcomp import configs
from embcomp.methods.base import (
    Chunk,
    Combiner,
    Encoder,
    Ladder,
    Method,
    Plan,
    Rows,
    Sizes,
    Store,
    Table,
    TablePlan,
    side_store,
)
from embcomp.methods.together import Parts
from embcomp.ops.together.digits import digits
from embcomp.settings import MAX_DIM, Width

Three = tuple[int, int, int]


@configs.kind
@dataclass(frozen=True)
class Shape:
    """The shape of a train: the factors of the ids, the factors of the width, and the rank between cores."""

    ids: Three
    widths: Three
    rank: int

    @property
    def cores(self) -> tuple[tuple[int, int], ...]:
        """The rows and columns of each core: (n1, d1 R), (n2, R d2 R), (n3, R d3)."""
        (n1, n2, n3), (d1, d2, d3), rank = self.ids, self.widths, self.rank
        return (n1, d1 * rank), (n2, rank * d2 * rank), (n3, rank * d3)


class Chain(Combiner):
    """A combiner that multiplies the slices [d1, R], [R, d2 R] and [R, d3] of an id, by two batched matrix products."""

    linear = False
    costly = True

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        first, middle, last = chunks
        (d1, d2, d3), rank = self.shape.widths, self.shape.rank
        ids = first.shape[:-1]
        pair = first.reshape(-1, d1, rank) @ middle.reshape(-1, rank, d2 * rank)
        return (pair.reshape(-1, d1 * d2, rank) @ last.reshape(-1, rank, d3)).reshape(*ids, d1 * d2 * d3)

    def alike(self) -> Hashable:
        return self.shape.widths, self.shape.rank  # the factors of the ids only matter to encoders

    def dim(self, dims: Sequence[int]) -> int:
        return math.prod(self.shape.widths)

    def rows_of(self, vectors: Tensor, counts: Tensor) -> list[Tensor]:
        return tensor_train(vectors, self.shape)


def tensor_train(vectors: Tensor, shape: Shape) -> list[Tensor]:
    """Decompose a table by TT-SVD (Oseledets 2011, algorithm 1).

    The error is at most the root of the sum of the squared singular values that both truncations leave out.

    Args:
        vectors: the table, [ids, width]; ids beyond it count as zeros.
        shape: the shape of the train.

    Returns:
        The three cores, [rows, columns] as in `Shape.cores`.
    """
    (n1, n2, n3), (d1, d2, d3), rank = shape.ids, shape.widths, shape.rank
    missing = n1 * n2 * n3 - len(vectors)
    whole = torch.nn.functional.pad(vectors.float(), (0, 0, 0, missing))
    whole = whole.view(n1, n2, n3, d1, d2, d3).permute(0, 3, 1, 4, 2, 5).reshape(n1 * d1, -1)
    left = _directions(whole, rank)
    rest = (left.t() @ whole).reshape(rank * n2 * d2, n3 * d3)
    right = _directions(rest.t(), rank)
    middle = (rest @ right).reshape(rank, n2, d2, rank)
    # The first and the last core get the size of fresh ones, so that gradients of all three do.
    scales = ((n1 * d1 / rank) ** 0.5, (n3 * d3 / rank) ** 0.5)
    first = left.reshape(n1, d1 * rank) * scales[0]
    last = right.reshape(n3, d3, rank).transpose(1, 2).reshape(n3, rank * d3) * scales[1]
    middle = middle.transpose(0, 1).reshape(n2, -1) / (scales[0] * scales[1])
    return [first, middle, last]


def _directions(matrix: Tensor, rank: int) -> Tensor:
    """Return the left singular vectors of the largest singular values, [rows, rank]."""
    gram = sum((columns @ columns.t() for columns in matrix.double().split(1 << 16, dim=1)), torch.zeros(()))
    return torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :rank].to(matrix.dtype)


class DigitEncoder(Encoder):
    """An encoder whose rows are the digits of an id in the mixed radix (n1, n2, n3), the last one the fastest."""

    def __init__(self, table: Table, config: Mapping[str, Any], radix: Three) -> None:
        super().__init__(table, config)
        self.radix = radix

    def encode(self, ids: Tensor) -> list[Rows]:
        _, n2, n3 = self.radix
        upper = ids // n3
        first = upper // n2
        return [Rows(rows.unsqueeze(-1)) for rows in (first, upper - first * n2, ids - upper * n3)]

    @classmethod
    def encode_together(cls, asked: Parts) -> Rows:
        """Return the rows of several encoders (`embcomp.methods.together`)."""
        radices = [part.encoder.radix for part in asked.parts]
        below = [math.prod(radix[part.chunk + 1 :]) for radix, part in zip(radices, asked.parts, strict=True)]
        own = [radix[part.chunk] for radix, part in zip(radices, asked.parts, strict=True)]
        return Rows(digits(asked.batch, below, own))


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorTrain(Method):
    """A table as three cores (TT-Rec, Yin et al. 2021, arXiv 2101.11714, equation 2).

    With i = (i1 n2 + i2) n3 + i3, e(i) = G1[i1] G2[i2] G3[i3], slices [d1, R], [R, d2 R] and [R, d3] for a width of d1
    d2 d3. Fresh vectors have the moments of the table replaced. `init="warm"` and "fit" decompose a trained table by
    TT-SVD, and refine the cores by least squares.

    Args:
        rank: the rank R between neighbouring cores.
        ids: the factors n1, n2 and n3, whose product must cover the ids; by default close to their cube root.
        widths: the factors d1, d2 and d3, whose product must be the width; by default close to its cube root.
        small: "refuse" to refuse a table whose cores cannot use this rank, or "cap" to lower its rank.

    Raises:
        ValueError: the factors do not cover the ids or give another width, or the rank is above n1 d1 or n3 d3.

    Example:
        >>> import torch, embcomp
        >>> emb = embcomp.nn.CompressedEmbedding(1_000_000, 64, embcomp.TensorTrain(rank=8))
        >>> emb(torch.tensor([3, 999_999])).shape, embcomp.nbytes(emb) == 4 * 100 * (4 * 8 + 8 * 4 * 8 + 4 * 8)
        (torch.Size([2, 64]), True)
    """

    sized_in_steps: ClassVar[bool] = True
    sized_by: ClassVar[str] = "rank"

    rank: Width
    ids: Sequence[int] | None = None
    widths: Sequence[int] | None = None
    small: Literal["refuse", "cap"] = "refuse"

    def __post_init__(self) -> None:
        for name in ("ids", "widths"):
            given = getattr(self, name)
            if given is None:
                continue
            if len(given) != 3 or not all(type(n) is int and n > 0 for n in given):
                raise ValueError(f"TensorTrain: {name} must be three positive integers, got {given!r}")
            object.__setattr__(self, name, tuple(given))

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        stores = {}
        for table in tables:
            shape = self._shape(table)
            inits = ("chain", "chain_middle", "chain")
            for name, (rows, columns), init in zip(_names(table, tables), shape.cores, inits, strict=True):
                stores[name] = Store(rows, columns, init, summands=shape.rank)
        return Sizes(stores)

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        plans = []
        for table in tables:
            shape = self._shape(table)
            encoder = DigitEncoder(table, {**self.config(), "ids": shape.ids, "rank": shape.rank}, shape.ids)
            chunks = tuple(Chunk(name) for name in _names(table, tables))
            plans.append(TablePlan(table, encoder, chunks, Chain(shape)))
        return Plan(dict(self.sizes(tables).stores), plans)

    def _shape(self, table: Table) -> Shape:
        number, width = table.ids_or_raise("TensorTrain"), table.embedding_dim
        ids = cube(number) if self.ids is None else _three(self.ids)
        widths = factors(width) if self.widths is None else _three(self.widths)
        if math.prod(ids) < number:
            raise ValueError(
                f"table {table.name!r}: ids={ids} cover {math.prod(ids)} ids, but it has {number}; choose larger "
                "factors, or leave ids out"
            )
        if math.prod(widths) != width:
            raise ValueError(
                f"table {table.name!r}: widths={widths} make {math.prod(widths)} columns, but its embedding_dim is "
                f"{width}; choose factors of {width}, or leave widths out"
            )
        most = min(ids[0] * widths[0], ids[2] * widths[2])
        if self.rank > most and self.small == "refuse":
            raise ValueError(
                f"table {table.name!r}: rank={self.rank} is above {most}, the most that cores of ids={ids} and "
                f"widths={widths} can use; choose a lower rank, leave the table out, or take small='cap'"
            )
        return Shape(ids, widths, min(self.rank, most))

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return the usual ladder, with the rank as the size, which small tables cap."""
        fixed = {"small": "cap", **fixed}

        def make(rank: int) -> Self:
            return cls(rank=rank, **fixed)

        capped = cls(rank=MAX_DIM, **{**fixed, "small": "cap"})
        useful = [capped._shape(table).rank for table in tables]
        most = max(useful) if fixed["small"] == "cap" else min(useful)
        return Ladder(make, lambda rank: make(rank).sizes(tables), most=most)


def _names(table: Table, tables: Sequence[Table]) -> tuple[str, str, str]:
    """Return the names of the stores of the three cores."""
    return side_store(table, "first", tables), table.name, side_store(table, "last", tables)


def _three(given: Sequence[int]) -> Three:
    first, middle, last = given
    return first, middle, last


def cube(number: int) -> Three:
    """Find three factors close to the cube root whose product is at least `number`, the middle one the smallest.

    The middle core has the most columns.

    Example:
        >>> cube(1_000_000), cube(3_706), cube(5)
        ((100, 100, 100), (16, 15, 16), (2, 2, 2))
    """
    side = round(number ** (1 / 3))
    while side**3 < number:
        side += 1
    while side > 1 and (side - 1) ** 3 >= number:
        side -= 1
    middle = -(-number // side**2)
    return side, middle, side


def factors(width: int) -> Three:
    """Split a width into three factors as equal as can be, the smallest first.

    Example:
        >>> factors(64), factors(32), factors(10), factors(7)
        ((4, 4, 4), (2, 4, 4), (1, 2, 5), (1, 1, 7))
    """
    divisors = [n for n in range(1, width + 1) if width % n == 0]
    pairs = itertools.combinations_with_replacement(divisors, 2)
    triples = [(a, b, width // (a * b)) for a, b in pairs if width % (a * b) == 0 and width // (a * b) >= b]
    return min(triples, key=sum)
