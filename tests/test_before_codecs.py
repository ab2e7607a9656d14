"""Modules pickled before there were codecs, and before combiners were modules, work in every way."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torchrec import KeyedJaggedTensor

import embcomp.torchrec
from embcomp.nn import CompressedEmbedding
from tests.before import read

METHODS = {
    "concat": embcomp.HashingTrick(rows=7),
    "product": embcomp.QuotientRemainder(),
    "sum": embcomp.QuotientRemainder(combine="sum"),
    "weighted sum": embcomp.HashEmbedding(rows=7),
}
KINDS = ("collections", "sequences", "fused")


@pytest.fixture
def saved() -> dict[str, Any]:
    return read("before_codecs")


def batch(saved: dict[str, Any]) -> KeyedJaggedTensor:
    return KeyedJaggedTensor.from_lengths_sync(saved["keys"], saved["values"], saved["lengths"])


def vectors_of(collection: nn.Module, features: KeyedJaggedTensor) -> torch.Tensor:
    out = collection(features)
    return out["x"].values() if isinstance(out, dict) else out.values()


@pytest.mark.parametrize("name", METHODS)
def test_tables_give_the_same_vectors_and_train_on(saved, name):
    table, bag, expected = saved["tables"][name], saved["bags"][name], saved["vectors"][name]
    torch.testing.assert_close(table.materialize(), expected)
    torch.testing.assert_close(bag(torch.tensor([[1, 2, 29]]))[0], expected[[1, 2, 29]].sum(0))
    table.materialize().sum().backward()
    assert all(parameter.grad is not None for parameter in table.parameters())
    assert isinstance(dict(table.named_modules())["combiner"], nn.Module)
    torch.testing.assert_close(copy.deepcopy(table).materialize(), expected)
    new = CompressedEmbedding(30, 8, METHODS[name])
    new.load_state_dict(table.state_dict())
    torch.testing.assert_close(new.materialize(), expected)
    assert embcomp.served_nbytes(table) == embcomp.training_nbytes(table)


@pytest.mark.parametrize("name", METHODS)
def test_tables_are_exported(saved, name, tmp_path):
    model = nn.Sequential(saved["tables"][name])
    embcomp.export(model, tmp_path / "model.pt2", (torch.arange(4),), dtype="float32")
    program = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(program(torch.arange(30)), saved["vectors"][name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_collections_give_the_same_vectors(saved, kind, name):
    collection, features = saved[kind][name], batch(saved)
    torch.testing.assert_close(vectors_of(collection, features), saved["pooled"][name][kind])
    assert embcomp.served_nbytes(collection) == embcomp.training_nbytes(collection)
    copied = copy.deepcopy(collection)
    copied.load_state_dict(collection.state_dict())
    torch.testing.assert_close(vectors_of(copied, features), saved["pooled"][name][kind])


@pytest.mark.parametrize("name", METHODS)
def test_collections_are_fused_and_trained(saved, name):
    features = batch(saved)
    unfused = nn.Sequential(saved["collections"][name])
    embcomp.torchrec.fuse_(unfused, optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 0.1})
    for collection in (unfused[0], saved["fused"][name]):
        before = vectors_of(collection, features).detach().clone()
        vectors_of(collection, features).sum().backward()
        assert not torch.equal(vectors_of(collection, features), before)
