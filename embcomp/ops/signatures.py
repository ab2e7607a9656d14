"""Signatures: the bucket of a vector in every group, packed into int64."""

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.ops.buckets import words_for


def pack(codes: Tensor, hash_width: int) -> Tensor:
    """Pack codes int64 [..., G], each below 2^hash_width, into signatures int64 [..., words].

    Example:
        >>> import torch
        >>> pack(torch.tensor([[5, 1, 7]]), hash_width=3)  # 7 * 64 + 1 * 8 + 5
        tensor([[461]])
    """
    groups, each = codes.shape[-1], 63 // hash_width
    words = words_for(groups, hash_width)
    codes = F.pad(codes, (0, words * each - groups)).unflatten(-1, (words, each))
    return (codes << hash_width * torch.arange(each, device=codes.device)).sum(-1)


def unpack(signatures: Tensor, groups: int, hash_width: int) -> Tensor:
    """Unpack signatures int64 [..., words] into codes int64 [..., groups]: the inverse of `pack`.

    Example:
        >>> import torch
        >>> unpack(torch.tensor([[461]]), groups=3, hash_width=3)
        tensor([[5, 1, 7]])
    """
    each = 63 // hash_width
    group = torch.arange(groups, device=signatures.device)
    words = signatures if signatures.shape[-1] == 1 else signatures.index_select(-1, group // each)
    return (words >> hash_width * (group % each)) & ((1 << hash_width) - 1)
