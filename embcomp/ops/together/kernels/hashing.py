"""The kernels that hash (docs/hashing.md)."""

# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
# Kernels are no Python to a type checker, and Triton is not installed everywhere.

import triton
import triton.language as tl

from embcomp.ops.together.kernels.ids import VARYING, block_of_ids, number_of


@triton.jit
def hashed_row(id, key, rows):
    """Return the row of `id` under a key, as `embcomp.ops.hashing` does; all int64."""
    z = (id ^ key).to(tl.uint64, bitcast=True)
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    return (((z >> 32) * rows.to(tl.uint64, bitcast=True)) >> 32).to(tl.int64, bitcast=True)


@triton.jit(do_not_specialize=VARYING)
def hashed_kernel(
    ids, ends, source_ends, numbers, parts, inside, out, LOOKUPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Write the hashed rows of each id, [N, LOOKUPS], or the id itself for a part of range 0."""
    place, id, exists = block_of_ids(ids, ends, source_ends, numbers, inside, BLOCK)
    keys = number_of(numbers, 1, parts).to(tl.pointer_type(tl.int64))
    rows = number_of(numbers, 2, parts)
    for j in tl.static_range(LOOKUPS):
        row = tl.where(rows == 0, id, hashed_row(id, tl.load(keys + j), rows))
        tl.store(out + place * LOOKUPS + j, row, mask=exists)


@triton.jit(do_not_specialize=VARYING)
def balanced_kernel(
    ids, ends, source_ends, numbers, parts, inside, out, LOOKUPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Write the rows of each id under balanced hashes, [N, LOOKUPS] (`embcomp.ops.balanced`)."""
    place, id, exists = block_of_ids(ids, ends, source_ends, numbers, inside, BLOCK)
    keys = number_of(numbers, 1, parts).to(tl.pointer_type(tl.uint64))
    low_bits = number_of(numbers, 2, parts).to(tl.uint64)
    places = number_of(numbers, 3, parts).to(tl.uint64)
    scale = number_of(numbers, 4, parts).to(tl.uint64)
    shift = number_of(numbers, 5, parts).to(tl.uint64)
    unsigned = id.to(tl.uint64, bitcast=True)
    for j in tl.static_range(LOOKUPS):
        high = unsigned >> low_bits
        low = unsigned - (high << low_bits)
        for half in tl.static_range(2):
            key = keys + 8 * j + 4 * half
            low = low ^ (((high * tl.load(key) + tl.load(key + 1)) >> 32) >> (32 - low_bits))
            high = high + ((((low * tl.load(key + 2) + tl.load(key + 3)) >> 32) * places) >> 32)
            high = tl.where(high >= places, high - places, high)
        row = (((high << low_bits) + low) * scale) >> shift
        tl.store(out + place * LOOKUPS + j, row.to(tl.int64, bitcast=True), mask=exists)


@triton.jit(do_not_specialize=VARYING)
def blocks_kernel(ids, ends, source_ends, numbers, parts, inside, out, BLOCK: tl.constexpr):
    """Write the row of an array that holds the hashed place of each id, or the row after it."""
    place, id, exists = block_of_ids(ids, ends, source_ends, numbers, inside, BLOCK)
    key = tl.load(number_of(numbers, 1, parts).to(tl.pointer_type(tl.int64)))
    size = number_of(numbers, 2, parts)
    width = number_of(numbers, 3, parts)
    row = hashed_row(id, key, size) // width + number_of(numbers, 4, parts)
    tl.store(out + place, tl.where(row >= size // width, 0, row), mask=exists)


@triton.jit
def place_in_list(id, address, narrow, length, steps):
    """Return how many of `length` < 2^steps ascending ids, int32 if `narrow`, else int64, are below `id`."""
    low = id * 0
    for step in range(steps):
        at = low + (1 << (steps - 1 - step))
        there = at <= length
        below = id_in_list(at - 1, address, narrow, there) < id
        low = tl.where(there & below, at, low)
    return low


@triton.jit
def id_in_list(at, address, narrow, there):
    """Return the ids at these places of a list, int64."""
    short = tl.load(address.to(tl.pointer_type(tl.int32)) + at, mask=there & narrow, other=0)
    long = tl.load(address.to(tl.pointer_type(tl.int64)) + at, mask=there & (narrow == 0), other=0)
    return tl.where(narrow, short.to(tl.int64), long)


@triton.jit(do_not_specialize=VARYING)
def frequent_kernel(
    ids, ends, source_ends, numbers, parts, inside, out, weights, steps,
    LOOKUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the place of an id in the list of its part, or else hashed rows after it; with LOOKUPS > 1 also weights."""
    place, id, exists = block_of_ids(ids, ends, source_ends, numbers, inside, BLOCK)
    keys = number_of(numbers, 1, parts).to(tl.pointer_type(tl.int64))
    rows = number_of(numbers, 2, parts)
    address = number_of(numbers, 3, parts)
    length = number_of(numbers, 4, parts)
    narrow = number_of(numbers, 5, parts) != 0
    position = place_in_list(id, address, narrow, length, steps)
    there = position < length
    owned = there & (id_in_list(position, address, narrow, there) == id)
    for j in tl.static_range(LOOKUPS):
        row = tl.where(owned, position, length + hashed_row(id, tl.load(keys + j), rows))
        tl.store(out + place * LOOKUPS + j, row, mask=exists)
        if LOOKUPS > 1:
            # An id of the list reads its row once.
            weight = tl.where(owned & (j > 0), 0.0, 1.0)
            tl.store(weights + place * LOOKUPS + j, weight, mask=exists)
