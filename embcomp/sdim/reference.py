"""SDIM as its paper writes it, group by group, which the tests compare with the fast forms."""

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
    """Pool histories (Cao et al. 2022, arXiv 2205.10249, section 4), one group after the other.

    Args:
        candidate_codes: the buckets of the candidates, int64 [B, C, G].
        sequence_codes: the buckets of the events, int64 [B, L, G].
        sequence: the vectors of the events, float [B, L, D].
        mask: bool [B, L], True for events.
        rule: the name of the rule, see `SDIM`.
        weight: the weights of the rule "kernel", float [hash_width + 1].

    Returns:
        The pooled vectors, float [B, C, D].
    """
    return _REFERENCES[rule](candidate_codes, sequence_codes, sequence, mask, weight)


def _kernel(asked: Tensor, known: Tensor, sequence: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
    assert weight is not None
    differ = asked[:, :, None] ^ known[:, None]  # [B, C, L, G]
    bits = sum((differ >> bit) & 1 for bit in range(len(weight) - 1))
    weights = weight[bits].sum(-1) * mask[:, None]  # pyright: ignore[reportArgumentType, reportCallIssue]
    return weights @ sequence / (asked.shape[-1] * mask.sum(1).clamp(min=1))[:, None, None]


def _l2(asked: Tensor, known: Tensor, sequence: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
    total = torch.zeros(())
    for group in range(asked.shape[-1]):
        same = _agree(asked, known, mask, group).to(sequence.dtype)
        sums = torch.einsum("bcl,bld->bcd", same, sequence)
        length = sums.norm(dim=-1, keepdim=True)
        total = total + torch.where(length > 0, sums / torch.where(length > 0, length, 1.0), 0.0)
    return total / asked.shape[-1]


def _mean(asked: Tensor, known: Tensor, sequence: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
    total, collisions = torch.zeros(()), torch.zeros(())
    for group in range(asked.shape[-1]):
        same = _agree(asked, known, mask, group).to(sequence.dtype)
        total = total + torch.einsum("bcl,bld->bcd", same, sequence)
        collisions = collisions + same.sum(-1, keepdim=True)
    return total / collisions.clamp(min=1)


def _agree(asked: Tensor, known: Tensor, mask: Tensor, group: int) -> Tensor:
    """Return which events are in a candidate's bucket of one group: bool [B, C, L]."""
    return (asked[:, :, None, group] == known[:, None, :, group]) & mask[:, None, :]


_REFERENCES = {"l2": _l2, "mean": _mean, "kernel": _kernel}
