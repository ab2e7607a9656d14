"""Rows of the code pieces of many parts (`SemanticIds`)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from embcomp.ops.hashing import hash_key, hash_rows, hash_rows_each
from embcomp.ops.together.batch import Batch
from embcomp.ops.together.launch import addresses, launch

HALF = 2**31 - 1
FOLD_KEYS = [hash_key(0, "embcomp.semantic_ids.pieces", chunk) for chunk in range(2)]
"""The range and the keys by which numbers of pieces are folded that would exceed 62 bits."""


class Piece(NamedTuple):
    """The number of a piece, and the rows that it reads.

    Attributes:
        columns: the columns of codes from which the number is made, one after the other.
        digits: whether each column is the next digit of the number; if not, the number so far is folded.
        start: the first row of the piece.
        rows: the number of its rows.
        key: the position of its key, if the number is hashed into the rows; None if the number is the row.
    """

    columns: tuple[int, ...]
    digits: tuple[bool, ...]
    start: int
    rows: int
    key: int | None


def pieces(
    batch: Batch,
    codes: Sequence[Tensor],
    supported: Sequence[Tensor] | None,
    keys: Sequence[Tensor],
    plan: Sequence[Piece],
    size: int,
    rows: int,
) -> tuple[Tensor, Tensor | None]:
    """Compute the row of each piece of an id.

    Args:
        batch: the ids; those beyond a part's codes read the last item's, or with `supported` no piece.
        codes: the columns of codes of each part, integers [items, columns], all of one dtype and width.
        supported: a bit for each piece that an item reads, integers [items]; None if all are read.
        keys: the keys of each part, int64 [2 * pieces or more]: those of the pieces, then those of ids without any.
        plan: the pieces.
        size: the number of values of a column.
        rows: the number of rows into which ids without any piece are hashed.

    Returns:
        The rows, int64 [N, pieces]; and their weights, 1 or 0, float32 [N, pieces], None if all are read.
    """
    if not batch.in_one_launch:
        return pieces_reference(batch, codes, supported, keys, plan, size, rows)
    out = batch.values.new_empty(sum(batch.sizes), len(plan), dtype=torch.int64)
    weights = None if supported is None else torch.empty_like(out, dtype=torch.float32)
    steps = max(len(piece.columns) for piece in plan)
    numbers = [*FOLD_KEYS, HALF]
    for piece in plan:
        numbers += [piece.start, piece.rows, -1 if piece.key is None else piece.key]
        for column, digit in zip(piece.columns, piece.digits, strict=True):
            numbers += [column, 1 if digit else 2]
        numbers += [0, 0] * (steps - len(piece.columns))
    columns = [addresses(batch, codes), [len(own) for own in codes], addresses(batch, keys)]
    if supported is not None:
        columns.append(addresses(batch, supported))
    launch(
        "pieces_kernel", batch, columns, out, out if weights is None else weights,
        plan=batch.constants((tuple(numbers),), batch.values), size=size, all_rows=rows,
        PIECES=len(plan), STEPS=steps, COLUMNS=codes[0].shape[1], CODE_BYTES=codes[0].itemsize,
        SUPPORT_BYTES=0 if supported is None else supported[0].itemsize,
    )  # fmt: skip
    return out, weights


def pieces_reference(
    batch: Batch,
    codes: Sequence[Tensor],
    supported: Sequence[Tensor] | None,
    keys: Sequence[Tensor],
    plan: Sequence[Piece],
    size: int,
    rows: int,
) -> tuple[Tensor, Tensor | None]:
    """Compute `pieces` in plain torch."""
    (all_codes, item_at), (all_keys, key_at) = batch.joined(codes), batch.joined(keys)
    start, last, key = batch.each(item_at, [len(own) - 1 for own in codes], key_at)
    item = (start + torch.minimum(batch.ids, last)).squeeze(1)
    columns = all_codes.index_select(0, item).long()
    known: dict[tuple[int, ...], Tensor] = {}
    each = []
    for piece in plan:
        number = _number(piece, columns, size, known)
        if piece.key is not None:
            number = hash_rows_each(number, all_keys[key.squeeze(1) + piece.key], piece.rows)
        each.append(number + piece.start if piece.start else number)
    out = torch.stack(each, 1)
    if supported is None:
        return out, None
    place = torch.arange(len(plan), device=out.device)
    bits = batch.joined(supported)[0].index_select(0, item).long().unsqueeze(1)
    bits = torch.where(batch.ids <= last, bits, 0)
    without = bits == 0
    out = torch.where(without, hash_rows_each(batch.ids, all_keys[key + len(plan) + place], rows), out)
    return out, torch.where(without, 1, torch.bitwise_right_shift(bits, place) & 1).float()


def _number(piece: Piece, columns: Tensor, size: int, known: dict[tuple[int, ...], Tensor]) -> Tensor:
    """The number of a piece, int64 [N]; those of its beginnings are kept in `known`."""
    number: Tensor | None = None
    for end, (column, digit) in enumerate(zip(piece.columns, piece.digits, strict=True), 1):
        beginning = piece.columns[:end]
        if beginning not in known:
            value = columns[:, column]
            if number is None:
                known[beginning] = value
            elif digit:
                known[beginning] = number * size + value
            else:  # keys filled in, not copied from the host, which would synchronise a GPU
                high, low = (hash_rows(number, columns.new_full((1,), key), HALF).squeeze(1) for key in FOLD_KEYS)
                known[beginning] = (high * 2**31 + low) ^ value
        number = known[beginning]
    assert number is not None
    return number
