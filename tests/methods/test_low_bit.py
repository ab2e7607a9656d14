"""What is special about tables on a grid: values, bytes, steps, warm starts, the same vectors in torch and torchrec."""

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import embcomp
from embcomp import LowBit, Table
from embcomp.holders import coded_tables
from embcomp.nn import CompressedEmbedding, CompressedEmbeddingBag
from embcomp.torchrec import CompressedEmbeddingBagCollection, fuse_

STEPS = ("table", "row", 3)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_vectors_lie_on_the_grid_that_would_be_served(bits: int, step: str | int) -> None:
    module = CompressedEmbedding(50, 8, LowBit(bits=bits, step=step))  # pyright: ignore[reportArgumentType]
    ((weight, codec),) = coded_tables(module)
    served = codec.code(weight)
    assert int(served.codes.max()) < 2**bits
    steps = served.constants["step"]
    rows = torch.arange(50)
    own = steps[rows // 3] if step == 3 else steps.expand(50) if step == "table" else steps
    decoded = (served.codes.float() - 2 ** (bits - 1) + 0.5) * own.unsqueeze(-1)
    assert torch.equal(decoded, module.materialize().detach())
    values = weight[:, :8]
    inside = values.abs() < own.unsqueeze(-1) * 2 ** (bits - 1)
    assert ((decoded - values).abs() <= own.unsqueeze(-1) / 2 * 1.0001)[inside].all()


def test_bytes_of_both_forms() -> None:
    tables = [Table("a", 1000, 12)]
    for step, steps, columns in (("table", 1, 0), ("row", 0, 4), (7, 143, 0)):
        plan = LowBit(bits=3, step=step).plan(tables)  # pyright: ignore[reportArgumentType]
        assert plan.training_nbytes() == plan.nbytes() == 4 * (1000 * (12 + columns) + steps)
        served_steps = 1000 if step == "row" else steps
        assert plan.served_nbytes() == 1000 * 12 * 3 // 8 + 4 * served_steps
    unified = LowBit(bits=2, of=embcomp.UnifiedEmbedding(rows=100, chunk_dim=4))
    shared = unified.plan([Table("a", 50, 8), Table("b", 70, 12)])
    assert shared.served_nbytes() == 100 * 1 + 4 + 8 * 5  # rows, the step, keys


def test_tables_of_one_instance_share_the_store_and_its_step() -> None:
    model = nn.ModuleDict({"a": nn.Embedding(90, 8), "b": nn.Embedding(70, 8)})
    report = embcomp.compress_(model, {"*": LowBit(bits=4, of=embcomp.UnifiedEmbedding(rows=60, chunk_dim=4))})
    assert len(list(coded_tables(model))) == 1
    assert report.served_nbytes == embcomp.served_nbytes(model) == 60 * 2 + 4 + 8 * 4
    assert report.training_nbytes == embcomp.training_nbytes(model) == 60 * 16 + 4 + 8 * 4
    assert "LowBit(UnifiedEmbedding)" in str(report)


def test_a_warm_start_is_the_best_grid_for_the_trained_rows() -> None:
    torch.manual_seed(3)
    trained = torch.randn(400, 8) * 0.02
    for bits, most in ((8, 2e-4), (4, 0.013), (2, 0.13), (1, 0.37)):  # Max 1960: the least for a normal distribution
        model = nn.ModuleDict({"a": nn.Embedding.from_pretrained(trained.clone(), freeze=False)})
        embcomp.compress_(model, {"a": LowBit(bits=bits)}, init="warm")
        got = model["a"].materialize().detach()
        assert float((got - trained).square().mean() / trained.square().mean()) < most
        assert torch.equal(model["a"].stores[0].weight, trained)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.02), (4, 0.2)])
@pytest.mark.parametrize("read", [1.0, 0.3, 0.05, 0.01])
def test_the_grid_is_that_of_the_rows_that_are_read(bits: int, most: float, read: float) -> None:
    """Rows that are never read stay at their start or decay; those that are read must not be cut off for them."""
    torch.manual_seed(4)
    rows = torch.randn(20_000, 8) * torch.where(torch.rand(20_000, 1) < read, 0.2, 0.002)
    module = CompressedEmbedding(20_000, 8, LowBit(bits=bits))
    ((weight, _),) = coded_tables(module)
    with torch.no_grad():
        weight.copy_(rows)
    large = rows.abs().amax(1) > 0.02
    error = (module.materialize()[large] - rows[large]).square().mean().sqrt() / rows[large].square().mean().sqrt()
    assert error < most
    if read == 1.0:  # the best step for a normal distribution (Max 1960) as before
        ((weight, codec),) = coded_tables(module)
        step = {8: 0.0308, 4: 0.3352}[bits] * rows.double().square().mean().sqrt()
        assert codec.code(weight).constants["step"].item() == pytest.approx(step.item(), rel=1e-3)


def test_the_grid_keeps_up_with_rows_whoever_wrote_them() -> None:
    module = CompressedEmbedding(60, 8, LowBit(bits=4))
    before = module.materialize().detach()
    with torch.no_grad():
        module.stores[0].weight.mul_(2.0**-9)
    torch.testing.assert_close(module.materialize(), before * 2.0**-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("bags", [3, 60])  # fewer and more reads than rows: decoded as read, and decoded once
def test_a_collection_pools_what_single_tables_give(step: str | int, weighted: bool, bags: int) -> None:
    torch.manual_seed(1)
    of = embcomp.UnifiedEmbedding(rows=40, chunk_dim=4)
    tables = [EmbeddingBagConfig(name="a", num_embeddings=90, embedding_dim=8, feature_names=["x", "y"])]
    method = LowBit(bits=3, of=of, step=step)  # pyright: ignore[reportArgumentType]
    collection = CompressedEmbeddingBagCollection(tables, {"*": method}, is_weighted=weighted)
    lengths = torch.randint(0, 4, (2 * bags,))
    total = int(lengths.sum())
    weights = torch.rand(total) if weighted else None
    batch = KeyedJaggedTensor.from_lengths_sync(["x", "y"], torch.randint(90, (total,)), lengths, weights)
    out = collection(batch)
    ((stored, codec),) = coded_tables(collection)
    vectors = codec.decode_table(stored)
    encoder = collection.assemble.outputs[0].plan.encoder
    for key in ("x", "y"):
        ids = batch[key]
        single = torch.cat([vectors[chunk.rows.squeeze(-1)] for chunk in encoder(ids.values())], dim=1)
        factors = torch.ones(len(single)) if weights is None else ids.weights()
        for b, (start, stop) in enumerate(zip(ids.offsets()[:-1], ids.offsets()[1:], strict=True)):
            expected = (single[start:stop] * factors[start:stop].unsqueeze(-1)).sum(0)
            torch.testing.assert_close(out[key][b], expected)


def test_fused_training_moves_rows_and_the_step() -> None:
    torch.manual_seed(2)
    tables = [EmbeddingBagConfig(name="a", num_embeddings=90, embedding_dim=8, feature_names=["x"])]
    plain = CompressedEmbeddingBagCollection(tables, {"*": LowBit(bits=4, of=embcomp.DoubleHash(rows=30))})
    fused = CompressedEmbeddingBagCollection(tables, {"*": LowBit(bits=4, of=embcomp.DoubleHash(rows=30))})
    fused.load_state_dict(plain.state_dict())
    fuse_(fused, optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 0.5})
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    others = torch.optim.SGD([p for p in fused.parameters() if p.requires_grad], lr=0.5)
    batch = KeyedJaggedTensor.from_lengths_sync(["x"], torch.randint(90, (20,)), torch.tensor([2] * 10))
    for _ in range(3):
        for model, steps in ((plain, optimizer), (fused, others)):
            steps.zero_grad()
            model(batch).values().square().mean().backward()
            steps.step()
    for mine, theirs in zip(plain.state_dict().items(), fused.state_dict().items(), strict=True):
        assert mine[0] == theirs[0]
        if "extra_state" not in mine[0]:
            torch.testing.assert_close(mine[1], theirs[1])


def test_random_rounding_only_while_training() -> None:
    module = CompressedEmbeddingBag(30, 8, LowBit(bits=2, rounding="stochastic"), mode="sum")
    ids = torch.arange(30).unsqueeze(1)
    assert not torch.equal(module(ids), module(ids))
    module.eval()
    assert torch.equal(module(ids), module(ids))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"bits": 0}, "bits must be an integer from 1 to 8, got 0"),
        ({"bits": 9}, "got 9"),
        ({"bits": True}, "got True"),
        ({"bits": 2.0}, "got 2.0"),
        ({"step": "column"}, "step must be 'table' or 'row' or an integer of at least 1"),
        ({"step": 0}, "got 0"),
        ({"rounding": "up"}, "rounding must be 'nearest' or 'stochastic'"),
        ({"of": "Full"}, "of must be a method's configuration"),
    ],
)
def test_settings_that_do_not_exist(settings: dict, text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        LowBit(**settings)


def test_a_grid_around_a_grid_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"table 'a': its rows are coded already"):
        LowBit(of=LowBit(bits=8)).plan([Table("a", 10, 4)])


def test_budgets_are_in_served_bytes_and_take_the_settings_of_the_method_inside() -> None:
    tables = [Table("a", 5000, 16), Table("b", 300, 16)]
    method = LowBit.for_budget(tables, 20_000, bits=2, of="UnifiedEmbedding", chunk_dim=8, balanced=True)
    assert method.of.chunk_dim == 8
    served = method.plan(tables).served_nbytes()
    assert 20_000 - 8 < served <= 20_000
    again = LowBit.for_budget(tables, 20_000, bits=2, of=embcomp.UnifiedEmbedding(rows=1, chunk_dim=8, balanced=True))
    assert again.of.rows == method.of.rows
    with pytest.raises(ValueError, match=r"LowBit: a budget of 10 bytes is too small.* \d+ bytes"):
        LowBit.for_budget(tables, 10, of="HashingTrick")
