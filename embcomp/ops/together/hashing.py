"""Hashed rows of many parts: plain and balanced hashes, and lists of ids that own rows before them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from embcomp.ops.balanced import Domain, balanced_rows_each
from embcomp.ops.hashing import hash_rows_each
from embcomp.ops.together.batch import Batch, Column
from embcomp.ops.together.launch import addresses, launch


def hashed(batch: Batch, keys: Sequence[Tensor], first: Column, rows: Column, lookups: int) -> Tensor:
    """Compute hashed rows.

    Args:
        batch: the ids.
        keys: the tensor of keys of each part, int64 [any], from `hash_key`.
        first: the position of each part's first key in its tensor.
        rows: the number of rows of each part; 0 for one that reads the row of the id itself.
        lookups: the number of rows that an id reads, each under its own key.

    Returns:
        The rows, int64 [N, lookups].
    """
    if not batch.in_one_launch:
        return hashed_reference(batch, keys, first, rows, lookups)
    out = batch.values.new_empty(sum(batch.sizes), lookups, dtype=torch.int64)
    launch("hashed_kernel", batch, [addresses(batch, keys, first), rows], out, LOOKUPS=lookups)
    return out


def hashed_reference(batch: Batch, keys: Sequence[Tensor], first: Column, rows: Column, lookups: int) -> Tensor:
    """Compute `hashed` in plain torch."""
    key, number = _keys_of_ids(batch, keys, first, rows, lookups=lookups)
    if 0 not in rows:
        return hash_rows_each(batch.ids, key, number)
    return torch.where(number == 0, batch.ids, hash_rows_each(batch.ids, key, number))


def balanced(batch: Batch, keys: Sequence[Tensor], first: Column, domains: Sequence[Domain], lookups: int) -> Tensor:
    """Compute rows of balanced hashes, int64 [N, lookups]; as `hashed`, with keys [any, 8] from `balanced_key`."""
    if not batch.in_one_launch:
        return balanced_reference(batch, keys, first, domains, lookups)
    out = batch.values.new_empty(sum(batch.sizes), lookups, dtype=torch.int64)
    numbers = [(domain.low_bits, domain.high, domain.scale, domain.shift) for domain in domains]
    launch("balanced_kernel", batch, [addresses(batch, keys, first), *zip(*numbers, strict=True)], out, LOOKUPS=lookups)
    return out


def balanced_reference(
    batch: Batch, keys: Sequence[Tensor], first: Column, domains: Sequence[Domain], lookups: int
) -> Tensor:
    """Compute `balanced` in plain torch."""
    numbers = zip(*(domain.numbers for domain in domains), strict=True)
    key, *domain = _keys_of_ids(batch, keys, first, *numbers, lookups=lookups)
    return balanced_rows_each(batch.ids, key.unbind(-1), *domain)


def frequent(
    batch: Batch, keys: Sequence[Tensor], rows: Column, lists: Sequence[Tensor], lookups: int
) -> tuple[Tensor, Tensor | None]:
    """Compute the rows of ids of which some own a row: its place in a list; others hash into the rows after them.

    Args:
        batch: the ids.
        keys: the keys of each part, int64 [lookups].
        rows: the number of hashed rows of each part.
        lists: the ids of each part that own rows, ascending, int32 or int64 [owned].
        lookups: the number of rows that an id reads.

    Returns:
        The rows, int64 [N, lookups]; and with several look-ups their weights, float32 [N, lookups]: an id that owns a
        row reads it once, and again with weight 0.
    """
    if not batch.in_one_launch:
        return frequent_reference(batch, keys, rows, lists, lookups)
    out = batch.values.new_empty(sum(batch.sizes), lookups, dtype=torch.int64)
    weights = torch.empty_like(out, dtype=torch.float32) if lookups > 1 else None
    lengths = [len(ids) for ids in lists]
    narrow = [int(ids.dtype == torch.int32) for ids in lists]
    columns = [addresses(batch, keys), rows, addresses(batch, lists), lengths, narrow]
    steps = max(lengths).bit_length()
    launch("frequent_kernel", batch, columns, out, out if weights is None else weights, steps=steps, LOOKUPS=lookups)
    return out, weights


def frequent_reference(
    batch: Batch, keys: Sequence[Tensor], rows: Column, lists: Sequence[Tensor], lookups: int
) -> tuple[Tensor, Tensor | None]:
    """Compute `frequent` in plain torch: all lists are one, an id is numbered after those of the tables before."""
    span = 1 + max(batch.last)
    owners, starts = batch.joined(lists)
    different = list({id(ids): len(ids) for ids in lists}.values())
    place_of = {key: place for place, key in enumerate({id(ids): None for ids in lists})}
    key, number, place, start, end = _keys_of_ids(
        batch,
        keys,
        [0] * len(keys),
        rows,
        [place_of[id(ids)] for ids in lists],
        starts,
        [first + len(ids) for first, ids in zip(starts, lists, strict=True)],
        lookups=lookups,
    )
    shared = hash_rows_each(batch.ids, key, number)
    lengths = batch.constants((tuple(different),), batch.number).view(-1)
    places = torch.repeat_interleave(lengths, output_size=sum(different))
    numbered, wanted = torch.add(owners, places, alpha=span), torch.add(batch.ids, place, alpha=span)
    position = torch.searchsorted(numbered, wanted)
    if not sum(different):
        owned = torch.zeros_like(position, dtype=torch.bool)
    else:
        owned = (position < end) & (numbered[position.clamp(max=sum(different) - 1)] == wanted)
    out = torch.where(owned, position, shared + end) - start
    if lookups == 1:
        return out, None
    weights = torch.ones_like(out, dtype=torch.float32)
    weights[:, 1:].masked_fill_(owned, 0.0)
    return out, weights


def _keys_of_ids(
    batch: Batch, keys: Sequence[Tensor], first: Column, *columns: Column, lookups: int
) -> tuple[Tensor, ...]:
    """The keys of each id, [N, lookups] or [N, lookups, words of a key], and columns by `Batch.each`."""
    whole, starts = batch.joined(keys)
    at, *numbers = batch.each([start + own for start, own in zip(starts, first, strict=True)], *columns)
    return whole[at if lookups == 1 else at + torch.arange(lookups, device=at.device)], *numbers
