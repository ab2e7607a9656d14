"""Widths against slices by hand: losses at several widths, and tables cut to one of them."""

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

import embcomp
from embcomp import Nested


class Products(nn.Module):
    """Users and items that meet in a dot product."""

    def __init__(self, users: int = 40, items: int = 30, dim: int = 16) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, dim), nn.Embedding(items, dim)

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        return (self.user(users) * self.item(items)).sum(-1)


USERS, ITEMS = torch.arange(40).repeat(3), torch.arange(120) % 30


@pytest.mark.parametrize("weights", [None, [0.1, 0.2, 0.7]])
def test_the_loss_is_that_of_columns_cut_by_hand(weights):
    model, widths = Products(), [2, 8, 16]
    loss = embcomp.nested_loss(model, lambda: model(USERS, ITEMS).square().mean(), widths, weights)
    loss.backward()
    user, item = (table.weight.detach().clone().requires_grad_() for table in (model.user, model.item))
    by_hand = sum(
        share * (user[USERS, :width] * item[ITEMS, :width]).sum(1).square().mean()
        for width, share in zip(widths, weights or [1 / 3] * 3, strict=True)
    )
    by_hand.backward()
    torch.testing.assert_close(loss, by_hand.detach())
    torch.testing.assert_close(model.user.weight.grad, user.grad)
    torch.testing.assert_close(model.item.weight.grad, item.grad)


def test_the_width_ends_with_its_context_also_after_an_error():
    model = Products()
    before = model(USERS, ITEMS)

    def broken():
        assert not torch.equal(model(USERS, ITEMS), before)
        raise RuntimeError("of the user")

    with pytest.raises(RuntimeError, match="of the user"):
        embcomp.nested_loss(model, broken, [3])
    assert torch.equal(model(USERS, ITEMS), before)


def test_collections_and_compressed_tables_are_cut_alike():
    tables = [EmbeddingBagConfig(name=n, num_embeddings=9, embedding_dim=8, feature_names=[n]) for n in ("a", "b")]
    sequences = [EmbeddingConfig(name=n, num_embeddings=9, embedding_dim=8, feature_names=[n]) for n in ("a", "b")]
    batch = KeyedJaggedTensor(["a", "b"], torch.arange(6), lengths=torch.tensor([1, 2, 1, 2]))
    bags = nn.ModuleDict({"c": EmbeddingBagCollection(tables)})
    pooled = bags["c"](batch).to_dict()
    both = nn.ModuleDict({"c": EmbeddingCollection(sequences)})
    each = both["c"](batch)
    with embcomp.at_width(bags, 3), embcomp.at_width(both, 5):
        for key, values in bags["c"](batch).to_dict().items():
            assert torch.equal(values, torch.cat([pooled[key][:, :3], torch.zeros(2, 5)], 1))
        for key, jagged in both["c"](batch).items():
            assert torch.equal(jagged.values(), torch.cat([each[key].values()[:, :5], torch.zeros(3, 3)], 1))
            assert torch.equal(jagged.lengths(), each[key].lengths())
    model = Products()
    embcomp.compress_(model, embcomp.HashingTrick(rows=7))
    with embcomp.at_width(model, 4):
        assert int((model.user(USERS)[:, 4:] != 0).sum()) == 0


@pytest.mark.parametrize("width", [1, 5, 16])
def test_cut_tables_store_their_first_columns_and_nothing_else(width):
    model = Products()
    with torch.no_grad(), embcomp.at_width(model, width):
        expected = model(USERS, ITEMS)
    report = embcomp.truncate_(model, width)
    torch.testing.assert_close(model(USERS, ITEMS), expected)
    if width < 16:
        assert report.served_nbytes == 4 * 70 * width


def test_narrow_tables_stay_and_patterns_choose():
    model = nn.ModuleDict({"wide": nn.Embedding(50, 16), "narrow": nn.Embedding(50, 4)})
    narrow = model["narrow"]
    embcomp.truncate_(model, 8, of=embcomp.LowBit(bits=4))
    assert model["narrow"] is narrow
    assert embcomp.served_nbytes(model["wide"]) == 50 * 8 // 2 + 4
    model = Products()
    embcomp.truncate_(model, {"user": 2, "item": 3})
    assert [int((table(torch.tensor(0)) != 0).sum()) for table in (model.user, model.item)] == [2, 3]
    model = torch.nn.ModuleDict({"a": torch.nn.Embedding(9, 16), "b": torch.nn.Embedding(9, 4)})
    narrow = model["b"]
    embcomp.truncate_(model, {"*": 8})  # a table that is not wider stays, as for a single width
    assert model["b"] is narrow
    assert int((model["a"](torch.tensor(0)) != 0).sum()) == 8
    with pytest.raises(ValueError, match=r"'user'.*width 17 is above its embedding_dim 16"):
        embcomp.truncate_(Products(), {"user": 17})


def test_one_training_serves_many_widths():
    """Products of rank 6 with falling weights: one nested training comes close to the best table of each width."""
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(40, 6))[0], torch.linalg.qr(torch.randn(30, 6))[0]
    values = torch.tensor([8.0, 6, 4, 3, 2, 1])
    target = (left * values) @ right.T
    users, items = torch.arange(40).repeat_interleave(30), torch.arange(30).repeat(40)
    lost = {}
    for nested in (False, True):
        model = Products(dim=6)
        for table in (model.user, model.item):
            nn.init.normal_(table.weight, std=0.3)
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        for _ in range(300):
            optimizer.zero_grad()

            def loss(model=model):
                return (model(users, items) - target.reshape(-1)).square().mean()

            (embcomp.nested_loss(model, loss, [1, 2, 3, 6]) if nested else loss()).backward()
            optimizer.step()
        for width in (1, 2, 3):
            with torch.no_grad(), embcomp.at_width(model, width):
                lost[nested, width] = float((model(users, items) - target.reshape(-1)).square().sum())
    for width in (1, 2, 3):
        best = float(values[width:].square().sum())  # Eckart and Young 1936
        assert lost[True, width] < 1.15 * best
        assert lost[False, width] > 1.3 * best


@pytest.mark.parametrize("width", [0, 17, True, 2.0, -1])
def test_impossible_widths_are_refused(width):
    with pytest.raises(ValueError, match="width must be an integer from 1 to 16"), embcomp.at_width(Products(), width):
        pass
    with pytest.raises(ValueError, match="width"):
        embcomp.truncate_(Products(), width)


def test_impossible_calls_are_refused():
    with pytest.raises(ValueError, match="at least one width"):
        embcomp.nested_loss(Products(), lambda: torch.zeros(()), [])
    with pytest.raises(ValueError, match="1 weights for 2 widths"):
        embcomp.nested_loss(Products(), lambda: torch.zeros(()), [2, 4], [1.0])
    with pytest.raises(ValueError, match="no embedding table"), embcomp.at_width(nn.Linear(2, 2), 1):
        pass
    with pytest.raises(ValueError, match="width"):
        Nested(width=0)
