"""SDIM as its paper writes it, group by group: what the fast forms are tested against."""

import torch
from torch import Tensor


def pool_reference(
    candidate_codes: Tensor,
    sequence_codes: Tensor,
    sequence: Tensor,
    mask: Tensor,
    rule: str = "l2",
    weight: Tensor | None = None,
) -> Tensor:
    """Pooled histories (Cao et al. 2022, arXiv 2205.10249, section 4), one group after the other.

    Args:
        candidate_codes: int64 [B, C, G].
        sequence_codes: int64 [B, L, G].
        sequence: float [B, L, D].
        mask: bool [B, L], True for events.
        rule: see `SDIM`.
        weight: float [hash_width + 1], of the rule "kernel".

    Returns:
        float [B, C, D].
    """
    groups = candidate_codes.shape[-1]
    if weight is not None:
        differ = candidate_codes[:, :, None] ^ sequence_codes[:, None]  # [B, C, L, G]
        bits = sum((differ >> bit) & 1 for bit in range(len(weight) - 1))
        weights = weight[bits].sum(-1) * mask[:, None]  # pyright: ignore[reportArgumentType, reportCallIssue]
        return weights @ sequence / (groups * mask.sum(1).clamp(min=1))[:, None, None]
    total, units, collisions = 0, 0, 0
    for group in range(groups):
        same = candidate_codes[:, :, None, group] == sequence_codes[:, None, :, group]
        same = (same & mask[:, None, :]).to(sequence.dtype)
        found = torch.einsum("bcl,bld->bcd", same, sequence)
        length = found.norm(dim=-1, keepdim=True)
        units = units + torch.where(length > 0, found / torch.where(length > 0, length, 1.0), 0.0)
        total = total + found
        collisions = collisions + same.sum(-1, keepdim=True)
    if rule == "l2":
        return units / groups  # pyright: ignore[reportReturnType]
    return total / collisions.clamp(min=1)  # pyright: ignore
