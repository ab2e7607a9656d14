"""The alignment of two tables that meet only in a dot product, so that they compress well together."""

import torch
from torch import Tensor

_BLOCK = 1 << 16  # vectors at a time


@torch.no_grad()
def align_dot_product_(
    first: Tensor, second: Tensor, *, counts: tuple[Tensor | None, Tensor | None] = (None, None)
) -> Tensor:
    """Rewrite two trained tables in place, so that all dot products between their vectors stay the same.

    U becomes U W and V becomes V W^-T. W is chosen so that both tables have the same diagonal Gram matrix, which holds
    the singular values of U V^T. Cutting columns off, as a warm start of `embcomp.LowRank` does, then loses as little
    as possible of the dot products, which are what the model computes. Use it only for tables that nothing else reads:
    not where a vector also meets a layer, a bias or a third table.

    Args:
        first: a trained table, float [n, dim].
        second: the other table, float [m, dim].
        counts: the weight of each id of the two tables, [n] and [m]; None weighs all ids alike.

    Returns:
        The singular values of the (weighted) matrix of products, float64 [dim], in falling order.

    Raises:
        ValueError: the tables differ in width, or hold NaN.

    Example:
        >>> import torch, embcomp
        >>> users, items = torch.randn(30, 4), torch.randn(20, 4)
        >>> products = users @ items.T
        >>> values = embcomp.align_dot_product_(users, items)
        >>> torch.allclose(users @ items.T, products, atol=1e-4)
        True
        >>> torch.allclose(values.float(), torch.linalg.svdvals(products)[:4], rtol=1e-4)
        True
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"two tables of one width are aligned, got {list(first.shape)} and {list(second.shape)}")
    grams = [_gram(table, weigh) for table, weigh in zip((first, second), counts, strict=True)]
    if not all(bool(gram.isfinite().all()) for gram in grams):
        raise ValueError("a table to be aligned holds NaN or infinite values, or counts that are negative")
    values, directions = torch.linalg.eigh(grams[0])
    spread = values.clamp(min=0).sqrt()
    factor = directions * spread  # factor @ factor.T is the Gram matrix
    squares, turn = torch.linalg.eigh(factor.T @ grams[1] @ factor)
    singular = squares.flip(0).clamp(min=0).sqrt()
    turn = turn.flip(1)
    root = singular.sqrt()
    onto_first = directions * _inverse(spread) @ turn * root
    onto_second = factor @ turn * _inverse(root)
    for table, onto in ((first, onto_first), (second, onto_second)):
        for rows in table.split(_BLOCK):
            rows.copy_(rows.double() @ onto)
    return singular


def _gram(table: Tensor, counts: Tensor | None) -> Tensor:
    total = table.new_zeros(2 * table.shape[1:], dtype=torch.float64)
    weights = torch.ones(table.shape[0], device=table.device) if counts is None else counts.to(table.device)
    for rows, weigh in zip(table.split(_BLOCK), weights.split(_BLOCK), strict=True):
        scaled = rows.double() * weigh.double().sqrt().unsqueeze(1)
        total += scaled.T @ scaled
    return total


def _inverse(values: Tensor) -> Tensor:
    """Return 1 / values, and 0 where a value is zero up to rounding: no vector lies in that direction."""
    small = values <= values.max() * 1e-10
    return torch.where(small, 0.0, 1.0 / torch.where(small, 1.0, values))
