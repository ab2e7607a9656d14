"""Freezing after `fuse_`: rows and optimizer states stay, as where torch's own tables are frozen."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim import RowWiseAdagrad

import embcomp
from embcomp.torchrec import CompressedEmbeddingBagCollection, fuse_, fused_optimizer
from tests.torchrec.batches import RAGGED, bag_tables, batch, sequence_tables


def by_module(model: nn.Module, value: bool) -> None:
    model.requires_grad_(value)


def by_parameter(model: nn.Module, value: bool) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(value)


def by_attribute(model: nn.Module, value: bool) -> None:
    for parameter in model.parameters():
        parameter.requires_grad = value


class Model(nn.Module):
    """Tables and a layer, which alone goes on training."""

    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables, self.scale = tables, nn.Parameter(torch.tensor(1.0))

    def forward(self, features):
        found = self.tables(features)
        values = torch.cat([f.values() for f in found.values()]) if isinstance(found, dict) else found.values()
        return self.scale * values


def trained(model: Model) -> None:
    (model(batch(RAGGED, seed=3)) - 1).square().mean().backward()


def kept(model: nn.Module) -> list[torch.Tensor]:
    states = [tensor for state in fused_optimizer(model).state_dict()["state"].values() for tensor in state.values()]
    return [tensor.detach().clone() for tensor in [*model.get_submodule("tables").state_dict().values(), *states]]


def assert_equal(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert len(mine) == len(theirs)
    assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))


def goes_on(model: Model) -> bool:
    """Return whether a step changes the tables."""
    before = kept(model)
    trained(model)
    return not all(torch.equal(one, other) for one, other in zip(kept(model), before, strict=True))


MADE = {
    "bags": lambda: EmbeddingBagCollection(bag_tables()),
    "sequences": lambda: EmbeddingCollection(sequence_tables()),
    "compressed": lambda: CompressedEmbeddingBagCollection(bag_tables(), {"*": embcomp.HashEmbedding(rows=9)}),
    "integers": lambda: CompressedEmbeddingBagCollection(bag_tables(), {"*": embcomp.LowBit(bits=8, copy="none")}),
}


@pytest.mark.parametrize(
    ("make", "freeze"), [*((make, by_module) for make in MADE), ("bags", by_parameter), ("integers", by_attribute)]
)
def test_frozen_tables_stay_and_the_rest_is_trained(make, freeze, engine):
    model = fuse_(Model(MADE[make]()), optimizer=RowWiseAdagrad, optimizer_kwargs={"lr": 0.1})
    trained(model)
    freeze(model.tables, False)
    before, model.scale.grad = kept(model), None
    expected = ((model(batch(RAGGED, seed=3)) - 1) * 2 * model(batch(RAGGED, seed=3))).mean() / model.scale
    trained(model)
    assert_equal(kept(model), before)
    torch.testing.assert_close(model.scale.grad, expected.detach())  # d mean((s x - 1)^2) / ds
    assert not any(parameter.requires_grad for parameter in model.tables.parameters() if parameter.dim() == 2)


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_thawed_tables_go_on_as_those_that_were_never_frozen(make, engine):
    torch.manual_seed(0)
    model = fuse_(Model(make()), optimizer=RowWiseAdagrad, optimizer_kwargs={"lr": 0.1})
    other = copy.deepcopy(model)
    by_module(model, False)
    model(batch(RAGGED, seed=3))
    by_module(model, True)
    for each in (model, other):
        torch.manual_seed(1)  # of random rounding
        trained(each)
    assert_equal(kept(model), kept(other))


def test_frozen_beside_trained_is_refused_by_name(engine):
    model = fuse_(Model(MADE["bags"]()), optimizer=RowWiseAdagrad)
    model.tables.embedding_bags["films"].requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"tables \['films'\]: frozen, in one collection with trained tables"):
        trained(model)
    with torch.no_grad():
        model(batch(RAGGED, seed=3))


def test_weights_of_ids_that_are_trained_are_refused(engine):
    tables = EmbeddingBagCollection(bag_tables(), is_weighted=True)
    fused = fuse_(Model(tables), optimizer=RowWiseAdagrad).tables
    features = batch(RAGGED, seed=3)
    features._weights = torch.rand(len(features.values()), requires_grad=True)
    fused.requires_grad_(False)
    with pytest.raises(RuntimeError, match="frozen, but the weights of ids"):
        fused(features)


def test_integers_stay_frozen_where_they_are_moved_or_loaded():
    model = Model(MADE["integers"]())
    state = model.state_dict()
    model = model.to("meta").to_empty(device="cpu")
    model.load_state_dict(state, assign=True)
    fuse_(model, optimizer=RowWiseAdagrad, optimizer_kwargs={"lr": 0.1})
    by_attribute(model.tables, False)
    before = kept(model)
    trained(model)
    assert_equal(kept(model), before)
    model.load_state_dict(model.state_dict(), assign=True)
    model.to("meta").to_empty(device="cpu").load_state_dict(state)
    assert not goes_on(model)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_copies_are_frozen_as_their_model_is(make, copied):
    model = fuse_(Model(make()), optimizer=RowWiseAdagrad, optimizer_kwargs={"lr": 0.1})
    by_module(model.tables, False)
    other = copied(model)
    assert not goes_on(other)
    by_module(other.tables, True)
    assert goes_on(other)
    again = copied(other)
    assert goes_on(again)
    by_module(again.tables, False)
    assert not goes_on(again)


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("kind", ["compressed", "integers"])
def test_saved_tables_are_loaded_as_trained_or_frozen_as_they_were(kind, freeze, tmp_path):
    model = fuse_(Model(MADE[kind]()), optimizer=RowWiseAdagrad, optimizer_kwargs={"lr": 0.1})
    if freeze:
        by_module(model.tables, False)
    embcomp.save(model, tmp_path / "model.safetensors")
    loaded = embcomp.load(Model(MADE["bags"]()), tmp_path / "model.safetensors")
    if kind == "compressed":  # floats that are not fused
        assert all(parameter.requires_grad is not freeze for parameter in loaded.tables.parameters())
    else:
        fuse_(loaded, optimizer=RowWiseAdagrad, optimizer_kwargs={"lr": 0.1})
        assert goes_on(loaded) is not freeze


def test_files_of_parameters_are_read_as_of_weights_alone(tmp_path):
    model = fuse_(Model(MADE["bags"]()), optimizer=RowWiseAdagrad)
    torch.save(dict(model.named_parameters()), tmp_path / "parameters.pt")
    loaded = torch.load(tmp_path / "parameters.pt", weights_only=True)
    assert_equal(list(loaded.values()), list(model.parameters()))
