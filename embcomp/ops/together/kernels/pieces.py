"""The kernel of code pieces (`SemanticIds`)."""

# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
# Kernels are no Python to a type checker, and Triton is not installed everywhere.

import triton
import triton.language as tl

from embcomp.ops.together.kernels.hashing import hashed_row
from embcomp.ops.together.kernels.ids import VARYING, block_of_ids, number_of


@triton.jit
def integer_at(address, at, there, BYTES: tl.constexpr):
    """Return integers of so many bytes, those of one byte without a sign, as int64."""
    if BYTES == 1:
        value = tl.load(address.to(tl.pointer_type(tl.uint8)) + at, mask=there, other=0).to(tl.int64)
    elif BYTES == 2:
        value = tl.load(address.to(tl.pointer_type(tl.int16)) + at, mask=there, other=0).to(tl.int64)
    elif BYTES == 4:
        value = tl.load(address.to(tl.pointer_type(tl.int32)) + at, mask=there, other=0).to(tl.int64)
    else:
        value = tl.load(address.to(tl.pointer_type(tl.int64)) + at, mask=there, other=0)
    return value


@triton.jit(do_not_specialize=VARYING)
def pieces_kernel(
    ids, ends, source_ends, numbers, parts, inside, out, weights, plan, size, all_rows,
    PIECES: tl.constexpr, STEPS: tl.constexpr, COLUMNS: tl.constexpr,
    CODE_BYTES: tl.constexpr, SUPPORT_BYTES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the row of each piece of an id, [N, PIECES], and with SUPPORT_BYTES whether it is read, as a weight.

    `plan` starts with the two keys and the range of the fold; then each piece has its first row, its number of rows,
    its key (-1 for none), and for each step a column and what is done: 1 takes a digit, 2 folds, 0 does nothing.
    """
    place, id, exists = block_of_ids(ids, ends, source_ends, numbers, inside, BLOCK)
    codes = number_of(numbers, 1, parts)
    count = number_of(numbers, 2, parts)
    keys = number_of(numbers, 3, parts).to(tl.pointer_type(tl.int64))
    item = tl.where(id < count, id, count - 1)
    bits = id * 0
    if SUPPORT_BYTES > 0:
        supported = integer_at(number_of(numbers, 4, parts), item, exists, SUPPORT_BYTES)
        bits = tl.where(id < count, supported, 0)
    first_key, second_key, half = tl.load(plan), tl.load(plan + 1), tl.load(plan + 2)
    for piece in tl.static_range(PIECES):
        own = plan + 3 + piece * (3 + 2 * STEPS)
        number = id * 0
        for step in tl.static_range(STEPS):
            column, done = tl.load(own + 3 + 2 * step), tl.load(own + 4 + 2 * step)
            value = integer_at(codes, item * COLUMNS + column, exists, CODE_BYTES)
            high, low = hashed_row(number, first_key, half), hashed_row(number, second_key, half)
            folded = ((high << 31) + low) ^ value
            number = tl.where(done == 0, number, tl.where(done == 1, number * size + value, folded))
        rows, key = tl.load(own + 1), tl.load(own + 2)
        hashed = hashed_row(number, tl.load(keys + tl.where(key < 0, 0, key)), rows)
        row = tl.load(own) + tl.where(key < 0, number, hashed)
        if SUPPORT_BYTES > 0:
            row = tl.where(bits == 0, hashed_row(id, tl.load(keys + PIECES + piece), all_rows.to(tl.int64)), row)
            read = (bits == 0) | (((bits >> piece) & 1) == 1)
            tl.store(weights + place * PIECES + piece, tl.where(read, 1.0, 0.0), mask=exists)
        tl.store(out + place * PIECES + piece, row, mask=exists)
