"""The anchor loss against its formula, for every kind of table."""

import pytest
import torch
from torch import nn

import embcomp

METHODS = [
    embcomp.HashingTrick(rows=20),
    embcomp.DoubleHash(rows=20),
    embcomp.LowBit(bits=4, of=embcomp.UnifiedEmbedding(rows=30, chunk_dim=4)),
    embcomp.LowRank(rank=3),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_it_is_the_mean_squared_distance_and_has_its_gradient(method):
    torch.manual_seed(0)
    table, old = embcomp.nn.CompressedEmbedding(50, 8, method), torch.randn(40, 8)
    ids = torch.tensor([[3, 7, 49], [3, 39, 0]])
    loss = embcomp.anchor_loss(table, old, ids, weight=0.3)
    known = torch.tensor([3, 7, 3, 39, 0])
    expected = 0.3 * sum(((table(i) - old[i]) ** 2).sum().item() for i in known) / 5
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in table.parameters())


def test_it_draws_the_vectors_to_the_old_ones():
    torch.manual_seed(0)
    table, old = nn.Embedding(30, 4), nn.Embedding(30, 4)
    optimizer = torch.optim.SGD(table.parameters(), lr=10.0)
    before = (table.weight - old.weight).norm().item()
    for _ in range(60):
        optimizer.zero_grad()
        embcomp.anchor_loss(table, old, torch.arange(30), weight=1.0).backward()
        optimizer.step()
    assert (table.weight - old.weight).norm().item() < 1e-3 * before
    assert old.weight.grad is None


def test_new_ids_alone_cost_nothing():
    table = nn.Embedding(30, 4)
    loss = embcomp.anchor_loss(table, torch.zeros(10, 4), torch.tensor([12, 29]))
    loss.backward()
    assert loss.item() == 0.0


@pytest.mark.parametrize(
    ("old", "ids", "weight", "error"),
    [
        (torch.zeros(30, 5), torch.tensor([1]), 0.1, "the old vectors are 5 wide, the new ones 4"),
        (torch.zeros(30, 4), torch.tensor([1.0]), 0.1, "ids must be integers"),
        (torch.zeros(30, 4), torch.tensor([-1]), 0.1, "ids reach from -1"),
        (torch.zeros(30, 4), torch.tensor([1]), -1.0, "weight must not be negative"),
        ("yesterday", torch.tensor([1]), 0.1, "old must be a table"),
    ],
)
def test_bad_arguments_are_named(old, ids, weight, error):
    with pytest.raises((ValueError, TypeError, IndexError), match=error):
        embcomp.anchor_loss(nn.Embedding(30, 4), old, ids, weight=weight)
