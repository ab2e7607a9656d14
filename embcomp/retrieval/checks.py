"""The checks of vectors, queries and candidates; errors name the argument."""

import torch
from torch import Tensor

from embcomp.ops.checks import INTEGERS, check_tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_BLOCK = 1 << 18  # rows at a time


def check_matrix(value: Tensor, name: str, width: int | None = None, cosine: bool = False) -> Tensor:
    """Check vectors, every value included, and return them as contiguous float32 [n, width].

    Raises:
        TypeError: `value` is not a tensor.
        ValueError: the dtype, shape or width differs; values are NaN or infinite; or with `cosine` a row is zero.
    """
    check_tensor(value, name)
    if value.dtype not in FLOATS:
        raise ValueError(f"{name} must be floats, got {value.dtype}; convert with {name}.float()")
    if value.dim() != 2 or value.shape[1] < 1:
        raise ValueError(f"{name} must have the shape [rows, width], got {list(value.shape)}")
    if width is not None and value.shape[1] != width:
        raise ValueError(f"{name} are {value.shape[1]} wide, the coded vectors {width}: take those of the same model")
    value = value.detach().float().contiguous()
    for start in range(0, len(value), _BLOCK):
        rows = value[start : start + _BLOCK]
        if not bool(rows.sum().isfinite()) and not bool(rows.isfinite().all()):
            wrong = int((~rows.isfinite().all(1)).nonzero()[0]) + start
            raise ValueError(f"{name} hold NaN or infinite values, first in row {wrong}")
        if cosine and not bool((any_ := rows.any(1)).all()):
            wrong = int((~any_).nonzero()[0]) + start
            raise ValueError(f"row {wrong} of {name} is zero, which has no cosine: take it out, or metric='dot'")
    return value


def check_version(given: str | None, held: str, name: str) -> None:
    """Raise ValueError if the given version of `name` differs from that of the codes."""
    if given is not None and given != held:
        raise ValueError(
            f"{name} are of version {given!r}, the codes of {held!r}: two trainings cannot be compared; "
            "code the new vectors, or align them first"
        )


def check_device(value: Tensor, name: str, home: torch.device) -> None:
    """Raise ValueError if a tensor is on another device than the codes."""
    check_tensor(value, name)
    if value.device != home:
        raise ValueError(f"{name} are on {value.device}, the codes on {home}: move one of them with .to(...)")


def check_k(k: int, rows: int) -> None:
    """Raise ValueError unless 1 <= k <= rows."""
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an integer, got {type(k).__name__}")
    if not 1 <= k <= rows:
        raise ValueError(f"k={k} vectors were asked for, there are {rows}: lower k")


def check_candidates(candidates: Tensor, queries: int, rows: int) -> Tensor:
    """Check candidates and return them as int64 [queries, n].

    Raises:
        ValueError: the dtype or shape differs.
        IndexError: a row is out of range.
    """
    check_tensor(candidates, "candidates")
    if candidates.dtype not in INTEGERS:
        raise ValueError(f"candidates must be integers, got {candidates.dtype}")
    if candidates.dim() != 2 or len(candidates) != queries:
        raise ValueError(f"candidates must have the shape [{queries}, n], got {list(candidates.shape)}")
    if candidates.numel() and not 0 <= int(candidates.min()) <= int(candidates.max()) < rows:
        wrong = candidates[(candidates < 0) | (candidates >= rows)][0]
        raise IndexError(f"candidate {int(wrong)} is out of range, there are {rows} vectors")
    return candidates.long()
