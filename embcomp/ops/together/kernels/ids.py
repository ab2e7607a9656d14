"""The parts of kernels that read ids: each program encodes a block of one part's ids."""

# pyright: reportMissingImports=false
# Kernels are no Python to a type checker, and Triton is not installed everywhere.

import triton
import triton.language as tl

# Arguments whose values change from batch to batch: kernels are not compiled for each of them.
VARYING = ["parts", "steps", "size", "all_rows"]


@triton.jit
def block_of_ids(ids, ends, source_ends, numbers, inside, BLOCK: tl.constexpr):
    """Return the places of a block in the result, its ids, and which of them exist; wrong ids are read as 0.

    `numbers` starts with the largest id of each part. If an id is out of range, `inside` becomes 0.
    """
    part = tl.program_id(1)
    end = tl.load(ends + part)
    start = tl.load(ends + part - 1, mask=part > 0, other=0)
    place = start + tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = place < end
    given = tl.load(ids + (place + (tl.load(source_ends + part) - end)), mask=exists, other=0).to(tl.int64)
    wrong = (given < 0) | (given > tl.load(numbers + part))
    tl.store(inside + tl.full((BLOCK,), 0, tl.int32), tl.full((BLOCK,), 0, tl.int32), mask=exists & wrong)
    return place, tl.where(wrong, 0, given), exists


@triton.jit
def number_of(numbers, column, parts):
    """Return a number of this program's part."""
    return tl.load(numbers + column * parts + tl.program_id(1))
