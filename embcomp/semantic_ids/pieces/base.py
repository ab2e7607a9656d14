"""Pieces: the parts of a code tuple that read a row each.

Every kind defines the columns of an item that a piece is made of (its span). The number of a piece follows from the
values in these columns: in mixed radix if that fits in 62 bits, else by hashing the tuple. So nothing overflows, at any
depth.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from embcomp import configs
from embcomp.checks import check_whole
from embcomp.ops.hashing import hash_rows
from embcomp.ops.together.pieces import FOLD_KEYS, HALF

PIECES: dict[str, type["Pieces"]] = {}
configs.register("pieces", PIECES)
EXACT = 2**62  # numbers of pieces stay below

Span = tuple[int, ...]


@dataclass(frozen=True)
class Pieces(abc.ABC):
    """The rule from codes to pieces, a frozen configuration.

    Attributes:
        one_namespace: True if equal numbers in two columns are the same piece.
    """

    expected: ClassVar[str] = "Unigram(), PrefixNgram(n) or the like"
    one_namespace: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        PIECES[cls.__name__] = cls

    @abc.abstractmethod
    def spans(self, levels: int) -> tuple[Span, ...]:
        """Return the columns of each piece, coarse pieces first.

        Raises:
            ValueError: the codes have too few levels.
        """

    def columns(self, codes: Tensor, codebook_size: int) -> Tensor:
        """Return the columns that pieces are made of, int64 [N, C], -1 where an item has none; by default the codes."""
        return codes

    def size(self, codebook_size: int) -> int:
        """Return how many values a column can have."""
        return codebook_size


@dataclass(frozen=True)
class Unigram(Pieces):
    """A rule with one piece for each level's code (Singh et al. 2023, arXiv 2306.08121, section 3.2).

    Example:
        >>> import embcomp
        >>> embcomp.Unigram().spans(levels=3)
        ((0,), (1,), (2,))
    """

    def spans(self, levels: int) -> tuple[Span, ...]:
        return tuple((level,) for level in range(levels))


@dataclass(frozen=True)
class Ngram(Pieces):
    """A rule with one piece for each n consecutive codes (Singh et al. 2023, arXiv 2306.08121, section 3.2).

    Args:
        n: the number of codes of a piece.
        overlapping: True for a piece at every start, False for adjacent groups, of which the last may be shorter.

    Example:
        >>> import embcomp
        >>> embcomp.Ngram(2).spans(levels=4), embcomp.Ngram(2, overlapping=True).spans(levels=4)
        (((0, 1), (2, 3)), ((0, 1), (1, 2), (2, 3)))
    """

    n: int
    overlapping: bool = False

    def __post_init__(self) -> None:
        check_whole(type(self).__name__, "n", self.n)

    def spans(self, levels: int) -> tuple[Span, ...]:
        _check_levels(self, self.n, levels)
        starts = range(levels - self.n + 1) if self.overlapping else range(0, levels, self.n)
        return tuple(tuple(range(start, min(start + self.n, levels))) for start in starts)


@dataclass(frozen=True)
class PrefixNgram(Pieces):
    """A rule with one piece for each prefix of 1 .. n codes (Zheng et al. 2025, arXiv 2504.02137, section 4.2).

    Prefixes of different depth are different pieces.

    Args:
        n: the depth of the deepest prefix.
        unigrams: True to add a piece for every code after the first. Many items have it, so a new item can read it
            beside its first code, even if few or no items have its longer prefixes. An addition of embcomp.

    Example:
        >>> import embcomp
        >>> embcomp.PrefixNgram(3).spans(levels=4)
        ((0,), (0, 1), (0, 1, 2))
        >>> embcomp.PrefixNgram(3, unigrams=True).spans(levels=4)
        ((0,), (1,), (2,), (3,), (0, 1), (0, 1, 2))
    """

    n: int
    unigrams: bool = False

    def __post_init__(self) -> None:
        check_whole(type(self).__name__, "n", self.n)

    def spans(self, levels: int) -> tuple[Span, ...]:
        _check_levels(self, self.n, levels)
        prefixes = tuple(tuple(range(depth)) for depth in range(1, self.n + 1))
        alone = tuple((level,) for level in range(1, levels)) if self.unigrams else ()
        return prefixes[:1] + alone + prefixes[1:]

    def __repr__(self) -> str:  # as it was before there were unigrams: states saved then still load
        return f"PrefixNgram(n={self.n}, unigrams=True)" if self.unigrams else f"PrefixNgram(n={self.n})"


def _check_levels(pieces: Pieces, n: int, levels: int) -> None:
    if n > levels:
        raise ValueError(f"{pieces} needs codes of at least {n} levels, these have {levels}")


def numbers(columns: Tensor, spans: Sequence[Span], size: int) -> list[Tensor]:
    """Return the number of each piece, non-negative int64 [N] per span; equal numbers of a span are the same piece.

    Args:
        columns: the columns, int64 [N, C], each in [0, size).
        spans: the columns of each piece.
        size: the number of values of a column.
    """
    known: dict[Span, tuple[Tensor, int]] = {}
    for span in sorted(spans, key=len):
        number, room = known.get(span[:-1], (None, 1))
        for column in span[-1:] if number is not None else span:
            value = columns[:, column]
            if number is None:
                number, room = value, size
            elif room * size <= EXACT:
                number, room = number * size + value, room * size
            else:  # too many tuples to count: 62 bits of hash, then the last code
                # Keys filled in, not copied from the host, which would synchronise a GPU.
                high, low = (hash_rows(number, columns.new_full((1,), key), HALF).squeeze(1) for key in FOLD_KEYS)
                number, room = (high * 2**31 + low) ^ value, EXACT
        assert number is not None
        known[span] = (number, room)
    return [known[span][0] for span in spans]
