"""Losses against the formulas, pair by pair."""

import math

import pytest
import torch

from recsys_models import bpr_loss, directau_loss


def test_bpr_is_the_mean_over_pairs():
    positive, negative = torch.randn(5, 1), torch.randn(5, 3)
    pairs = [(positive[u, 0] - negative[u, n]).item() for u in range(5) for n in range(3)]
    expected = sum(math.log(1 + math.exp(-difference)) for difference in pairs) / 15
    assert bpr_loss(positive, negative).item() == pytest.approx(expected, rel=1e-5)
    assert bpr_loss(positive[:, 0], negative[:, 0]).shape == ()


def test_bpr_is_finite_for_large_scores():
    scores = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = bpr_loss(scores, -scores)
    loss.backward()
    assert loss.item() == 1e4
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.5])
def test_directau_is_alignment_and_uniformity(gamma):
    users, items = torch.randn(2, 6, 4, dtype=torch.float64)

    def unit(vector):
        return [x / math.sqrt(sum(y * y for y in vector.tolist())) for x in vector.tolist()]

    u, i = [unit(v) for v in users], [unit(v) for v in items]

    def squared(a, b):
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))

    def uniformity(x):
        near = [math.exp(-2 * squared(x[a], x[b])) for a in range(6) for b in range(6) if a != b]
        return math.log(sum(near) / len(near))

    alignment = sum(squared(a, b) for a, b in zip(u, i, strict=True)) / 6
    expected = alignment + gamma * (uniformity(u) + uniformity(i)) / 2
    assert directau_loss(users, items, gamma).item() == pytest.approx(expected)


def test_directau_needs_two_pairs():
    with pytest.raises(ValueError, match="two pairs or more, got 1"):
        directau_loss(torch.ones(1, 2), torch.ones(1, 2))
