"""Frozen tables of every method keep their vectors while the rest of the model is trained."""

import pytest
import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embcomp
from embcomp import Table
from embcomp.testing.examples import EXAMPLES

IDS, DIM = 40, 8


def train(model: nn.Module, vectors, steps: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the vectors before and after some steps."""
    before = vectors().detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(steps):
        model["out"](vectors()).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return before, vectors().detach()


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_vectors_of_a_frozen_table_stay(example):
    item = nn.Embedding.from_pretrained(torch.randn(IDS, DIM))
    model = nn.ModuleDict({"item": item, "out": nn.Linear(DIM, 1)})
    embcomp.compress_(model, {"item": example.make([Table("item", IDS, DIM)])}, init="warm")
    before, after = train(model, lambda: model["item"](torch.arange(IDS)))
    assert torch.equal(before, after)
    assert not any(parameter.requires_grad for parameter in model["item"].parameters())


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_vectors_of_a_frozen_table_stay_beside_a_trained_one(example):
    names = ["item", "user"]
    tables = [
        EmbeddingBagConfig(name=name, num_embeddings=IDS, embedding_dim=DIM, feature_names=[name]) for name in names
    ]
    collection = EmbeddingBagCollection(tables=tables)
    collection.embedding_bags["item"].weight.requires_grad_(False)
    model = nn.ModuleDict({"c": collection, "out": nn.Linear(2 * DIM, 1)})
    methods = {name: example.make([Table(name, IDS, DIM)]) for name in names}
    embcomp.compress_(model, methods, init="warm")
    features = KeyedJaggedTensor(names, torch.arange(IDS).repeat(2), lengths=torch.ones(2 * IDS, dtype=torch.int64))
    before, after = train(model, lambda: model["c"](features).values())
    assert torch.equal(before[:, :DIM], after[:, :DIM])
    assert not torch.equal(before[:, DIM:], after[:, DIM:])
