"""Rows of the code pieces of many parts (`SemanticIds`)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from embcomp.ops.hashing import hash_key, hash_rows_each
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
        plan: the pieces, first those that read the row of their number.
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
    """Compute `pieces` in plain torch: all hashes, those of ids without any piece too, are computed in one pass."""
    (all_codes, item_at), (all_keys, key_at) = batch.joined(codes), batch.joined(keys)
    last_item = [len(own) - 1 for own in codes]
    start, key, last = batch.each(item_at, key_at, last_item)
    beyond = any(most > own for most, own in zip(batch.last, last_item, strict=True))
    item = start + (torch.minimum(batch.ids, last) if beyond else batch.ids)
    numbers = _numbers(plan, all_codes[item].long().unbind(-1), size, batch)
    count, owned = len(plan), [piece.key for piece in plan].count(None)
    asked, key_of, range_of = numbers[owned:], [p.key or 0 for p in plan[owned:]], [p.rows for p in plan[owned:]]
    if supported is not None:
        asked = [*asked, *[batch.ids] * count]
        key_of, range_of = [*key_of, *range(count, 2 * count)], [*range_of, *[rows] * count]
    out = without_any = None
    if asked:
        place, ranges = batch.constants((tuple(key_of), tuple(range_of)), batch.ids).squeeze(-1).unbind(0)
        found = hash_rows_each(torch.cat(asked, 1), all_keys[key + place], ranges)
        out, without_any = (found, None) if supported is None else found.split([count - owned, count], 1)
    if owned or out is None:
        out = torch.cat(numbers[:owned] if out is None else [*numbers[:owned], out], 1)
    if any(piece.start for piece in plan):
        out = out + batch.constants((tuple(piece.start for piece in plan),), batch.ids).view(-1)
    if supported is None or without_any is None:
        return out, None
    bits = batch.joined(supported)[0][item]
    bits = torch.where(batch.ids <= last, bits, 0) if beyond else bits
    without = bits == 0
    read = torch.bitwise_right_shift(bits, torch.arange(count, device=bits.device)) & 1
    return torch.where(without, without_any, out), torch.where(without, 1, read).float()


def _numbers(plan: Sequence[Piece], columns: Sequence[Tensor], size: int, batch: Batch) -> list[Tensor]:
    """The numbers of the pieces, int64 [N, 1] each, from columns of codes; what several begin with is made once."""
    known: dict[tuple[int, ...], Tensor] = {}
    for piece in plan:
        for end, (column, digit) in enumerate(zip(piece.columns, piece.digits, strict=True), 1):
            beginning, value = piece.columns[:end], columns[column]
            if beginning in known:
                continue
            if end == 1:
                known[beginning] = value
            elif digit:
                known[beginning] = known[beginning[:-1]] * size + value
            else:
                keys = batch.constants((tuple(FOLD_KEYS),), batch.ids).view(-1)
                high, low = hash_rows_each(known[beginning[:-1]], keys, HALF).split(1, 1)
                known[beginning] = (high * 2**31 + low) ^ value
    return [known[piece.columns] for piece in plan]
