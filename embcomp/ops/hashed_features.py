"""The hashed rows of the ids of many features, checked and written by one call of the compiled form."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from embcomp.ops import native
from embcomp.ops.balanced import KEY_WORDS, Domain, balanced_rows_reference
from embcomp.ops.checks import int64, readable, size
from embcomp.ops.hashing import MAX_ROWS, hash_rows_reference

_UNCHECKED = 2**63  # the compiled form compares without a sign: negative ids alone are outside


@dataclass(frozen=True)
class Hashes:
    """The hashes of the ids of one feature.

    Attributes:
        keys: the keys, int64 [K] from `hash_key`; with `domain` int64 [K, 8] from `balanced_key`.
        rows: the number of rows.
        num_embeddings: the number of ids; None for all that are not negative.
        by_key: True for rows [K, N], False for [N, K], which balanced hashes do not have.
        domain: the places of a balanced hash; None for a plain hash.
    """

    keys: Tensor
    rows: int
    num_embeddings: int | None
    by_key: bool = True
    domain: Domain | None = None


class _Job(ctypes.Structure):
    """The hashes of a feature in the form for C++ (`embcomp/native/hashing.cpp`)."""

    _fields_ = [
        ("ids", ctypes.c_void_p), ("count", ctypes.c_uint64), ("limit", ctypes.c_uint64), ("keys", ctypes.c_void_p),
        ("num_keys", ctypes.c_uint64), ("rows", ctypes.c_int64), ("by_key", ctypes.c_int64),
        ("balanced", ctypes.c_int64), ("low_bits", ctypes.c_int64), ("high", ctypes.c_int64),
        ("scale", ctypes.c_int64), ("shift", ctypes.c_int64), ("out", ctypes.c_void_p),
    ]  # fmt: skip


def hash_features(ids: Tensor, spans: Sequence[tuple[int, int]], hashes: Sequence[Hashes], out: Tensor) -> int | None:
    """Write the rows of features one after another.

    Args:
        ids: the ids of all features, int64 [N], on CPU.
        spans: the ids of each feature, from a first to before a last.
        hashes: the hashes of each.
        out: the tensor to write to, int64, contiguous, with the rows of all features.

    Returns:
        The number of the first feature with an id out of range, from which on nothing is written; None if none has.

    Raises:
        ValueError: a tensor or span does not fit.

    Example:
        >>> import torch
        >>> from embcomp.ops.hashed_features import Hashes, hash_features
        >>> from embcomp.ops.hashing import hash_key
        >>> both = [Hashes(torch.tensor([hash_key(0, name, 0)]), rows=10, num_embeddings=100) for name in "ab"]
        >>> out = torch.empty(4, dtype=torch.int64)
        >>> hash_features(torch.tensor([1, 2, 3, 99]), [(0, 1), (1, 4)], both, out), int(out.max()) < 10
        (None, True)
        >>> hash_features(torch.tensor([1, 2, 3, 100]), [(0, 1), (1, 4)], both, out)
        1
    """
    keys = [each.keys.contiguous() for each in hashes]
    if not readable(ids, out, *keys):  # as under a transform of torch.func, where tensors have no memory of their own
        return hash_features_reference(ids, spans, hashes, out)
    jobs = _jobs(ids, spans, hashes, keys, out)
    lib = native.library()
    if lib is None:
        return hash_features_reference(ids, spans, hashes, out)
    lib.hash_features.restype = ctypes.c_size_t
    written = lib.hash_features(jobs, size(len(hashes)))
    return None if written == len(hashes) else written


def _jobs(
    ids: Tensor, spans: Sequence[tuple[int, int]], hashes: Sequence[Hashes], keys: Sequence[Tensor], out: Tensor
) -> Any:
    """The features as an array for C++. Raise ValueError unless it may read and write all that it is told to."""
    jobs = (_Job * len(hashes))()
    read, write = (int64(name, each, each.numel()).value or 0 for name, each in (("ids", ids), ("out", out)))
    at, word, total = 0, ids.element_size(), ids.numel()
    for job, key, each, (first, last) in zip(jobs, keys, hashes, spans, strict=True):
        if not 0 <= first <= last <= total:
            raise ValueError(f"a span of {total} ids is ({first}, {last})")
        if not 1 <= each.rows <= MAX_ROWS:
            raise ValueError(f"rows must be in [1, 2^31), got {each.rows}")
        if each.domain and not each.by_key:
            raise ValueError("balanced hashes are laid out by key")
        job.ids, job.count = read + word * first, last - first
        job.limit = _UNCHECKED if each.num_embeddings is None else each.num_embeddings
        job.keys, job.num_keys = int64("keys", key, len(key), *([KEY_WORDS] if each.domain else [])).value, len(key)
        job.rows, job.by_key, job.out = each.rows, each.by_key, write + word * at
        if domain := each.domain:
            job.balanced, job.low_bits, job.high = True, domain.low_bits, domain.high
            job.scale, job.shift = domain.scale, domain.shift
        at += (last - first) * len(key)
    if at != out.numel():
        raise ValueError(f"out has {out.numel()} places for {at} rows")
    return jobs


def hash_features_reference(
    ids: Tensor, spans: Sequence[tuple[int, int]], hashes: Sequence[Hashes], out: Tensor
) -> int | None:
    """Compute `hash_features` in plain torch."""
    at = 0
    for number, (each, (first, last)) in enumerate(zip(hashes, spans, strict=True)):
        own = ids[first:last]
        limit = each.num_embeddings
        if bool((own < 0).any()) or (limit is not None and bool((own >= limit).any())):
            return number
        if each.domain is None:
            rows = hash_rows_reference(own, each.keys, each.rows)
            rows = rows.t() if each.by_key else rows
        else:
            rows = balanced_rows_reference(own, each.keys, each.domain)
        out[at : at + rows.numel()] = rows.reshape(-1)
        at += rows.numel()
    return None
