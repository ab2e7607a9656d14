"""The facts that `SemanticIds` knows of a table's items: content, support of their pieces, and which are new."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from embcomp.methods.base import Table
from embcomp.semantic_ids.neighbours import Neighbours
from embcomp.semantic_ids.pieces.base import Pieces, Span
from embcomp.semantic_ids.pieces.vocabulary import Vocabulary, checked_codes


class Items(NamedTuple):
    """The facts about the N items of a table that a plan needs.

    Attributes:
        columns: the columns of codes that pieces are made of, int64 [N, C].
        supported: the pieces that an item reads, bool [N, P].
        as_new: the pieces that it would read if it were new, bool [N, P]; None if no item is read as new.
        spans: the columns of each piece.
        size: the number of values that a column can have.
        counts: the number of times each item occurs in training, [N]; None if that is not given.
        has_content: whether an item has codes, bool [N].
        trained: whether an item counts as a training item, bool [N].
    """

    columns: Tensor
    supported: Tensor
    as_new: Tensor | None
    spans: Sequence[Span]
    size: int
    counts: Tensor | None
    has_content: Tensor
    trained: Tensor


def items_of(
    table: Table,
    codes: Any,
    pieces: Pieces,
    *,
    codebook_size: int | None,
    counts: Any,
    vocabulary: Vocabulary | None,
    min_support: int,
    read_as_new: bool,
) -> Items:
    """Find which pieces the items of a table read; the arguments are the settings of `SemanticIds`.

    Raises:
        ValueError: codes, counts or vocabulary do not fit the table or each other; the text names the table.
    """
    codes = checked_codes(codes, codebook_size, f"table {table.name!r}: codes")
    if table.num_embeddings is not None and codes.shape[0] != table.num_embeddings:
        raise ValueError(
            f"table {table.name!r}: codes must have {table.num_embeddings} rows, one for each id, got {codes.shape[0]}"
        )
    has_content = codes[:, 0] >= 0
    if not bool(has_content.any()):
        raise ValueError(f"table {table.name!r}: no item has codes")
    codebook_size = codebook_size or 1 << int(codes.max()).bit_length()
    if counts is not None:
        counts = torch.as_tensor(counts, device="cpu")
        if counts.shape != codes.shape[:1] or not bool((counts >= 0).all()):
            raise ValueError(
                f"table {table.name!r}: counts must be non-negative, of shape [{codes.shape[0]}], got "
                f"{list(counts.shape)}"
            )
    if vocabulary is None:
        vocabulary = Vocabulary.of(codes, pieces, codebook_size=codebook_size, counts=counts)
    elif (vocabulary.pieces, vocabulary.levels, vocabulary.codebook_size) != (
        pieces, codes.shape[1], codebook_size,
    ):  # fmt: skip
        raise ValueError(
            f"table {table.name!r}: the vocabulary is of {vocabulary.pieces} over {vocabulary.levels} x "
            f"{vocabulary.codebook_size} codes, but these are {pieces} over {codes.shape[1]} x {codebook_size}"
        )
    columns, spans = pieces.columns(codes, codebook_size), pieces.spans(codes.shape[1])
    size = pieces.size(codebook_size)
    present = torch.stack([(columns[:, list(span)] >= 0).all(1) for span in spans], 1)
    support = vocabulary.support_of(codes).masked_fill(~present, 0)
    trained = ((support > 0) | ~present).all(1) if counts is None else counts > 0
    backed_off = present & (support >= _least(support, min_support))
    supported = torch.where(trained.unsqueeze(1), present & (support >= min(1, min_support)), backed_off)
    others = support - (trained.unsqueeze(1) & (support > 0)).long()  # that carry the piece too
    as_new = supported & (others >= _least(others, min_support)) if read_as_new else None
    return Items(columns, supported, as_new, spans, size, counts, has_content, trained)


def _least(support: Tensor, min_support: int) -> Tensor:
    """The support, int64 [N, 1], that an untrained item requires of a piece, from that of its pieces, [N, P].

    If no piece has `min_support`, the best one is read: unlike a hashed row, its row is trained on this content.
    """
    return support.amax(1, keepdim=True).clamp(min=min(1, min_support), max=min_support)


def neighbours_of_new(neighbours: Neighbours, items: Items, table: Table) -> Neighbours:
    """Return the neighbours of the items that do not occur in training.

    Raises:
        ValueError: the neighbours are of other items.
    """
    count = items.columns.shape[0]
    largest = max((int(ids.max()) for ids in (neighbours.ids, neighbours.nearest) if ids.numel()), default=-1)
    if largest >= count or (neighbours.ids < 0).any() or (neighbours.nearest < -1).any():
        raise ValueError(
            f"table {table.name!r}: neighbours must be of its {count} items, but name item {largest}; make them "
            "from counts with an entry for each item"
        )
    new = ~items.trained[neighbours.ids]
    return Neighbours(neighbours.ids[new], neighbours.nearest[new], neighbours.weights[new])


def owners_of(counts: Tensor, most: int, table: Table) -> Tensor:
    """Return the ids that own an id row, at least one, ascending; among equal counts the lower ids."""
    number = max(1, min(most, int((counts > 0).sum())))
    order = torch.argsort(counts, descending=True, stable=True)[:number].sort().values
    return order if table.num_embeddings is None else order.to(torch.int32)


@dataclass(frozen=True)
class SupportReport:
    """The counts of `SemanticIds.report`.

    Attributes:
        items: the number of ids with an entry in the codes.
        without_content: the number of items with codes of -1.
        unseen: the number of items with content that do not occur in training; they read supported pieces only.
        fallback: the number of items without any supported piece, `without_content` included; they read hashed rows,
            unless they have neighbours.
        neighbours: the number of items that do not occur in training and read the rows of neighbours.
        supported: the share of the items with content whose piece is supported, for each piece, coarse ones first.
    """

    items: int
    without_content: int
    unseen: int
    fallback: int
    neighbours: int
    supported: tuple[float, ...]

    @classmethod
    def of(cls, items: Items, neighbours: int) -> Self:
        """Count the items of a table, of which so many new ones have neighbours."""
        return cls(
            items=items.columns.shape[0],
            without_content=int((~items.has_content).sum()),
            unseen=int((items.has_content & ~items.trained).sum()),
            fallback=int((~items.supported.any(1)).sum()),
            neighbours=neighbours,
            supported=tuple(items.supported[items.has_content].double().mean(0).tolist()),
        )
