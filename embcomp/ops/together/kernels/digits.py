"""The kernel of digits: quotients, remainders, and what lies between them."""

# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
# Kernels are no Python to a type checker, and Triton is not installed everywhere.

import triton
import triton.language as tl

from embcomp.ops.together.kernels.ids import VARYING, block_of_ids, number_of


@triton.jit(do_not_specialize=VARYING)
def digits_kernel(ids, ends, source_ends, numbers, parts, inside, out, BLOCK: tl.constexpr):
    """Write id // below % radix for each id, [N]."""
    place, id, exists = block_of_ids(ids, ends, source_ends, numbers, inside, BLOCK)
    digit = (id // number_of(numbers, 1, parts)) % number_of(numbers, 2, parts)
    tl.store(out + place, digit, mask=exists)
