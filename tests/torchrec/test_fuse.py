"""What `fuse_` finds in a model, and what it refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

import embcomp
from embcomp.torchrec import (
    fuse_,
)
from embcomp.torchrec.fused.engines import FbgemmEngine, NativeEngine
from tests.torchrec.batches import RAGGED, bag_tables, batch
from tests.torchrec.training import (
    OPTIMIZERS,
    Model,
    assert_same,
    bag_model,
    every_optimizer,
    loss_of,
    train_both,
)


def test_a_collection_used_twice_stays_one(engine):
    collection = EmbeddingBagCollection(bag_tables())
    model = nn.ModuleDict({"a": Model(collection), "b": Model(collection), "c": nn.ModuleList([collection] * 2)})
    before = len(list(model.parameters()))
    fuse_(model, optimizer=torch.optim.SGD)
    assert model["a"].collection is model["b"].collection is model["c"][0] is model["c"][1]
    assert type(model["a"].collection).__name__ == "FusedTables"
    assert len(list(model.parameters())) == before


def test_frozen_collections_stay_as_they_are(engine):
    model = nn.ModuleDict({name: bag_model({"*": embcomp.HashingTrick(rows=7)}) for name in ("frozen", "trained")})
    model["frozen"].requires_grad_(False)
    fuse_(model, optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 0.1})
    before = model["frozen"](batch(RAGGED))
    assert not before.requires_grad
    loss_of(before + model["trained"](batch(RAGGED))).backward()
    assert torch.equal(before, model["frozen"](batch(RAGGED)))
    model["frozen"].requires_grad_(True)
    with pytest.raises(ValueError, match="no torchrec collection to train"):
        fuse_(bag_model({}).requires_grad_(False), optimizer=torch.optim.SGD)


def test_partly_frozen_collections_are_refused():
    model = Model(EmbeddingBagCollection(bag_tables()))
    model.collection.embedding_bags["films"].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"films.*frozen"):
        fuse_(model, optimizer=torch.optim.SGD)
    assert type(model.collection) is EmbeddingBagCollection


def test_what_the_fused_tables_would_lose_is_refused():
    """A hook of a row, and an optimizer that was given the rows already."""
    hooked, owned = (bag_model({"*": embcomp.HashingTrick(rows=7)}) for _ in range(2))
    next(hooked.parameters()).register_hook(lambda grad: 2 * grad)
    _apply_optimizer_in_backward(torch.optim.SGD, owned.parameters(), {"lr": 1.0})
    for model, message in ((hooked, "it has hooks"), (owned, "apply_optimizer_in_backward.*instead of fuse_")):
        names = [type(module).__name__ for module in model.modules()]
        with pytest.raises(ValueError, match=f"cannot fuse 'collection.*table 'users': {message}"):
            fuse_(model, optimizer=torch.optim.SGD)
        assert [type(module).__name__ for module in model.modules()] == names


def test_tied_weights_are_refused():
    model = Model(EmbeddingBagCollection(bag_tables()))
    model.output = nn.Linear(16, 33, bias=False)
    model.output.weight = model.collection.embedding_bags["films"].weight
    with pytest.raises(ValueError, match=r"films.*another module"):
        fuse_(model, optimizer=torch.optim.SGD)
    assert type(model.collection) is EmbeddingBagCollection


def test_bad_input():
    model = bag_model({})
    with pytest.raises(ValueError, match=r"RMSprop.*choose one of"):
        fuse_(model, optimizer=torch.optim.RMSprop)
    with pytest.raises(ValueError, match="cannot fuse an object of SGD: give the class, and `optimizer_kwargs`"):
        fuse_(model, optimizer=torch.optim.SGD([torch.zeros(1, requires_grad=True)]))  # pyright: ignore
    with pytest.raises(ValueError, match=r"cannot fuse SGD with .'dampening'.: it takes lazy, lr, momentum"):
        fuse_(model, optimizer=torch.optim.SGD, optimizer_kwargs={"dampening": 0.9})
    with pytest.raises(ValueError, match="no torchrec collection"):
        fuse_(nn.Linear(2, 2), optimizer=torch.optim.SGD)
    fuse_(model, optimizer=torch.optim.SGD)
    with pytest.raises(ValueError, match="fused"):
        fuse_(model, optimizer=torch.optim.SGD)


@every_optimizer
@pytest.mark.parametrize("setting", [{"lr": -0.1}, {"eps": -1e-8}, {"weight_decay": -0.1}, {"lr": float("nan")}])
def test_settings_that_no_optimizer_takes(optimizer, setting):
    name = next(iter(setting))
    of_sgd = "eps" in setting and OPTIMIZERS[optimizer][0] is torch.optim.SGD  # which has none
    with pytest.raises(ValueError, match=f"'{name}'.: it takes" if of_sgd else f"{name}="):
        fuse_(bag_model({}), optimizer=OPTIMIZERS[optimizer][0], optimizer_kwargs=setting)


@pytest.mark.parametrize(
    ("kind", "setting", "said"),
    [
        (torch.optim.Adam, {"betas": (0.9, 1.0)}, r"cannot fuse Adam with betas=\(0.9, 1.0\): it must be two numbers"),
        (torch.optim.AdamW, {"eps": -1.0}, "cannot fuse AdamW with eps=-1.0"),
        (torch.optim.AdamW, {"weight_decay": float("nan")}, "weight_decay=nan"),
        (torch.optim.SGD, {"nesterov": True}, "nesterov=True and momentum=0"),
        (torch.optim.SGD, {"lr": "fast"}, "lr='fast'"),
        (torch.optim.SGD, {"lr": torch.tensor(0.1)}, r"lr=tensor\(0.1000\): it must be a number"),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": "no"}, "nesterov='no': it must be True or False"),
        (torch.optim.Adam, {"lazy": "no"}, "lazy='no': it must be True or False"),
        (torch.optim.Adam, [0.1], r"cannot fuse Adam with \[0.1\]: give its settings as a dictionary"),
        (torch.optim.Adam, {"amsgrad": True}, "'amsgrad'.: it takes betas, eps, lazy, lr, weight_decay"),
    ],
)
def test_settings_that_are_impossible(kind, setting, said):
    with pytest.raises(ValueError, match=said):
        fuse_(bag_model({}), optimizer=kind, optimizer_kwargs=setting)


@pytest.mark.parametrize("clip", [{"clip_grad_value": 0.0}, {"clip_grad_norm": -1.0}, {"clip_grad_norm": float("nan")}])
def test_clipping_to_nothing(clip):
    with pytest.raises(ValueError, match=f"cannot fuse SGD with {next(iter(clip))}="):
        fuse_(bag_model({}), optimizer=torch.optim.SGD, **clip)


def test_widths_that_fbgemm_cannot_read(monkeypatch):
    configs = [EmbeddingBagConfig(name="t", num_embeddings=9, embedding_dim=6, feature_names=["user"])]
    model = Model(EmbeddingBagCollection(configs))
    fused = fuse_(copy.deepcopy(model), optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 0.1})
    assert isinstance(fused.collection.engine, NativeEngine)
    assert_same(model, fused, train_both(model, fused, "SGD", [batch([[2, 1]], ["user"], most=9)]))
    monkeypatch.setattr("embcomp.torchrec.fused.tables.make_engine", FbgemmEngine)
    with pytest.raises(ValueError, match=r"multiple of 4.*'t': 6"):
        fuse_(model, optimizer=torch.optim.SGD)
    assert type(model.collection) is EmbeddingBagCollection
