"""Alignment against SciPy's Procrustes; what it must not change, and what it must refuse."""

import copy

import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from torch import nn

import embcomp


def pair(users=60, items=40, width=8):
    return nn.ModuleDict({"user": nn.Embedding(users, width), "item": nn.Embedding(items, width)})


def products(model, ids=30):
    vectors = [t.materialize() if hasattr(t, "materialize") else t.weight for t in (model["user"], model["item"])]
    return (vectors[0][:ids] @ vectors[1][:ids].T).detach()


def test_the_rotation_is_that_of_scipy_and_no_product_changes():
    torch.manual_seed(0)
    old, new = pair(), pair(70, 50)
    ids = {"user": torch.arange(10, 60), "item": torch.arange(0, 40, 2)}
    before = products(new)
    a = torch.cat([new[name].weight.detach()[ids[name]] for name in ids])
    b = torch.cat([old[name].weight.detach()[ids[name]] for name in ids])
    expected, _ = orthogonal_procrustes(a.double().numpy(), b.double().numpy())
    done = embcomp.align_(new, old, ["user", "item"], ids)
    torch.testing.assert_close(done.rotation, torch.from_numpy(expected))
    torch.testing.assert_close(products(new), before, rtol=1e-4, atol=1e-4)
    assert done.after > done.before


def test_what_was_turned_is_turned_back():
    torch.manual_seed(1)
    old = pair()
    new, turn = copy.deepcopy(old), torch.linalg.qr(torch.randn(8, 8)).Q
    with torch.no_grad():
        for table in new.values():
            table.weight.copy_(table.weight @ turn)
    done = embcomp.align_(new, {name: t.weight for name, t in old.items()}, ["user", "item"])
    torch.testing.assert_close(new["item"].weight, old["item"].weight, rtol=0, atol=1e-5)
    assert done.after == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        embcomp.HashingTrick(rows=20),
        embcomp.DoubleHash(rows=20),
        embcomp.LowRank(rank=3),
        embcomp.LowBit(bits=4, of=embcomp.LowRank(rank=3)),
    ],
    ids=str,
)
def test_compressed_tables_turn_as_one(method):
    torch.manual_seed(2)
    old, new = pair(), pair()
    embcomp.compress_(new, method)
    before = products(new)
    done = embcomp.align_(new, old, ["user", "item"])
    torch.testing.assert_close(products(new), before, rtol=1e-3, atol=1e-3)
    assert done.after > done.before


@pytest.mark.parametrize(
    ("method", "error"),
    [
        (embcomp.LowBit(bits=4), "rounded or coded"),
        (embcomp.UnifiedEmbedding(rows=30, chunk_dim=4), "consist of parts"),
        (embcomp.QuotientRemainder(), "consist of parts"),
    ],
    ids=str,
)
def test_tables_that_cannot_be_turned_exactly_are_refused_and_stay(method, error):
    new, old = pair(), pair()
    embcomp.compress_(new, method)
    before = copy.deepcopy(new.state_dict())
    with pytest.raises(ValueError, match=error):
        embcomp.align_(new, old, ["user", "item"])
    assert all(torch.equal(value, before[name]) for name, value in new.state_dict().items())


def test_a_tower_is_refused_with_its_name():
    new, old = nn.ModuleDict({"tables": pair(), "head": nn.Linear(8, 1)}), pair()
    earlier = {f"tables.{name}": table for name, table in old.items()}
    with pytest.raises(ValueError, match=r"other parameters \(head.weight"):
        embcomp.align_(new, earlier, list(earlier))
    embcomp.align_(new, earlier, list(earlier), products_only=True)
    biased = nn.ModuleDict({"tables": pair(), "bias": nn.Embedding(40, 1)})  # of items: reads no coordinate
    embcomp.align_(biased, earlier, list(earlier))


def test_rows_that_another_table_shares_are_refused():
    new = nn.ModuleDict({"user": nn.Embedding(60, 8), "item": nn.Embedding(40, 8), "other": nn.Embedding(30, 8)})
    embcomp.compress_(new, embcomp.UnifiedEmbedding(rows=50, chunk_dim=8))
    with pytest.raises(ValueError, match="'user' shares its rows with 'other'"):
        embcomp.align_(new, pair(), ["user", "item"])


def test_other_mistakes_are_named():
    with pytest.raises(ValueError, match="no id is common"):
        embcomp.align_(pair(), pair(), ["user"], {"user": torch.zeros(0, dtype=torch.int64)}, products_only=True)
    with pytest.raises(ValueError, match="tables is empty"):
        embcomp.align_(pair(), pair(), [])
    with pytest.raises(ValueError, match=r"of the widths \[6, 8\]"):
        embcomp.align_(pair(), {"user": torch.zeros(60, 6)}, ["user"], products_only=True)
