"""The conclusions of a published comparison, as orders that results can be checked for.

H. Zhang et al. Experimental Analysis of Large-scale Learnable Vector Storage Compression. PVLDB 17(4), 2024, doi
10.14778/3636218.3636234, arXiv 2311.15578. Figures are those of its Table 5: AUC of DLRM on Avazu and on Criteo, one
seed, all ids without a threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from experiments.report.leaderboard import Entry

Chosen = Callable[[Entry], bool]

FULL = "full tables"


@dataclass(frozen=True)
class Side:
    """One side of an order: the best entry of these methods at one of these budgets, the first that has any.

    Attributes:
        name: its name; `FULL` for the full tables, which have no budget.
        methods: the methods, as entries name them; empty for all.
        budgets: the budgets of served bytes.
        chosen: a further condition on entries.
    """

    name: str
    methods: tuple[str, ...] = ()
    budgets: tuple[float, ...] = (0.1, 0.25)
    chosen: Chosen = lambda entry: True


@dataclass(frozen=True)
class Claim:
    """A conclusion: `better` is at least `by` above `worse`.

    Attributes:
        title: the conclusion.
        published: the figures from which the paper concludes it.
        by: the least difference; negative for a loss that is admitted.
        why: an explanation of what is found here.
    """

    title: str
    published: str
    better: Side
    worse: Side
    by: float
    why: str


def _pruned(entry: Entry) -> bool:
    """Return whether an entry is pruned by magnitude, before or while the tables train, or merged."""
    return any(word in entry.label for word in ("pruned", "merged"))


def _learned(entry: Entry) -> bool:
    """Return whether an entry has learned widths, or rows by a learned norm."""
    return any(word in entry.label for word in ("widths", "rows by a learned norm"))


_FULL = Side(FULL)
_QUOTIENT = ("QuotientRemainder",)

CLAIMS = (
    Claim(
        "Eight bits a value lose next to nothing",
        "full .7543 / .8061; INT8 .7524 / .8045; ALPT with 8 bits .7511 / .8057",
        Side("8 bits", ("LowBit",), (0.25, 0.5), lambda entry: _bits(entry) == 8),
        _FULL,
        -0.004,
        "The step is learned with the rows; the rounding error is far below what a table knows of an id.",
    ),
    Claim(
        "Something at a tenth of the bytes is at least as good as the full tables",
        "full .7543 / .8061; deep hash .7581 on Avazu, merged rows .8071 on Criteo",
        Side("the best at 10 %", (), (0.1,)),
        _FULL,
        0.0,
        "Rows of ids that are seen a few times learn noise, which shared, pruned or rounded rows cannot. Where ids are "
        "seen often, as in MovieLens, full tables have little noise to lose.",
    ),
    Claim(
        "Pruned tables are as good as the full ones",
        "full .7543 / .8061; DeepLight at 10 % .7554 / .8050, at 1 % .7579 / .8067",
        Side("pruned", ("Pruned", "LearnedMask"), (0.1, 0.25), _pruned),
        _FULL,
        -0.0015,
        "The values that are left out are those of rare ids, of which most ids there are. To prune while the tables "
        "train, as DeepLight does, keeps more than to prune trained ones at once.",
    ),
    Claim(
        "Gates by frequency lose at most .0025 at a tenth of the bytes",
        "full .7543 / .8061; AutoSrh at 10 % .7520 / .8071",
        Side("gates", ("LearnedMask",), (0.1, 0.25), lambda entry: "gates" in entry.label),
        _FULL,
        -0.0025,
        "A gate for each column of a group of ids of like frequency leaves rare ids few columns. Where ids are seen "
        "often, all groups need theirs.",
    ),
    Claim(
        "Learned widths and rows lose at most .006 at half of the bytes",
        "full .7543 / .8061; AutoDim at 46 % .7504 / .8036, OptEmbed at 50 and 46 % .7484 / .8019",
        Side("learned widths or rows", ("LearnedWidths", "LearnedMask"), (0.5,), _learned),
        _FULL,
        -0.006,
        "One width for all ids of a table, or whole rows, are a coarser choice than single values or bits.",
    ),
    Claim(
        "Merged rows of trained tables are above the full ones",
        "full .7543 / .8061; Dedup at 10 % .7555 / .8071",
        Side("merged rows", ("Dedup",), (0.1, 0.25)),
        _FULL,
        0.0,
        "Most rows of Avazu and Criteo belong to ids that are seen once: they stay near their start, and are nearly "
        "equal. Elsewhere rows are equal only as far as ids are alike.",
    ),
    Claim(
        "Deep hash holds at a tenth of the bytes",
        "full .7543 / .8061; at 10 % .7581 / .8053",
        Side("deep hash", ("DeepHash",), (0.1, 0.25)),
        _FULL,
        -0.004,
        "A network of hashes shares all it knows between all ids, which helps rare ids and costs frequent ones their "
        "own values. A tenth of few bytes is a small network for each table: some twenty units on MovieLens-1M.",
    ),
    Claim(
        "Tensor trains get no better with more bytes",
        "at 50 / 10 / 1 %: .7497 .7537 .7542 on Avazu, .7876 .7993 .8025 on Criteo",
        Side("tensor train at 3 or 1 %", ("TensorTrain",), (0.01, 0.03)),
        Side("tensor train at 50 %", ("TensorTrain",), (0.5,)),
        0.0,
        "A fresh train there has a variance that grows with its rank; ours starts with that of the table replaced, so "
        "that bytes are not a handicap.",
    ),
    Claim(
        "ROBE is far below other shared rows",
        "at 10 % .6522 / .7479, quotient and remainder .7480 / .8053",
        Side("hash, or quotient and remainder", ("HashingTrick", *_QUOTIENT), (0.1, 0.25)),
        Side("robe", ("ROBE",), (0.1, 0.25)),
        0.03,
        "That implementation starts the array as a matrix of one column, with entries far too small; ours starts with "
        "the moments of the tables replaced.",
    ),
    Claim(
        "Sharing rows by quotient and remainder loses at most .007 at a tenth of the bytes",
        "full .7543 / .8061; at 10 % .7480 / .8053",
        Side("quotient, remainder", _QUOTIENT, (0.1,)),
        _FULL,
        -0.007,
        "The product of two rows is unique to an id but not free: frequent ids pay for it.",
    ),
    Claim(
        "At very few bytes sharing all rows beats own rows for frequent ids",
        "at 1 %: quotient and remainder .7472 / .8016, own rows for frequent ids .7407 / .7990",
        Side("the better of quotient, remainder and chunks", (*_QUOTIENT, "UnifiedEmbedding"), (0.01, 0.03)),
        Side("frequent ids own rows", ("FrequencyHash",), (0.01, 0.03)),
        0.0,
        "Own rows for a few ids leave one crowded row for many others; two or more hashed reads tell these apart.",
    ),
    Claim(
        "Product codes learned from the start are far below the full tables",
        "full .7543 / .8061; MGQE at 11 to 16 % .7332 / .7891",
        _FULL,
        Side("codes", ("ProductCodes",), (0.25, 0.1), lambda entry: "after" not in entry.label),
        0.015,
        "There distances are normalised over a batch and books are those of a field; here books may be those of all "
        "fields and the row behind a code is kept while it trains.",
    ),
    Claim(
        "Mixed dimensions lose less than .004 at a tenth of the bytes",
        "full .7543 / .8061; at 8 to 9 % .7504 / .8033",
        Side("mixed dimensions", ("MixedDimensions",), (0.1, 0.25)),
        _FULL,
        -0.004,
        "Narrow rows for rare ids keep what little they know.",
    ),
    Claim(
        "Methods for training in few bytes are not behind those that train full tables first",
        "at 10 %: deep hash .7581 / .8053 against pruned .7554 / .8050 and merged .7555 / .8071",
        Side("the best shared rows at 10 %", ("UnifiedEmbedding", "MultiHash", "DeepHash", "TensorTrain", "ROBE",
                                             "HashEmbedding", "FrequencyHash", *_QUOTIENT), (0.1,)),
        Side("the better of pruned and merged rows at 10 %", ("Pruned", "LearnedMask", "Dedup"), (0.1,), _pruned),
        -0.003,
        "Where ids are rare, sharing trains as well as full tables do; elsewhere full tables know more before they are "
        "compressed.",
    ),
)  # fmt: skip
"""The conclusions on quality, in the order of the page."""

LOOK_UPS = {
    "HashingTrick": None, "QuotientRemainder": (3.6, 4.5), "FrequencyHash": (4.4, 5.8), "Dedup": (0.9, 1.3),
    "LowBit": (0.9, 1.0), "ROBE": (0.9, 0.9), "MixedDimensions": (3.0, 3.9), "ProductCodes": (4.3, 4.3),
    "Pruned": (0.9, 1.4), "DeepHash": (6.0, 13.0), "TensorTrain": (6.0, 246.0),
}  # fmt: skip
"""The published milliseconds of a look-up on Criteo, least and most over the budgets; full tables take .88."""

FULL_LOOK_UP = 0.88


def _bits(entry: Entry) -> int:
    return round(32 * entry.served_nbytes / entry.full_nbytes)
