"""The kernels that read packed maps (`embcomp.ops.packing`)."""

# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
# Kernels are no Python to a type checker, and Triton is not installed everywhere.

import triton
import triton.language as tl

from embcomp.ops.together.kernels.hashing import hashed_row
from embcomp.ops.together.kernels.ids import VARYING, block_of_ids, number_of


@triton.jit
def packed_entry(words, bits, entry, there):
    """Return entries of packed words, int64; 0 where they are not `there`."""
    at = entry * bits
    word = words + (at >> 5)
    low = tl.load(word, mask=there, other=0).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(word + 1, mask=there, other=0).to(tl.uint32, bitcast=True).to(tl.uint64)
    window = (low | (high << 32)) >> (at & 31).to(tl.uint64, bitcast=True)
    return window.to(tl.int64, bitcast=True) & ((1 << bits) - 1)


@triton.jit(do_not_specialize=VARYING)
def clustered_kernel(ids, ends, source_ends, numbers, parts, inside, out, BLOCK: tl.constexpr):
    """Write the row of each id's cluster; the ids without one are hashed into the rows from `first` on."""
    place, id, exists = block_of_ids(ids, ends, source_ends, numbers, inside, BLOCK)
    key = tl.load(number_of(numbers, 1, parts).to(tl.pointer_type(tl.int64)))
    hashed = number_of(numbers, 7, parts) + hashed_row(id, key, number_of(numbers, 2, parts))
    words = number_of(numbers, 3, parts).to(tl.pointer_type(tl.int32))
    known = id < number_of(numbers, 5, parts)
    row = packed_entry(words, number_of(numbers, 4, parts), id, exists & known)
    tl.store(out + place, tl.where(known & (row < number_of(numbers, 6, parts)), row, hashed), mask=exists)


@triton.jit(do_not_specialize=VARYING)
def two_rows_kernel(ids, ends, source_ends, numbers, parts, inside, out, BLOCK: tl.constexpr):
    """Write the row of each id's cluster in a chunk, and a hashed row, [N, 2] (`ClusteredHash`)."""
    place, id, exists = block_of_ids(ids, ends, source_ends, numbers, inside, BLOCK)
    key = tl.load(number_of(numbers, 1, parts).to(tl.pointer_type(tl.int64)))
    rows = number_of(numbers, 2, parts)
    words = number_of(numbers, 3, parts).to(tl.pointer_type(tl.int32))
    chunk = number_of(numbers, 6, parts)
    entry = id * number_of(numbers, 5, parts) + chunk
    start = 2 * chunk * rows
    first = packed_entry(words, number_of(numbers, 4, parts), entry, exists)
    tl.store(out + 2 * place, start + first, mask=exists)
    tl.store(out + 2 * place + 1, start + rows + hashed_row(id, key, rows), mask=exists)


@triton.jit(do_not_specialize=VARYING)
def kept_rows_kernel(ids, ends, source_ends, numbers, parts, inside, out, BLOCK: tl.constexpr):
    """Write the row of each id in the block that replaces its own (`Dedup`)."""
    place, id, exists = block_of_ids(ids, ends, source_ends, numbers, inside, BLOCK)
    words = number_of(numbers, 1, parts).to(tl.pointer_type(tl.int32))
    block = number_of(numbers, 3, parts)
    own = id // block
    owner = packed_entry(words, number_of(numbers, 2, parts), own, exists)
    tl.store(out + place, owner * block + id - own * block, mask=exists)
