"""Low rank: vectors by hand, the SVD as the best start, with few bits around it."""

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import embcomp
from embcomp import HashingTrick, LowBit, LowRank, Table
from embcomp.methods.narrow import equalizing
from embcomp.nn import CompressedEmbedding
from embcomp.torchrec import CompressedEmbeddingBagCollection


def test_vectors_are_narrow_rows_times_the_matrix() -> None:
    module = CompressedEmbedding(30, 12, LowRank(rank=5, of=HashingTrick(rows=7)))
    rows = module.stores[0].weight[module.encoder(torch.arange(30))[0].rows.squeeze(-1)]
    torch.testing.assert_close(module.materialize(), rows @ module.combiner.matrix)
    assert module.stores[0].weight.shape == (7, 5)


def test_fresh_vectors_have_the_deviation_of_the_table_replaced() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Embedding(3000, 32)})
    nn.init.normal_(model["a"].weight, std=0.02)
    embcomp.compress_(model, {"a": LowRank(rank=8)})
    assert abs(float(model["a"].materialize().detach().std()) / 0.02 - 1) < 0.15


@pytest.mark.parametrize("weighted", [False, True])
def test_a_warm_start_is_the_truncated_svd(weighted: bool) -> None:
    torch.manual_seed(1)
    trained = torch.randn(200, 6) @ torch.randn(6, 16) + 0.1 * torch.randn(200, 16)
    model = nn.ModuleDict({"a": nn.Embedding.from_pretrained(trained.clone(), freeze=False)})
    counts = torch.rand(200) + 0.1
    embcomp.compress_(model, {"a": LowRank(rank=3)}, init="warm", counts={"a": counts} if weighted else None)
    root = counts.sqrt().unsqueeze(1) if weighted else torch.ones(200, 1)
    u, s, v = torch.linalg.svd(root * trained, full_matrices=False)
    best = ((u[:, :3] * s[:3]) @ v[:3] / root) if not weighted else trained @ v[:3].t() @ v[:3]
    torch.testing.assert_close(model["a"].materialize().detach(), best, atol=2e-4, rtol=1e-3)


def test_shared_rows_are_fitted_behind_the_matrix() -> None:
    torch.manual_seed(2)
    trained = torch.randn(60, 3) @ torch.randn(3, 8)
    trained = trained[torch.arange(60) % 5]
    model = nn.ModuleDict({"a": nn.Embedding.from_pretrained(trained, freeze=False)})
    embcomp.compress_(model, {"a": LowRank(rank=3, of=embcomp.DoubleHash(rows=60))}, init="warm")
    lost = (model["a"].materialize() - trained).square().sum() / trained.square().sum()
    assert float(lost.detach()) < 0.25


def test_few_bits_for_few_values() -> None:
    torch.manual_seed(3)
    trained = torch.randn(500, 4) @ torch.randn(4, 32)
    model = nn.ModuleDict({"a": nn.Embedding.from_pretrained(trained.clone(), freeze=False)})
    report = embcomp.compress_(model, {"a": LowBit(bits=4, of=LowRank(rank=4))}, init="warm")
    assert report.served_nbytes == embcomp.served_nbytes(model) == 500 * 2 + 4 + 4 * 4 * 32
    lost = (model["a"].materialize() - trained).square().sum() / trained.square().sum()
    assert float(lost.detach()) < 0.013  # 4 bits of a normal distribution lose .0115 (Max 1960, table II)


def test_few_bits_lose_as_little_where_directions_differ_in_variance() -> None:
    """The columns of a warm start have one variance, though the directions of the table do not."""
    draw = torch.Generator().manual_seed(4)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=draw))[0]
    trained = torch.randn(3000, 16, generator=draw) * 3.0 ** -torch.arange(16.0) @ turn
    for rank in (2, 5):
        model = nn.ModuleDict({"a": nn.Embedding.from_pretrained(trained.clone(), freeze=False)})
        embcomp.compress_(model, LowBit(bits=3, of=LowRank(rank=rank)), init="warm")
        rows = model["a"].stores[0].weight.detach().double()
        moments = rows.square().mean(0)
        torch.testing.assert_close(moments, moments.mean().expand(rank), rtol=1e-3, atol=0)
        assert moments.sum() == pytest.approx(float((trained @ turn.T)[:, :rank].square().mean(0).sum()), rel=1e-2)
        lost = (model["a"].materialize().detach() - trained).square().sum() / trained.square().sum()
        assert float(lost) < 9.0**-rank + 0.05  # what is cut off, and .037 of a normal distribution in 3 bits


def test_many_columns_are_turned_to_one_variance_by_a_rotation() -> None:
    variances = torch.rand(400, dtype=torch.float64) ** 8
    turn = equalizing(variances)
    torch.testing.assert_close((turn.T * variances @ turn).diagonal(), variances.mean().expand(400))
    torch.testing.assert_close(turn.T @ turn, torch.eye(400, dtype=torch.float64), atol=1e-12, rtol=0)


def test_principal_axes_are_those_of_the_singular_value_decomposition() -> None:
    """The narrow rows are U S of the table, so that few bits clip its largest directions and stretch its smallest."""
    draw = torch.Generator().manual_seed(4)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=draw))[0]
    trained = torch.randn(3000, 8, generator=draw) * 2.0 ** -torch.arange(8.0) @ turn
    model = nn.ModuleDict({"a": nn.Embedding.from_pretrained(trained.clone(), freeze=False)})
    embcomp.compress_(model, LowRank(rank=3, axes="principal"), init="warm")
    left, values, right = torch.linalg.svd(trained, full_matrices=False)
    rows = model["a"].stores[0].weight.detach()
    torch.testing.assert_close(rows.abs(), (left * values)[:, :3].abs(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model["a"].materialize(), (left * values)[:, :3] @ right[:3], atol=1e-4, rtol=1e-4)
    spread = []
    for axes in ("equal", "principal"):
        model = nn.ModuleDict({"a": nn.Embedding.from_pretrained(trained.clone(), freeze=False)})
        embcomp.compress_(model, LowBit(bits=2, of=LowRank(rank=8, axes=axes)), init="warm")
        spread.append(torch.linalg.svdvals(model["a"].materialize().detach()))
    assert spread[1][0] / spread[1][-1] < spread[0][0] / spread[0][-1] / 2


def test_the_matrix_is_a_parameter_of_a_collection_and_bags_are_pooled() -> None:
    tables = [EmbeddingBagConfig(name="a", num_embeddings=40, embedding_dim=8, feature_names=["x"])]
    collection = CompressedEmbeddingBagCollection(tables, {"*": LowRank(rank=4)})
    assert embcomp.nbytes(collection) == 4 * (40 * 4 + 4 * 8)
    assert sum(p.numel() for p in collection.parameters()) == 40 * 4 + 4 * 8
    batch = KeyedJaggedTensor.from_lengths_sync(["x"], torch.tensor([1, 2, 3]), torch.tensor([2, 1]))
    out = collection(batch).values()
    state = collection.state_dict()
    (rows,) = [v for k, v in state.items() if k.endswith("a.weight")]
    (matrix,) = [v for k, v in state.items() if k.endswith("matrix")]
    torch.testing.assert_close(out, torch.stack([rows[[1, 2]].sum(0), rows[3]]) @ matrix)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in collection.parameters())


def test_budgets_and_bad_settings() -> None:
    tables = [Table("a", 1000, 16), Table("b", 50, 8)]
    method = LowRank.for_budget(tables, 20_000)
    assert method.rank == 4
    assert method.plan(tables).nbytes() == 4 * (1050 * 4 + 4 * 24)
    with pytest.raises(ValueError, match=r"LowRank: a budget of 100 bytes is too small.* 4296 bytes"):
        LowRank.for_budget(tables, 100)
    with pytest.raises(ValueError, match=r"table 'b': rank 12 is above its embedding_dim 8"):
        LowRank(rank=12).plan(tables)
    for wrong in (0, True, 1.5):
        with pytest.raises(ValueError, match="LowRank: rank must be "):
            LowRank(rank=wrong)
