"""What `fuse_` checks of rows between the look-up and the update."""

import copy

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_modules import EmbeddingBagCollection

import embcomp
from embcomp.ops import native, tables, updates
from embcomp.torchrec import CompressedEmbeddingBagCollection, fuse_


@pytest.mark.parametrize("make", [None, embcomp.Full(), embcomp.HashingTrick(rows=9)], ids=str)
def test_rows_that_are_overwritten_before_the_backward_pass_are_checked_again(make):
    """By numpy, which torch does not see. The rows of an encoder are memory of its own, and are checked once."""
    configs = [EmbeddingBagConfig(name="film", num_embeddings=9, embedding_dim=4, feature_names=["film"])]
    collection = (
        EmbeddingBagCollection(configs) if make is None else CompressedEmbeddingBagCollection(configs, {"*": make})
    )
    model = fuse_(nn.ModuleDict({"c": collection}), optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 0.1})
    ids = torch.tensor([1, 2, 3])
    out = model["c"](KeyedJaggedTensor(["film"], ids, lengths=torch.tensor([2, 1]))).values()
    before = [weight.clone() for weight in model.parameters()]
    ids.numpy()[1] = 10**12
    if isinstance(make, embcomp.HashingTrick):
        out.sum().backward()
        assert not torch.equal(before[0], next(model.parameters()))
        return
    with pytest.raises(IndexError, match=r"'film'.*1000000000000"):
        out.sum().backward()
    assert torch.equal(before[0], next(model.parameters()))


def test_a_step_of_encoded_features_checks_its_rows_once(monkeypatch):
    if native.library() is None:
        pytest.skip("plain torch checks as it reads")
    configs = [
        EmbeddingBagConfig(name=n, num_embeddings=9, embedding_dim=4, feature_names=[n]) for n in ("film", "user")
    ]
    collection = CompressedEmbeddingBagCollection(configs, {"*": embcomp.DoubleHash(rows=5)})
    twin = copy.deepcopy(collection)
    model = fuse_(nn.ModuleDict({"c": collection}), optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 0.1})
    features = KeyedJaggedTensor(["film", "user"], torch.tensor([1, 2, 3, 8]), lengths=torch.tensor([2, 1, 0, 1]))
    calls = []
    with monkeypatch.context() as patch:
        for module in (tables, updates):
            whole = module.requests_of
            patch.setattr(module, "requests_of", lambda *given, whole=whole: calls.append(given) or whole(*given))
        model["c"](features).values().square().sum().backward()
    assert len(calls) == 1
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1)
    twin(features).values().square().sum().backward()
    sgd.step()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach())


def test_tables_that_move_between_look_up_and_update_are_found_again():
    configs = [EmbeddingBagConfig(name="film", num_embeddings=9, embedding_dim=4, feature_names=["film"])]
    collection = CompressedEmbeddingBagCollection(configs, {"*": embcomp.HashingTrick(rows=5)})
    model = fuse_(nn.ModuleDict({"c": collection}), optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 0.5})
    out = model["c"](KeyedJaggedTensor(["film"], torch.tensor([1]), lengths=torch.tensor([1]))).values()
    before = next(model.parameters()).clone()
    model.share_memory()
    out.sum().backward()
    moved = next(model.parameters()).detach() - before
    assert sorted(moved.sum(1).tolist()) == [-2.0, 0, 0, 0, 0]
