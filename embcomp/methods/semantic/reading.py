"""The rows that the pieces of an item read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from embcomp import configs
from embcomp.ops.hashing import hash_rows
from embcomp.ops.together.pieces import Piece
from embcomp.semantic_ids.pieces.base import EXACT, Span, numbers


class Range(NamedTuple):
    """The rows [start, start + rows) of one piece, which reads the row of its number, or of its hash under a key."""

    start: int
    rows: int
    key: int | None = None


def ranges_of(spans: Sequence[Span], size: int, rows: int, one_namespace: bool) -> list[Range]:
    """Assign the rows that the pieces of each span read.

    Each piece owns a row if all fit. Otherwise pieces of coarse spans own rows while these take at most half of the
    table, and finer pieces share the remaining rows by hashing.
    """
    if one_namespace:
        return [Range(0, rows, None if size <= rows else 0)] * len(spans)
    many = [size ** len(span) for span in spans]
    limit = rows if sum(many) <= rows else rows // 2
    ranges, start = list[Range](), 0
    for each in many:
        if start + each > limit:
            break
        ranges.append(Range(start, each))
        start += each
    return ranges + [Range(start, rows - start, key) for key in range(len(ranges), len(spans))]


@configs.kind
@dataclass(frozen=True)
class Reading:
    """The settings by which an encoder reads rows for the codes of an item.

    Attributes:
        spans: the columns of each piece.
        size: the number of values that a column can have.
        ranges: the rows of each piece.
        rows: the number of rows of the pieces' table.
        concat: whether each piece is a chunk of its own; if False their rows are added up.
        weighted: whether some ids leave pieces out, so that each row needs a weight.
        dropout: the share of ids that are read as if they were new while training.
        seed: the seed of the hashes.
        own_ids: whether ids without pieces read other rows in each table.
        id_rows: the number of rows of the table of ids; None if there is none.
    """

    spans: tuple[Span, ...]
    size: int
    ranges: tuple[Range, ...]
    rows: int
    concat: bool
    weighted: bool
    dropout: float
    seed: int
    own_ids: bool
    id_rows: int | None

    def plan(self) -> tuple[Piece, ...]:
        """Return the pieces as `embcomp.ops.together` takes them."""
        plan = []
        for span, rows in zip(self.spans, self.ranges, strict=True):
            room, digits = self.size, [True]
            for _ in span[1:]:  # as `numbers` counts
                digits.append(room * self.size <= EXACT)
                room = room * self.size if digits[-1] else EXACT
            plan.append(Piece(span, tuple(digits), *rows))
        return tuple(plan)

    def rows_of(self, columns: Tensor, keys: Tensor) -> Tensor:
        """Return the row of each piece, int64 [N, P], from columns of codes, int64 [N, C], and a key for each piece."""
        pairs = zip(numbers(columns, self.spans, self.size), self.ranges, strict=True)
        return torch.stack([_rows(number, keys, *rows) for number, rows in pairs], 1)


def _rows(number: Tensor, keys: Tensor, start: int, rows: int, key: int | None) -> Tensor:
    return start + (number if key is None else hash_rows(number, keys[key : key + 1], rows).squeeze(1))
