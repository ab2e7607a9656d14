"""DeepHash: the network by hand, the moments of a fresh one, open ids, and what it learns in collections."""

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import embcomp
from embcomp import DeepHash, Table
from embcomp.methods.deep_hash import RANGE
from embcomp.nn import CompressedEmbedding
from embcomp.ops.hashing import hash_key, hash_rows_reference
from embcomp.torchrec import CompressedEmbeddingBagCollection


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_vectors_are_those_of_torchs_own_layers(layers: int) -> None:
    module = CompressedEmbedding(None, 12, DeepHash(width=9, hashes=40, layers=layers, seed=3))
    ids = torch.tensor([0, 7, 2**62])
    keys = torch.tensor([hash_key(3, "embedding", j) for j in range(40)])
    x = hash_rows_reference(ids, keys, RANGE).double() / (RANGE - 1) * 2 - 1
    assert float(x.min()) >= -1
    assert float(x.max()) <= 1
    net, parts = nn.Sequential(), module.combiner
    for matrix, bias in zip(parts.matrices, [*parts.biases, module.stores[0].weight[0]], strict=True):
        layer = nn.Linear(*matrix.shape)
        layer.weight.data, layer.bias.data = matrix.detach().t(), bias.detach()
        net.extend([layer, nn.ReLU()])
    torch.testing.assert_close(module(ids), net[:-1](x.float()))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.02), (0.3, 0.05), (-1.0, 0.1)])
@pytest.mark.parametrize("layers", [1, 4])
def test_fresh_vectors_have_the_moments_of_the_table_replaced(mean: float, std: float, layers: int) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Embedding(5000, 24)})
    nn.init.normal_(model["a"].weight, mean, std)
    embcomp.compress_(model, {"a": DeepHash(width=64, layers=layers)})
    for _ in range(2):
        weight = model["a"].weight.detach()
        assert float(weight.std()) == pytest.approx(std, rel=0.1)
        assert float(weight.mean()) == pytest.approx(mean, abs=0.1 * std)
        assert float(weight.mean(0).std()) < 0.15 * std  # ids differ; no column has a mean of its own
        model["a"].reset_parameters()


@pytest.mark.parametrize("bags", [True, False])
def test_a_collection_starts_like_its_tables(bags: bool) -> None:
    torch.manual_seed(1)
    tables = [EmbeddingBagConfig(name="a", num_embeddings=400, embedding_dim=8, feature_names=["x"])]
    if not bags:
        tables[0].init_fn = lambda weight: nn.init.normal_(weight, 0.5, 0.1)
    collection = CompressedEmbeddingBagCollection(tables, {"*": DeepHash(width=32)})
    ids = torch.arange(400)
    out = collection(KeyedJaggedTensor.from_lengths_sync(["x"], ids, torch.ones_like(ids))).values().detach()
    mean, std = (0.0, (1 / 400) ** 0.5 / 3**0.5) if bags else (0.5, 0.1)  # torchrec's own draws
    assert float(out.std()) == pytest.approx(std, rel=0.15)
    assert float(out.mean()) == pytest.approx(mean, abs=0.1 * std + 0.01 * mean)
    assert len([p for p in collection.parameters() if p.requires_grad]) == 1 + 3 + 2


def test_a_network_learns_a_small_table() -> None:
    torch.manual_seed(2)
    target = torch.randn(50, 8)
    module = CompressedEmbedding(50, 8, DeepHash(width=64, hashes=64))
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (module.materialize() - target).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1


def test_bytes_and_budgets() -> None:
    tables = [Table("a", 100_000, 16), Table("b", 500, 8)]
    method = DeepHash.for_budget(tables, 500_000, hashes=128, layers=3)
    w = method.width
    floats = 2 * (129 * w + 2 * (w + 1) * w) + (w + 1) * (16 + 8)  # hidden layers, the last with its bias
    assert method.sizes(tables).nbytes() == 4 * floats + 2 * 128 * 8 <= 500_000
    wider = DeepHash(width=w + 1, hashes=128, layers=3)
    assert wider.sizes(tables).nbytes() > 500_000
    with pytest.raises(ValueError, match="width"):
        DeepHash(width=0)
    with pytest.raises(ValueError, match="layers"):
        DeepHash(width=3, layers=0)


@pytest.mark.parametrize("share", ["10%", "1%"])
def test_few_bytes_make_a_small_network_that_tells_ids_apart(share):
    """With a thousand hashes of each id they were a network of one unit, which may give all ids one vector."""
    tables = [Table(name, ids, 16) for name, ids in {"user": 6040, "item": 3668, "age": 7, "zip": 3439}.items()]
    method = DeepHash.for_budget(tables, share)
    assert method.width >= 4
    assert method.hashes == 8 * method.width
    for seed in range(10):
        torch.manual_seed(seed)
        vectors = CompressedEmbedding(1000, 16, method).materialize()
        assert len(vectors.unique(dim=0)) > 800
    assert DeepHash.for_budget(tables, share, hashes=16).hashes == 16
    assert DeepHash.for_budget([Table("user", 10**6, 64)], "10%").hashes == 1024
