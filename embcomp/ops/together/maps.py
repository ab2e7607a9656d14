"""Rows from packed maps of many parts (`embcomp.ops.packing`), alone or beside hashed rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from embcomp.ops.hashing import hash_rows_each
from embcomp.ops.packing import unpack_at
from embcomp.ops.together.batch import Batch, Column
from embcomp.ops.together.launch import addresses, launch


def clustered(
    batch: Batch,
    words: Sequence[Tensor],
    bits: Column,
    entries: Column,
    own_rows: Column,
    keys: Sequence[Tensor],
    first: Column,
    rows: Column,
    start: Column,
) -> Tensor:
    """Compute the row of each id's cluster; ids without one are hashed.

    Args:
        batch: the ids.
        words: the packed map of each part, int32 [words].
        bits: the bits of an entry of each map.
        entries: the number of ids in each map; 0 for a part that hashes every id.
        own_rows: the bound of valid entries; an entry at or above it means "none".
        keys: the tensor of keys of each part, int64 [any], from `hash_key`.
        first: the position of each part's key in its tensor.
        rows: the number of hashed rows of each part.
        start: the first hashed row of each part.

    Returns:
        The rows, int64 [N, 1].
    """
    if not batch.in_one_launch:
        return clustered_reference(batch, words, bits, entries, own_rows, keys, first, rows, start)
    out = batch.values.new_empty(sum(batch.sizes), 1, dtype=torch.int64)
    columns = [addresses(batch, keys, first), rows, addresses(batch, words), bits, entries, own_rows, start]
    launch("clustered_kernel", batch, columns, out)
    return out


def clustered_reference(
    batch: Batch,
    words: Sequence[Tensor],
    bits: Column,
    entries: Column,
    own_rows: Column,
    keys: Sequence[Tensor],
    first: Column,
    rows: Column,
    start: Column,
) -> Tensor:
    """Compute `clustered` in plain torch."""
    (all_words, word_at), (all_keys, key_at) = batch.joined(words), batch.joined(keys)
    at, width, mask, known_ids, valid, key, number, shift = batch.each(
        [32 * word for word in word_at],
        bits,
        [(1 << each) - 1 for each in bits],
        entries,
        own_rows,
        [position + own for position, own in zip(key_at, first, strict=True)],
        rows,
        start,
    )
    known = batch.ids < known_ids
    row = unpack_at(all_words, torch.where(known, at + batch.ids * width, at), mask)
    hashed = hash_rows_each(batch.ids, all_keys[key], number) + shift
    return torch.where(known & (row < valid), row, hashed)


def two_rows(
    batch: Batch,
    words: Sequence[Tensor],
    bits: Column,
    chunks: Column,
    chunk: Column,
    keys: Sequence[Tensor],
    rows: Column,
) -> Tensor:
    """Compute the row of each id's cluster in a chunk, and a hashed row beside it (`ClusteredHash`).

    Args:
        batch: the ids.
        words: the packed map of each part, int32 [words], with `chunks` entries for each id.
        bits: the bits of an entry of each map.
        chunks: the number of chunks of each part's table.
        chunk: the chunk that each part reads, which is also the position of its key.
        keys: the tensor of keys of each part, int64 [chunks], from `hash_key`.
        rows: the number of rows of each of a chunk's two tables; those of chunk c start at row 2 * c * rows.

    Returns:
        The rows, int64 [N, 2].
    """
    if not batch.in_one_launch:
        return two_rows_reference(batch, words, bits, chunks, chunk, keys, rows)
    out = batch.values.new_empty(sum(batch.sizes), 2, dtype=torch.int64)
    columns = [addresses(batch, keys, chunk), rows, addresses(batch, words), bits, chunks, chunk]
    launch("two_rows_kernel", batch, columns, out)
    return out


def two_rows_reference(
    batch: Batch,
    words: Sequence[Tensor],
    bits: Column,
    chunks: Column,
    chunk: Column,
    keys: Sequence[Tensor],
    rows: Column,
) -> Tensor:
    """Compute `two_rows` in plain torch."""
    (all_words, word_at), (all_keys, key_at) = batch.joined(words), batch.joined(keys)
    at, step, mask, key, size, start = batch.each(
        [32 * word + own * width for word, own, width in zip(word_at, chunk, bits, strict=True)],
        [number * width for number, width in zip(chunks, bits, strict=True)],
        [(1 << width) - 1 for width in bits],
        [position + own for position, own in zip(key_at, chunk, strict=True)],
        rows,
        [2 * own * number for own, number in zip(chunk, rows, strict=True)],
    )
    first = unpack_at(all_words, at + batch.ids * step, mask)
    second = hash_rows_each(batch.ids, all_keys[key], size) + size
    return torch.cat([first, second], 1) + start


def kept_rows(batch: Batch, words: Sequence[Tensor], bits: Column, block: Column) -> Tensor:
    """Compute the row of each id in the block that replaces its own (`Dedup`), int64 [N, 1].

    Args:
        batch: the ids.
        words: the packed map of each part from blocks to kept blocks, int32 [words].
        bits: the bits of an entry of each map.
        block: the number of ids of a block.
    """
    if not batch.in_one_launch:
        return kept_rows_reference(batch, words, bits, block)
    out = batch.values.new_empty(sum(batch.sizes), 1, dtype=torch.int64)
    launch("kept_rows_kernel", batch, [addresses(batch, words), bits, block], out)
    return out


def kept_rows_reference(batch: Batch, words: Sequence[Tensor], bits: Column, block: Column) -> Tensor:
    """Compute `kept_rows` in plain torch."""
    all_words, word_at = batch.joined(words)
    masks = [(1 << each) - 1 for each in bits]
    at, width, mask, size = batch.each([32 * word for word in word_at], bits, masks, block)
    own = batch.ids // size
    return unpack_at(all_words, at + own * width, mask) * size + batch.ids - own * size
