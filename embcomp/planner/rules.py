"""What a method costs a table after training: rules, with constants that this library measured.

The unit is what the table is worth to the model: the rise of its loss where all ids of the table had one vector. In
that unit trained tables lost about the same on data sets whose losses differ by ten: `python -m experiments run
lowbit-ctr-ml1m lowbit-ctr-frappe` (DCNv2; the tables of MovieLens-1M are worth .26 in log-loss, those of Frappe 1.6).

| what | of the worth, MovieLens-1M / Frappe |
|---|---|
| own rows of 4, 3, 2, 1 bits | 0 / .003, .001 / .005, .002 / .009, .027 / .038 |
| 12.5, 10, 6.3, 3.2, 1 % of the rows (Unified balanced) | .042 / .048, .043 / .057, - / .066, .090 / .092, .19 / - |
| rank, as a share of the loss just after the projection | .35-.45 / .33 |
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from embcomp.methods.base import Method
from embcomp.methods.full import Full
from embcomp.methods.graphhash import GraphHash
from embcomp.methods.low_bit import LowBit
from embcomp.methods.low_rank import LowRank
from embcomp.methods.product_codes import ProductCodes
from embcomp.methods.soft_graphhash import SoftGraphHash
from embcomp.methods.table import Table

ROUNDING = {8: 0.0003, 7: 0.0005, 6: 0.0008, 5: 0.0013, 4: 0.002, 3: 0.004, 2: 0.007, 1: 0.033}
"""Of the worth, by bits, for rows that are trained on their grid."""

RECOVERED = 0.35
"""Of the loss just after vectors were projected to a rank: what is left when the narrow rows are trained."""


@dataclass(frozen=True)
class Anatomy:
    """A method taken apart.

    Attributes:
        bits: of a served value; None for floats.
        rank: of the vectors; None where they keep their width.
        codes: bits of a value under product codes; None without.
        sharing: values of the stores for each value of the tables, at most 1.
        likeness: of what sharing costs where ids are put together at random, the part that remains.
        bare: the method without bits; what a probe shows of it lasts through training.
    """

    bits: int | None
    rank: int | None
    codes: float | None
    sharing: float
    likeness: float
    bare: Method


def anatomy(method: Method, tables: Sequence[Table]) -> Anatomy:
    """Takes a method apart: what it rounds, projects, codes and shares."""
    bits = rank = codes = None
    bare = method
    if isinstance(method, LowBit):
        bits, method = method.bits, method.of
        bare = method
    if isinstance(method, ProductCodes):
        width = tables[0].embedding_dim / method.parts
        codes, method = math.log2(method.codes) / width, method.of
    if isinstance(method, LowRank):
        rank, method = method.rank, method.of
        tables = [dataclasses.replace(table, embedding_dim=rank) for table in tables]
    sharing = 1.0
    if not isinstance(method, Full):
        values = sum(store.rows * store.dim for store in method.sizes(tables).stores.values())
        sharing = min(1.0, values / sum((t.num_embeddings or values) * t.embedding_dim for t in tables))
    likeness = 0.3 if isinstance(method, SoftGraphHash) else 0.8 if isinstance(method, GraphHash) else 1.0
    return Anatomy(bits, rank, codes, sharing, likeness, bare)


def rounding(bits: float | None) -> float:
    """What bits cost, of the worth; between two whole numbers of bits as on a line."""
    if bits is None or bits > 8:
        return 0.0
    low = max(1, math.floor(bits))
    high = min(8, low + 1)
    return ROUNDING[low] + (bits - low) * (ROUNDING[high] - ROUNDING[low]) if bits >= 1 else ROUNDING[1] / bits**2


def sharing(share: float) -> float:
    """What it costs that ids share rows, of the worth, for so many values kept of each."""
    return 0.019 * (share**-0.5 - 1)


def projection(rank: int | None, width: int) -> float:
    """A guess of what a rank costs, of the worth; the two data sets differ by far (0 and .02 at a quarter)."""
    return 0.0 if rank is None or rank >= width else 0.007 * (width / rank - 1) ** 0.85


def loss(method: Method, tables: Sequence[Table], worth: float, probed: float | None = None) -> float:
    """The rise of the loss that a method costs some tables once it has been trained.

    Args:
        method: of the tables, together.
        tables: what it stores.
        worth: of the tables.
        probed: the rise just after `anatomy(method).bare` took the place of the trained tables; without it guesses.
    """
    parts = anatomy(method, tables)
    share = rounding(parts.bits) + parts.likeness * sharing(parts.sharing)
    if probed is None:
        share += projection(parts.rank, min(table.embedding_dim for table in tables)) + 1.2 * rounding(parts.codes)
        return worth * min(1.0, share)
    lasting = probed if parts.codes is not None else RECOVERED * probed
    return min(worth, worth * share + max(0.0, lasting))


def measurable(method: Method, tables: Sequence[Table]) -> bool:
    """Whether a probe says more than the rules.

    Of ranks and codes it does; of rounded and of shared rows, which training changes most, it does not.
    """
    parts = anatomy(method, tables)
    return (parts.rank is not None or parts.codes is not None) and parts.sharing == 1.0
