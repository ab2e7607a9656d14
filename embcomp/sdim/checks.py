"""The checks of SDIM's settings and arguments."""

import torch
from torch import Tensor

from embcomp.ops.checks import check_tensor
from embcomp.sdim.buckets import Buckets
from embcomp.sdim.sequences import check_device, check_floats


def check_sizes(embedding_dim: int, num_hashes: int, hash_width: int) -> None:
    """Raise ValueError for sizes below 1, above their limit, or that do not divide."""
    for name, value in (("embedding_dim", embedding_dim), ("num_hashes", num_hashes), ("hash_width", hash_width)):
        if value < 1:
            raise ValueError(f"SDIM: {name} must be at least 1, got {value}")
    if hash_width > 16:
        raise ValueError(f"SDIM: hash_width {hash_width} makes 2^{hash_width} buckets in a group; give at most 16")
    if num_hashes % hash_width:
        below = num_hashes // hash_width * hash_width
        near = " or ".join(str(n) for n in (below, below + hash_width) if n)
        raise ValueError(f"SDIM: num_hashes={num_hashes} is not a multiple of hash_width={hash_width}: give {near}")


def check_vectors(vectors: Tensor, what: str, dim: int) -> None:
    """Raise TypeError if it is not a tensor, ValueError if it is not float [..., dim]."""
    check_floats(vectors, what)
    if not vectors.dim():
        raise ValueError(f"SDIM: {what} have no dimension, expected [..., {dim}]")
    if vectors.shape[-1] != dim:
        raise ValueError(f"SDIM: {what} have width {vectors.shape[-1]}, expected embedding_dim {dim}")


def check_candidates(candidates: Tensor, dim: int) -> None:
    """Raise TypeError if it is not a tensor, ValueError if it is not float [B, dim] or [B, C, dim]."""
    check_floats(candidates, "candidates")
    if candidates.dim() not in (2, 3):
        raise ValueError(f"SDIM: candidates have shape {list(candidates.shape)}: give [B, D] or [B, C, D]")
    check_vectors(candidates, "candidates", dim)


def check_buckets(buckets: Buckets, candidates: Tensor, shape: tuple[int, int, int]) -> None:
    """Raise TypeError or ValueError unless the buckets are [B, groups, 2^hash_width, D], for B rows of candidates."""
    for name, tensor in (("sums", buckets.sums), ("counts", buckets.counts)):
        check_tensor(tensor, f"SDIM: {name}")
        check_device(candidates, "candidates", tensor)
    if buckets.sums.shape[1:] != shape:
        raise ValueError(
            f"SDIM: buckets have shape {list(buckets.sums.shape)}, expected [B, {', '.join(map(str, shape))}]: encode "
            "them with the same configuration"
        )
    if buckets.counts.shape != buckets.sums.shape[:3]:
        raise ValueError(
            f"SDIM: counts have shape {list(buckets.counts.shape)}, expected {list(buckets.sums.shape[:3])}"
        )
    if buckets.sums.shape[0] != candidates.shape[0]:
        raise ValueError(f"SDIM: {len(candidates)} rows of candidates, {len(buckets.sums)} histories")


def check_signatures(signatures: Tensor, vectors: Tensor, words: int) -> None:
    """Raise TypeError or ValueError unless the signatures are int64 [..., words], for vectors [..., D]."""
    check_tensor(signatures, "SDIM: signatures")
    check_device(signatures, "signatures", vectors)
    if signatures.shape != (*vectors.shape[:-1], words) or signatures.dtype != torch.int64:
        raise ValueError(
            f"SDIM: signatures {signatures.dtype} {list(signatures.shape)} do not fit vectors "
            f"{list(vectors.shape)}: expected torch.int64 {[*vectors.shape[:-1], words]}"
        )
