"""Losses against the formulas, pair by pair."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_models import bpr_loss, directau_loss, sampled_softmax_loss, softmax_loss


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
    with pytest.raises(ValueError, match="at least two pairs, got 1"):
        directau_loss(torch.ones(1, 2), torch.ones(1, 2))


def test_softmax_is_over_all_items():
    queries, vectors, targets = torch.randn(3, 4), torch.randn(6, 4), torch.tensor([5, 0, 0])
    scores = [[float(q @ v) for v in vectors] for q in queries]
    expected = sum(math.log(sum(map(math.exp, row))) - row[t] for row, t in zip(scores, targets, strict=True)) / 3
    assert softmax_loss(queries, vectors, targets).item() == pytest.approx(expected, rel=1e-5)


def sampled(queries, vectors, targets, drawn, q):
    drawn = torch.tensor(drawn, dtype=torch.int64)
    return sampled_softmax_loss(queries, vectors[targets], targets, vectors[drawn], drawn, q[drawn].log())


@settings(max_examples=20)
@given(seed=st.integers(0, 2**16), number=st.integers(1, 3))
def test_the_sum_over_all_items_is_right_in_expectation(seed, number):
    """Over every draw there is, weighed by its probability; without the correction it is not."""
    draw = torch.Generator().manual_seed(seed)
    query, vectors = torch.randn(1, 4, generator=draw).double(), torch.randn(5, 4, generator=draw).double()
    q = torch.rand(5, generator=draw).double() + 0.05
    q /= q.sum()
    target = torch.tensor([2])
    own = float(query @ vectors[2])
    draws = list(product(range(5), repeat=number))
    chances = [math.prod(float(q[item]) for item in drawn) for drawn in draws]
    assert sum(chances) == pytest.approx(1)

    def expected(probabilities):
        losses = [sampled(query, vectors, target, drawn, probabilities).item() for drawn in draws]
        return sum(chance * math.exp(loss + own) for chance, loss in zip(chances, losses, strict=True))

    whole = (query @ vectors.T).exp().sum().item()
    assert expected(q) == pytest.approx(whole, rel=1e-9)
    assert expected(torch.full((5,), 0.2).double()) != pytest.approx(whole, rel=1e-3)


def test_all_items_drawn_once_give_the_whole_softmax_and_its_gradients():
    queries = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    vectors = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    targets, q = torch.randint(6, (7,)), torch.full((6,), 1 / 6, dtype=torch.float64)
    losses = sampled(queries, vectors, targets, [3, 1, 0, 5, 4, 2], q), softmax_loss(queries, vectors, targets)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, [queries, vectors]) for loss in losses))


def test_many_draws_come_near_the_whole_softmax():
    queries, vectors, targets = torch.randn(50, 4), torch.randn(100, 4), torch.randint(100, (50,))
    q = torch.rand(100) + 0.1
    q /= q.sum()
    drawn = torch.multinomial(q, 20_000, replacement=True).tolist()
    found = sampled(queries, vectors, targets, drawn, q)
    torch.testing.assert_close(found, softmax_loss(queries, vectors, targets), atol=0.02, rtol=0.0)


def test_nothing_drawn_is_an_error():
    with pytest.raises(ValueError, match="at least one drawn item"):
        sampled(torch.ones(1, 4), torch.ones(6, 4), torch.tensor([1]), [], torch.full((6,), 1 / 6))
