"""HotRows: who reads what, the sketch against exact sums, moves of rows and optimizer state, bags, collections."""

import copy
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor

import embcomp
from embcomp import HotRows, HotTracker, Table
from embcomp.nn import CompressedEmbedding, CompressedEmbeddingBag
from embcomp.ops.hot_sketch import HotSketch
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection, fuse_
from embcomp.torchrec.holders import stores_of

N, D, ROWS = 300, 6, 20


def made() -> CompressedEmbedding:
    torch.manual_seed(0)
    return CompressedEmbedding(N, D, HotRows(rows=ROWS, own_share=0.25))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 10, width=32)), max_size=120), st.integers(1, 6))
def test_the_sketch_holds_the_sum_between_two_bounds(stream: list[tuple[int, float]], step: int) -> None:
    sketch, sums = HotSketch(buckets=4, cells=4), Counter()
    for start in range(0, len(stream), step):
        part = stream[start : start + step]
        sketch.add(torch.tensor([i for i, _ in part]), torch.tensor([s for _, s in part], dtype=torch.float32))
        for i, score in part:
            sums[i] += score
    ids, scores = sketch.held()
    total = sum(sums.values())
    assert len(ids.unique()) == len(ids)
    for i, score in zip(ids.tolist(), scores.tolist(), strict=True):
        (bound,) = sketch.scores[sketch.keys == i].tolist()
        assert score * (1 - 1e-4) - 1e-3 <= sums[i] <= bound * (1 + 1e-4) + 1e-3
    assert float(sketch.scores.sum()) == pytest.approx(total, rel=1e-4, abs=1e-3)
    if len(sums) <= 4:  # no bucket overflows
        torch.testing.assert_close(
            sketch.scores_of(torch.tensor(sorted(sums), dtype=torch.int64)),
            torch.tensor([sums[i] for i in sorted(sums)], dtype=torch.float32),
        )


def test_owners_read_their_rows_and_the_others_hashed_ones() -> None:
    module = made()
    (before,) = module.encoder(torch.arange(N))
    assert bool((before.rows >= 5).all())  # nobody owns a row at first
    module.encoder.set_owners(torch.tensor([9, 2]), torch.tensor([4, 1]))
    (after,) = module.encoder(torch.arange(N))
    expected = before.rows.clone()
    expected[9], expected[2] = 4, 1
    assert torch.equal(after.rows, expected)
    twin = made()
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin.materialize(), module.materialize())


@pytest.mark.parametrize("kind", [torch.optim.Adagrad, torch.optim.AdamW])
def test_rows_and_state_move_with_their_owner(kind: type[torch.optim.Optimizer]) -> None:
    module = made()
    optimizer = kind(module.parameters(), lr=0.1)
    tracker = HotTracker(module, optimizer=optimizer, every=3)
    target = torch.randn(N, D)
    ids = torch.tensor([5, 5, 5, 80, 80, 200, 200, 17, 18, 19, 20])
    for step in range(3):
        optimizer.zero_grad()
        (module(ids) - target[ids]).square().sum().backward()
        optimizer.step()
        before, state = module.materialize().detach(), copy.deepcopy(optimizer.state_dict()["state"][0])
        moved = tracker.step()
        assert moved == (5 if step == 2 else 0)
    owners = tracker.owners()
    assert {5, 80, 200} <= set(owners.tolist())
    torch.testing.assert_close(module.materialize().detach(), before)  # vectors go on from where they were
    after = optimizer.state_dict()["state"][0]
    (rows,) = module.encoder(owners)
    shared = module.encoder.shared_rows(owners)
    for name, value in after.items():
        if value.shape[:1] == (ROWS,):
            assert torch.equal(value[rows.rows[:, 0]], state[name][shared])
    for _ in range(3):  # an owner learns alone
        optimizer.zero_grad()
        module(owners[:1]).sum().backward()
        optimizer.step()
    changed = (module.materialize().detach() != before).any(1).nonzero().squeeze(1)
    assert owners[0] in changed


def test_another_takes_over_when_its_score_is_so_many_times_higher() -> None:
    module = CompressedEmbedding(N, D, HotRows(rows=4, own_share=0.25))
    tracker = HotTracker(module, every=1, hysteresis=2.0, decay=1.0)

    def train(id: int, size: float) -> int:
        (module(torch.tensor([id])) * size / D**0.5).sum().backward()
        return tracker.step()

    assert train(3, 1.0) == 1
    assert train(8, 1.9) == 0
    assert tracker.owners().tolist() == [3]
    assert train(8, 0.3) == 1
    assert tracker.owners().tolist() == [8]
    assert train(3, 1.0) == 0
    tracker.close()
    assert train(3, 100.0) == 0
    decaying = HotTracker(module, every=1, hysteresis=1.0, decay=0.1)
    for size, owner in ((5.0, 40), (1.0, 41)):  # 5 has become .5
        (module(torch.tensor([owner])) * size / D**0.5).sum().backward()
        decaying.step()
        assert decaying.owners().tolist() == [owner]


def norms_by_hand(bags: list[list[int]], grad: torch.Tensor, mean: bool) -> Counter:
    found = Counter()
    for ids, row in zip(bags, grad, strict=True):
        for i in ids:
            found[i] += float(row.norm()) / (len(ids) if mean else 1)
    return found


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_ids_of_a_bag_have_the_gradient_of_the_bag(mode: str) -> None:
    bag = CompressedEmbeddingBag(N, D, HotRows(rows=ROWS), mode=mode, padding_idx=0)
    tracker = HotTracker(bag, every=10**6)
    grad, bags = torch.randn(3, D), [[1, 4], [4], [7, 8, 9]]
    flat, offsets = torch.tensor([i for ids in bags for i in ids]), torch.tensor([0, 2, 3])
    bag(flat, offsets).backward(grad)
    bag(torch.tensor([[0, 0]])).sum().backward()  # the padding is nobody
    tracker.move()
    expected = norms_by_hand(bags, grad, mode == "mean")
    ids, scores = tracker.sketch.held()
    assert set(ids.tolist()) == set(expected)
    for i, score in zip(ids.tolist(), (scores / tracker.decay).tolist(), strict=True):
        assert score == pytest.approx(expected[i], rel=1e-4)


@pytest.mark.parametrize("bags", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_collections_move_rows_too(bags: bool, fused: bool) -> None:
    torch.manual_seed(3)
    kind = EmbeddingBagConfig if bags else EmbeddingConfig
    drop_in = CompressedEmbeddingBagCollection if bags else CompressedEmbeddingCollection
    tables = [kind(name="a", num_embeddings=N, embedding_dim=8, feature_names=["x", "y"])]
    model = nn.ModuleDict({"c": drop_in(tables, {"*": HotRows(rows=ROWS)})})
    if fused:
        model = fuse_(model, optimizer=torch.optim.Adagrad, optimizer_kwargs={"lr": 0.1})
    tracker = HotTracker(model["c"], table="a", every=2)
    ids = torch.tensor([3, 3, 5, 9, 3, 11])
    for _ in range(2):
        result = model["c"](KeyedJaggedTensor.from_lengths_sync(["x", "y"], ids, torch.tensor([2, 1, 1, 2])))
        out = result.values() if bags else torch.cat([part.values() for part in result.values()])
        out.square().sum().backward()
        (rows,) = stores_of(model["c"]).values()
        encoder = model["c"].assemble.outputs[0].plan.encoder
        before = rows.detach()[encoder(torch.arange(N))[0].rows[:, 0]].clone()
        moved = tracker.step()
    assert moved == 4
    assert tracker.owners().tolist() == [3, 5, 9, 11]
    assert torch.equal(rows.detach()[encoder(torch.arange(N))[0].rows[:, 0]], before)
    with pytest.raises(ValueError, match=r"table='b': name one of the collection's tables, \['a'\]"):
        HotTracker(model["c"], table="b")


def test_a_saved_tracker_goes_on_as_one_that_never_stopped() -> None:
    def train(module: CompressedEmbedding, tracker: HotTracker, steps: range) -> None:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        for step in steps:
            random = torch.Generator().manual_seed(step)
            ids = (torch.rand(40, generator=random) ** 3 * N).long()
            optimizer.zero_grad()
            (module(ids) - 1).square().sum().backward()
            optimizer.step()
            tracker.step()

    whole = made()
    train(whole, HotTracker(whole, every=4), range(20))
    first = made()
    tracker = HotTracker(first, every=4)
    train(first, tracker, range(10))
    second = made()
    second.load_state_dict(first.state_dict())
    again = HotTracker(second, every=4)
    again.load_state_dict(tracker.state_dict())
    train(second, again, range(10, 20))
    assert torch.equal(second.materialize(), whole.materialize())
    with pytest.raises(ValueError, match="the state is of a sketch of"):
        HotTracker(second, room=9).load_state_dict(tracker.state_dict())


def test_bytes_and_refusals() -> None:
    tables = [Table("a", 10_000, 16), Table("b", None, 8)]
    method = HotRows(rows=100, own_share=0.3)
    assert method.sizes(tables).nbytes() == method.plan(tables).nbytes() == 4 * 100 * 24 + 2 * (30 * 12 + 16)
    for module, said in (
        (CompressedEmbedding(N, D, embcomp.HashingTrick(rows=9)), "is for float rows of HotRows, got HashingTrick"),
        (CompressedEmbedding(N, D, embcomp.LowBit(of=HotRows(rows=9))), "is for float rows of HotRows"),
        (nn.Linear(2, 2), "got Linear; give it the module of the table"),
    ):
        with pytest.raises(ValueError, match=said):
            HotTracker(module)
    for wrong in ({"every": 0}, {"decay": 1.5}, {"hysteresis": 0.5}, {"room": 0}, {"table": "a"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            HotTracker(made(), **wrong)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_scores_of_bags_with_padding_are_the_norms_of_the_gradients_of_rows(mode):
    """As torch has them for a table of its own rows."""
    full = nn.EmbeddingBag(50, 4, mode=mode, padding_idx=0)
    ids = torch.tensor([[5, 9, 0, 0], [7, 0, 3, 9]])
    weight = torch.tensor([[1.0, 2.0, 0.5, 1.0], [0.3, 1.0, -2.0, 1.0]])
    (full(ids) * weight).sum().backward()
    bags = embcomp.nn.CompressedEmbeddingBag(50, 4, HotRows(rows=20), mode=mode, padding_idx=0)
    tracker = HotTracker(bags)
    (bags(ids) * weight).sum().backward()
    told = tracker.state_dict()
    for id, norm in zip(told["ids"].tolist(), told["sums"].tolist(), strict=True):
        bags_of = [(bag, w) for bag, w in zip(ids, weight, strict=True) if id in bag]
        rows = [w.norm() / (int((bag != 0).sum()) if mode == "mean" else 1) for bag, w in bags_of]
        assert norm == pytest.approx(float(sum(rows)))
        if len(rows) == 1:
            assert norm == pytest.approx(float(full.weight.grad[id].norm()))
    assert told["ids"].tolist() == [3, 5, 7, 9]


def test_bags_of_largest_values_are_refused():
    bags = embcomp.nn.CompressedEmbeddingBag(50, 4, HotRows(rows=20), mode="max")
    with pytest.raises(ValueError, match="mode='max' trains single columns"):
        HotTracker(bags)
