"""The kernels in Triton. All count in int64 and uint64, whose products wrap as those of the torch and C++ forms do."""

from embcomp.ops.together.kernels.digits import digits_kernel
from embcomp.ops.together.kernels.hashing import balanced_kernel, blocks_kernel, frequent_kernel, hashed_kernel
from embcomp.ops.together.kernels.maps import clustered_kernel, kept_rows_kernel, two_rows_kernel
from embcomp.ops.together.kernels.pieces import pieces_kernel

__all__ = [
    "balanced_kernel",
    "blocks_kernel",
    "clustered_kernel",
    "digits_kernel",
    "frequent_kernel",
    "hashed_kernel",
    "kept_rows_kernel",
    "pieces_kernel",
    "two_rows_kernel",
]
