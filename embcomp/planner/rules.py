"""The rules for the loss of a method after training, with constants measured with this library.

The unit is the worth of the table: the rise of the model's loss if all ids of the table had one vector. In this unit
trained tables lost about the same on data sets whose losses differ by a factor of ten: MovieLens-1M / Frappe with
DCNv2, whose tables are worth .26 and 1.6 of log-loss (`python -m experiments run lowbit-ctr-ml1m lowbit-ctr-frappe
hashing-ctr-ml1m hashing-ctr-frappe lowbit-beauty choose-ml1m choose-frappe`):

| what | of the worth |
|---|---|
| own rows of 4, 3, 2, 1 bits | 0 / .003, .001 / .005, .002 / .009, .027 / .038 |
| Unified Embedding over all tables, 50, 10, 1 % | .006 / .023, .053 / .054, .19 / .10 |
| quotient and remainder, 50, 25, 10 % | 0 / .019, .010 / .025, .048 / .051 |
| quotient and remainder side by side, 25, 10 % | .027 / .020, .065 / .050 |
| two hashes side by side, 50, 10, 1 % | 0 / .027, .081 / .058, .32 / .13 |
| frequent ids own rows, two hashes for the others, 50, 10, 1 % | .051 / .016, .15 / .061, .51 / .19 |
| one hash, 50, 10, 1 % | .16 / .046, .44 / .13, .52 / .28 |
| mixtures of 2, 4, 8 clusters, 19 % (R@10 on Beauty) | .03, 0, gains |
| rank 1, 3, 4, 6 of 16 / 1, 2, 4 of 10 | .055, .005, .006, .001 / .075, .041, .021 |
| rank, as a share of the loss just after the projection | .35-.45 / .33 |
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from embcomp.methods.base import Method
from embcomp.methods.full import Full
from embcomp.methods.graph import DoubleGraphHash, GraphHash, SoftGraphHash
from embcomp.methods.hashing import HashingTrick
from embcomp.methods.low_bit import LowBit
from embcomp.methods.low_rank import LowRank
from embcomp.methods.product_codes import ProductCodes
from embcomp.methods.semantic.method import SemanticIds
from embcomp.methods.table import Table
from embcomp.methods.unified import UnifiedEmbedding
from embcomp.planner.reads import OFTEN, Reads
from embcomp.semantic_ids.pieces.base import PrefixNgram

ROUNDING = {8: 0.0003, 7: 0.0005, 6: 0.0008, 5: 0.0013, 4: 0.002, 3: 0.004, 2: 0.0075, 1: 0.033}
"""The loss as a share of the worth, by bits, for rows that are trained on their grid."""

NARROW = {8: 0.0005, 7: 0.0008, 6: 0.0012, 5: 0.002, 4: 0.0025, 3: 0.008, 2: 0.03, 1: 0.1}
"""The same for rows of low rank, which lose more: rank 5 with 3 bits lost .009 in all, ranks 4 and 12 with 4 bits 0."""

SPREAD = {
    "UnifiedEmbedding": 0.024,
    "QuotientRemainder": 0.0245,
    "QuotientRemainder, concat": 0.0215,
    "MultiHash": 0.032,
    "HashEmbedding": 0.05,
    "DoubleHash": 0.05,
    "FrequencyHash": 0.05,
    "HashingTrick": 0.15,
    "GraphHash": 0.05,
    "DoubleGraphHash": 0.03,
    "SoftGraphHash": 0.03,
    "SemanticIds": 0.03,
}
"""The loss of sharing, as a share of the worth: this factor times the collisions (`Reads`), by method; .035 for others.

Without counts the collisions are share^-1/2 - 1.

Quotient and remainder are as measured on Frappe at 25 and 10 %: sharing only competes where ranks lose as much as
there. On ML-1M, where side by side loses more than the product, ranks are better than both."""

ALONE = 1.4
"""The factor by which `UnifiedEmbedding` costs more for a single table, because of collisions inside a feature."""

UNLEARNED = 0.45
"""The loss of a rank that is trained from scratch, as a share of the worth, where the median id has six look-ups.

It falls with their power 2.9: LightGCN on Beauty, with 5 and 7, lost .4; users of Globo, with 14, .04; tables of
MovieLens-1M, with 58 to 90, nothing that is seen."""

OPEN = 2**20
"""The assumed number of ids of an open id space."""

PROJECTED = 0.0035
"""The loss of a rank, as a share of the worth: this factor times (width / rank - 1), for widths of 16 and more.

In narrower tables, which have no directions to spare, it is (16 / width)^2 times as much: see the ranks above."""

RECOVERED = 0.35
"""The share of the loss just after a projection to a rank that remains when the narrow rows are trained."""

UNSEEN = 0.4
"""The share of the guessed loss of a rank that remains where a probe shows none: training finds fewer directions.

On ML-1M ranks of 1, 3, 4, 6 cost little after training, and 1, .3, .6, .2 of the guess from scratch. Codes likewise
cost no less than rounding to as many bits."""


ALIKE = (GraphHash, DoubleGraphHash, SoftGraphHash, SemanticIds)
"""The methods that give a row to ids that are alike, of which shared rows by hashes tell nothing."""

UNREAD = 0.04
"""The loss of rows in few bits, as a share of the worth, if no training reads them: see `Reads`.

The step of a grid follows the size of all rows of a store, and those that are read are larger. On `choose-planted`, 60
to 90 % of the ids of large tables are not in the training split, and own rows of 8 bits lost .04 to .07."""

NEW = 0.5
"""The loss of rows by id, as a share of the worth, where new ids come: these read rows that nothing trained.

On Globo, split by time, the share of new ids is .04 of the look-ups at first; ten days later it is .38 of the look-ups
and .67 of the clicks."""

COARSE = 0.02
"""The loss of each level of codes less than five, as a share of the worth."""

_VALUES: WeakKeyDictionary[Method, dict[tuple[Table, ...], int]] = WeakKeyDictionary()

Rule = Callable[[Method, Sequence[Table], float, float | None], float]
"""The loss of a method for tables of some worth, with the rise that a probe measured, as `loss` computes it."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of a method.

    Attributes:
        bits: the bits of a served value; None for floats.
        rank: the rank of the vectors; None if they keep their width.
        codes: the bits of a value under product codes; None without.
        sharing: the values of the stores divided by those of the tables, at most 1.
        spread: the cost factor of sharing, see `SPREAD`.
        bare: the method without bits; the loss that a probe measures for it lasts through training.
    """

    bits: int | None
    rank: int | None
    codes: float | None
    sharing: float
    spread: float
    bare: Method


def anatomy(method: Method, tables: Sequence[Table]) -> Anatomy:
    """Split a method into its parts: rounding, projection, codes and sharing."""
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
        whole = sum((table.num_embeddings or OPEN) * table.embedding_dim for table in tables)
        sharing = min(1.0, _values(method, tuple(tables)) / whole)
    name = type(method).__name__
    side_by_side = f"{name}, {getattr(method, 'combine', '')}"
    spread = SPREAD.get(side_by_side, SPREAD.get(name, 0.035))
    if isinstance(method, SoftGraphHash):
        spread /= method.k
    elif isinstance(method, UnifiedEmbedding) and len(tables) == 1:
        spread *= ALONE
    return Anatomy(bits, rank, codes, sharing, spread, bare)


def _values(method: Method, tables: tuple[Table, ...]) -> int:
    """Return the number of stored values. It is kept, as rules are asked for it often, and some methods plan for it."""
    try:
        known = _VALUES.setdefault(method, {})
    except TypeError:  # a method of a user whose settings cannot be hashed
        known = {}
    if tables not in known:
        known[tables] = sum(store.rows * store.dim for store in method.sizes(tables).stores.values())
    return known[tables]


def rounding(bits: float | None, costs: Mapping[int, float] = ROUNDING) -> float:
    """Return the loss of rounding as a share of the worth; interpolated between whole numbers of bits."""
    if bits is None or bits > 8:
        return 0.0
    low = max(1, math.floor(bits))
    high = min(8, low + 1)
    return costs[low] + (bits - low) * (costs[high] - costs[low]) if bits >= 1 else costs[1] / bits**2


def projection(rank: int | None, width: int) -> float:
    """Return a guess of the loss of a rank, as a share of the worth; see `PROJECTED`."""
    return 0.0 if rank is None or rank >= width else PROJECTED * max(1.0, 16 / width) ** 2 * (width / rank - 1)


def loss(
    method: Method,
    tables: Sequence[Table],
    worth: float,
    probed: float | None = None,
    reads: Mapping[str, Reads] | None = None,
) -> float:
    """Return the rise of the loss that a method causes for some tables after training.

    Args:
        method: the method of all the tables.
        tables: the tables that it stores.
        worth: the worth of the tables.
        probed: the rise just after `anatomy(method).bare` replaced the trained tables; None to guess.
        reads: the look-ups in training, by table name, where they are known.
    """
    parts = anatomy(method, tables)
    if isinstance(parts.bare, HashingTrick) and parts.bare.rows == 1:
        return worth
    each = [(reads or {}).get(table.name, OFTEN) for table in tables]
    share = rounding(parts.bits, ROUNDING if parts.rank is None else NARROW)
    share += parts.spread * max(read.collisions(parts.sharing, tables[0].embedding_dim) for read in each)
    if parts.rank is not None:
        share += unlearned(min(read.median for read in each))
    if parts.bits is not None:  # fewer rows are read by more ids
        share += UNREAD * max(0.0, 1 - min(read.share for read in each) / parts.sharing)
    if probed is None:
        share += projection(parts.rank, min(table.embedding_dim for table in tables)) + 1.2 * rounding(parts.codes)
        return worth * -math.expm1(-share)
    least = UNSEEN * projection(parts.rank, min(table.embedding_dim for table in tables)) + rounding(parts.codes)
    lasting = probed if parts.codes is not None else RECOVERED * probed
    return worth * -math.expm1(-share - max(least, lasting / worth))


def unlearned(lookups: float) -> float:
    """Return the loss of a rank from scratch, as a share of the worth, where ids have few look-ups; see `UNLEARNED`."""
    return min(UNLEARNED, UNLEARNED * (6 / max(lookups, 1e-9)) ** 2.9)


def for_new_ids(rule: Rule, names: Collection[str]) -> Rule:
    """Return the rule for tables of which content is given, because new ids come: rows by id lose `NEW` beside."""

    def loss(method: Method, tables: Sequence[Table], worth: float, probed: float | None) -> float:
        lost, bare = rule(method, tables, worth, probed), anatomy(method, tables).bare
        if not any(table.name in names for table in tables):
            return lost
        if isinstance(bare, SemanticIds) and isinstance(bare.pieces, PrefixNgram):
            return lost + COARSE * worth * max(0, 5 - bare.pieces.n)
        return lost if isinstance(bare, SemanticIds) else lost + NEW * worth

    return loss


def measurable(method: Method, tables: Sequence[Table]) -> bool:
    """Return whether a probe tells more than the rules.

    It does for ranks and codes, but not for rounded or shared rows, which training changes most.
    """
    parts = anatomy(method, tables)
    return (parts.rank is not None or parts.codes is not None) and parts.sharing == 1.0
