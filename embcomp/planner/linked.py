"""The rules for the two sides of a graph of clicks: models whose tables are users and items, and nothing else.

Their vectors are all that the model knows, each id has few clicks, and clusters of the graph tell what they share. So
rows in few bits lose three times as much of the worth as in click-through models (`embcomp.planner.rules`), hashes ten
times as much, and rows that are a linear map of narrow ones hardly learn from scratch; mixtures of clusters lose least.
At level 1 both sides are worth the same, as the two factors of a product are. Measured with LightGCN on Amazon Beauty,
as the mean loss of R@10 and R@50 (`python -m experiments run lowbit-beauty graphhash-beauty choose-beauty`):

| what | of the worth |
|---|---|
| own rows of 4, 3, 2, 1 bits | .003, .013, .013, .15 |
| ranks 15 of 64, 48 of 64 in 4 bits, 6 of 64 in 3 bits, from scratch | .40, .39, .43 |
| ranks 56 and 40 in 2.1 and 1.5 bits, trained on from the full tables | .008, .047 |
| Unified Embedding in 4 bits, 80, 24, 8 % | .11, .33, .58 |
| one cluster, 26 % of the rows | .16 |
| mixtures of 2, 25 and 9 % | .065, .053 |
| mixtures of 4, 23, 21, 6 % | 0, .012, .033 |
| mixtures of 8, 19, 17, 3 % | gains .02, gains .03, .13 |
"""

import math
from collections.abc import Sequence

from embcomp.methods.base import Method
from embcomp.methods.graph import DoubleGraphHash, GraphHash, SoftGraphHash
from embcomp.methods.table import Table
from embcomp.planner import rules
from embcomp.planner.rules import Anatomy

ROUNDING = {8: 0.001, 7: 0.0015, 6: 0.002, 5: 0.003, 4: 0.004, 3: 0.011, 2: 0.0135, 1: 0.15}
"""The loss as a share of the worth, by bits."""

COLD = 0.5
"""The loss of a rank that is trained from scratch, beside that of `rules.projection`."""

MIXED = {1: 0.155, 2: 0.05, 4: 0.006, 8: 0.0}
"""The loss of rows that are shared by cluster, by the number of clusters that an id mixes."""

FEW = 1.4e-4
"""The loss of few clusters: this factor times (1 / share - 1)^2."""

HASHED = 0.08, 0.32
"""The loss of other shared rows: the first, and the second times (share^-1/2 - 1)."""


def loss(
    method: Method, tables: Sequence[Table], worth: float, probed: float | None = None, fresh: bool = True
) -> float:
    """Return the rise of the loss that a method causes for some tables after training, as `rules.loss` does.

    Args:
        method: the method of all the tables.
        tables: the tables that it stores.
        worth: the worth of the tables.
        probed: the rise just after the method without its bits replaced the trained tables; None to guess.
        fresh: False if training goes on from the trained tables.
    """
    parts = rules.anatomy(method, tables)
    share = rules.rounding(parts.bits, ROUNDING) + _shared(parts)
    if parts.rank is not None:
        share += COLD if fresh else 0.0
        if probed is None:
            share += rules.projection(parts.rank, min(table.embedding_dim for table in tables))
    if parts.codes is not None and probed is None:
        share += 1.2 * rules.rounding(parts.codes, ROUNDING)
    if probed is not None:  # as in `rules.loss`, a probe that shows nothing does not make an option free
        guess = rules.UNSEEN * rules.projection(parts.rank, min(table.embedding_dim for table in tables))
        lasting = probed if parts.codes is not None else rules.RECOVERED * probed
        share += max(guess + rules.rounding(parts.codes, ROUNDING), lasting / worth)
    return worth * -math.expm1(-share)


def _shared(parts: Anatomy) -> float:
    if parts.sharing == 1.0:
        return 0.0
    method = parts.bare
    if isinstance(method, GraphHash | DoubleGraphHash | SoftGraphHash):
        mixed = method.k if isinstance(method, SoftGraphHash) else 1
        nearest = min(MIXED, key=lambda k: abs(math.log2(k / mixed)))
        return MIXED[nearest] + FEW * (1 / parts.sharing - 1) ** 2
    return HASHED[0] + HASHED[1] * (parts.sharing**-0.5 - 1)
