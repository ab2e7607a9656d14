"""Behavior models: each pooling against its formula event by event, and what all of them do."""

import pytest
import torch
from torch import nn

import embcomp
from embcomp.sdim import SDIM
from recsys_models.behavior import POOLINGS, BehaviorModel, distinct, latest

ITEMS, DIM, LENGTH = 60, 8, 14
CATEGORIES = torch.arange(ITEMS) % 3
every_pooling = pytest.mark.parametrize("pooling", POOLINGS)


def make(pooling: str, items: nn.Module | None = None, **options) -> BehaviorModel:
    torch.manual_seed(0)
    items = nn.Embedding(ITEMS, DIM, padding_idx=0) if items is None else items
    if pooling in ("sim", "eta"):
        options = {"top": 5, **options}
    if pooling == "sim":
        options["categories"] = CATEGORIES
    return BehaviorModel(items, pooling=pooling, hidden=options.pop("hidden", [16]), **options)


def batch(seed: int = 0, size: int = 4, num: int = 3):
    """Histories of 0 to LENGTH events, padded with 0 at the end."""
    g = torch.Generator().manual_seed(seed)
    candidates = torch.randint(1, ITEMS, (size, num), generator=g)
    lengths = torch.tensor([LENGTH, 0, 1, 6])[:size].unsqueeze(1)
    mask = torch.arange(LENGTH) < lengths
    history = torch.randint(1, ITEMS, (size, LENGTH), generator=g).where(mask, 0)
    return candidates, history, mask


def mlp(module, x):
    for layer in module:
        x = layer.weight @ x + layer.bias if isinstance(layer, nn.Linear) else layer(x)
    return x


def din(layer, asked, events):
    units = [mlp(layer.unit, torch.cat((asked, e, asked - e, asked * e))) for e in events]
    return sum((u * e for u, e in zip(units, events, strict=True)), torch.zeros(DIM))


def dot(layer, asked, events):
    if not len(events):
        return torch.zeros(DIM)
    return torch.stack([asked @ e / DIM**0.5 for e in events]).softmax(0) @ events


def average(layer, asked, events):
    return sum(events, torch.zeros(DIM)) / max(len(events), 1)


def formula(model: BehaviorModel, pooling: str, item: int, ids: list[int]) -> torch.Tensor:
    """The history `ids` as `item` sees it, one event after the other."""
    weight, layer = model.items.weight, model.pooling
    asked = weight[item]
    if pooling == "sim":
        ids = [i for i in ids if i % 3 == item % 3][-layer.top :]
    if pooling == "eta":
        bits = lambda v: v @ layer.projection.matrix > 0  # noqa: E731
        distance = [int((bits(weight[i]) != bits(asked)).sum()) for i in ids]
        near = sorted(range(len(ids)), key=distance.__getitem__)[: layer.top]
        ids = [ids[place] for place in near]
    events = weight[torch.tensor(ids, dtype=torch.int64)]
    if pooling == "sdim":
        return SDIM.forward(layer, asked[None], events[None])[0]
    return {"average": average, "dot": dot}.get(pooling, din)(getattr(layer, "attention", layer), asked, events)


@every_pooling
def test_the_formula(pooling):
    model = make(pooling)
    if pooling == "eta":  # distances that differ, so that the nearest are the nearest for sure
        model.pooling.projection.matrix = torch.randn(DIM, 400, generator=torch.Generator().manual_seed(1))
    candidates, history, mask = batch()
    logits = model(candidates, history, mask)
    for row in range(4):
        for column in range(3):
            item, ids = int(candidates[row, column]), history[row][mask[row]].tolist()
            pooled, asked = formula(model, pooling, item, ids), model.items.weight[item]
            expected = mlp(model.mlp, torch.cat((asked, pooled, asked * pooled)))[0]
            torch.testing.assert_close(logits[row, column], expected, rtol=1e-4, atol=1e-5)


@every_pooling
def test_shapes_rows_and_empty_histories(pooling):
    model = make(pooling, num_dense=2)
    candidates, history, mask = batch()
    dense = torch.rand(4, 3, 2)
    logits = model(candidates, history, mask, dense)
    assert logits.isfinite().all()
    torch.testing.assert_close(model(candidates[:, 1], history, mask, dense[:, 1]), logits[:, 1])
    for row in range(4):
        alone = [t[row : row + 1] for t in (candidates, history, mask, dense)]
        torch.testing.assert_close(model(*alone), logits[row : row + 1])
    changed = history.where(mask, 5)  # what the mask hides
    assert torch.equal(model(candidates, changed, mask, dense), logits)
    assert model(candidates[:0], history[:0], mask[:0], dense[:0]).shape == (0, 3)
    model(candidates, history, mask, dense).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_pooling
def test_learns_which_items_go_together_with_any_embedding(pooling):
    """A click says that the category of the candidate occurs in the history; one table serves both sides."""
    items = embcomp.nn.CompressedEmbedding(ITEMS, DIM, embcomp.DoubleHash(rows=50))
    model = make(pooling, items, hidden=[32])
    g = torch.Generator().manual_seed(0)
    history = torch.randint(0, 20, (128, 6), generator=g) * 3 + torch.randint(0, 3, (128, 1), generator=g)
    candidates = torch.randint(0, ITEMS, (128,), generator=g)
    label = (candidates % 3 == history[:, 0] % 3).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(candidates, history), label)
        loss.backward()
        optimizer.step()
    assert loss < 0.3


def test_short_histories_are_the_last_events():
    candidates, history, mask = batch()
    long, short = make("din"), make("din", last=4)
    ids = history[:, -4:].clone()
    ids[2], ids[3] = torch.tensor([history[2, 0], 0, 0, 0]), history[3, 2:6]
    own = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    torch.testing.assert_close(short(candidates, history, mask), long(candidates, ids, own))
    flipped = latest(history.flip(1), mask.flip(1), 4)  # padding in front
    assert flipped[0][3].tolist() == history.flip(1)[3, -4:].tolist()
    assert flipped[1].sum(1).tolist() == [4, 0, 1, 4]


@every_pooling
def test_compiles_without_a_graph_break(pooling):
    model = make(pooling, last=9)
    inputs = batch()
    expected = model(*inputs)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), expected)
    torch._dynamo.reset()


@every_pooling
def test_state_dict_round_trip(pooling):
    model, other = make(pooling), make(pooling, nn.Embedding(ITEMS, DIM))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(*batch()), other(*batch()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "choose one of average, dot, din"),
        ({"pooling": "din", "last": 0}, "last is 0"),
        ({"pooling": "sim"}, "'sim' needs categories"),
        ({"pooling": "din", "categories": CATEGORIES}, "'din' does not read categories"),
        ({"pooling": "din", "top": 3}, "pooling 'din'.*'top'"),
        ({"pooling": "eta", "top": 0}, "top is 0"),
        ({"pooling": "eta", "attention": "max"}, "choose one of din, dot"),
        ({"pooling": "sdim", "num_hashes": 7}, "not a multiple of hash_width"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        BehaviorModel(nn.Embedding(ITEMS, DIM), **options)


def test_dense_columns_are_checked():
    with pytest.raises(ValueError, match=r"dense has shape \[4, 3, 1\], expected \[4, 3, 2\]"):
        make("dot", num_dense=2)(*batch(), torch.zeros(4, 3, 1))
    with pytest.raises(ValueError, match=r"dense has shape None, expected \[4, 3, 2\]"):
        make("dot", num_dense=2)(*batch())


@pytest.mark.parametrize("spread", [1, 50, 2**40])
@pytest.mark.parametrize("shape", [(3, 7), (1, 1), (2, 0)])
def test_distinct_ids_are_those_of_torch(spread, shape):
    ids = spread * torch.randint(-5, 9, shape, generator=torch.Generator().manual_seed(0))
    found, places = distinct(ids)
    assert all(map(torch.equal, (found, places), torch.unique(ids, return_inverse=True)))


@pytest.mark.parametrize("num", [1, 40])
def test_sdim_by_distinct_items_is_sdim_by_events(num):
    model = make("sdim")
    generator = torch.Generator().manual_seed(1)
    candidates = torch.randint(1, ITEMS, (4, num), generator=generator)
    _, history, mask = batch()
    model(candidates, history, mask).square().sum().backward()
    asked, events = model.items(candidates), model.items(history)
    other = model.head(asked, model.pooling(asked, events, mask))
    torch.testing.assert_close(model(candidates, history, mask), other)
    (gradient,) = torch.autograd.grad(other.square().sum(), model.items.weight)
    torch.testing.assert_close(model.items.weight.grad, gradient, rtol=1e-4, atol=1e-6)
