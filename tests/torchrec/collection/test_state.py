"""State dicts, copies, bytes and configurations of compressed collections."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    EmbeddingBagCollectionInterface,
    EmbeddingCollection,
    EmbeddingCollectionInterface,
)
from torchrec.optim import RowWiseAdagrad

import embcomp
from embcomp.testing.examples import EXAMPLES
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection, fuse_
from embcomp.torchrec.holders import stores_of
from tests.torchrec.batches import (
    FEATURES,
    FEWEST_IDS,
    RAGGED,
    as_tables,
    bag_tables,
    bags,
    batch,
    outputs_of,
    sequence_tables,
    sequences,
)
from tests.torchrec.every import every_method


@every_method
@pytest.mark.parametrize("make", [bags, sequences])
def test_state_round_trip_copies_and_pickles(example, make, tmp_path):
    collection, configs, _ = make(example)
    torch.save(collection.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(1)
    fresh = type(collection)(configs, {"*": example.make(as_tables(configs))})
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    state = list(collection.state_dict().values())
    for twin in (fresh, copy.deepcopy(collection), pickle.loads(pickle.dumps(collection))):
        assert list(twin.state_dict()) == list(collection.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(twin.state_dict().values(), state, strict=True))
        mine, theirs = collection(batch(RAGGED)), twin(batch(RAGGED))
        for key in mine.keys():  # noqa: SIM118 (a KeyedTensor)
            a, b = (mine[key], theirs[key]) if make is bags else (mine[key].values(), theirs[key].values())
            assert torch.equal(a, b)
    with torch.no_grad():
        next(iter(stores_of(twin).values())).add_(1.0)
        assert not torch.equal(next(iter(stores_of(twin).values())), next(iter(stores_of(collection).values())))


@every_method
def test_another_configuration_is_named(example):
    configs = bag_tables()
    collection, *_ = bags(example)
    larger = bag_tables()
    larger[0].num_embeddings = 21
    other = CompressedEmbeddingBagCollection(larger, {"*": example.make(as_tables(larger))})
    with pytest.raises((ValueError, RuntimeError), match=r"users[\s\S]*(21|20)"):
        other.load_state_dict(collection.state_dict())
    assert configs[0].feature_names == ["user", "friend"]


@every_method
def test_bytes_are_those_of_the_plan(example):
    for make in (bags, sequences):
        collection, configs, method = make(example)
        assert embcomp.nbytes(collection) == method.plan(as_tables(configs)).nbytes()


@every_method
def test_encoders_hold_no_parameters(example):
    """What a training pipeline runs ahead, and what sharding must not touch."""
    for make in (bags, sequences):
        collection, *_ = make(example)
        for branch in collection.branches.values():
            assert list(branch.encoder.parameters()) == []
        names = [name for name, _ in collection.named_parameters()]
        assert names
        parts = (".collection.", ".codecs.", "assemble.combiners.")
        assert all(any(part in name for part in parts) for name in names)


@every_method
def test_configs_are_left_alone_and_answered(example):
    configs = bag_tables()
    before = copy.deepcopy(configs)
    collection = CompressedEmbeddingBagCollection(configs, {"*": example.make(as_tables(configs))})
    assert collection.embedding_bag_configs() == configs
    assert [c.feature_names for c in configs] == [c.feature_names for c in before]
    assert not collection.is_weighted()


@every_method
def test_meta_device_then_loaded(example):
    """Built without memory, then filled from a state dict: rows and look-ups as in the original."""
    collection, configs, method = bags(example)
    for build, fill in itertools.product(("argument", "context"), ("assign", "copy")):
        if build == "argument":
            empty = CompressedEmbeddingBagCollection(configs, {"*": method}, device="meta")
        else:
            with torch.device("meta"):
                empty = CompressedEmbeddingBagCollection(configs, {"*": method})
        assert empty.device.type == "meta"
        with pytest.raises(ValueError, match="meta"):
            fuse_(copy.deepcopy(empty), optimizer=RowWiseAdagrad)
        if fill == "copy":
            empty.to_empty(device="cpu")
        empty.load_state_dict(collection.state_dict(), assign=fill == "assign")
        assert torch.equal(empty(batch(RAGGED)).values(), collection(batch(RAGGED)).values())


@pytest.mark.parametrize("kind", ["bags", "sequences"])
def test_the_state_of_full_tables_is_refused_by_name(kind):
    if kind == "bags":
        full = EmbeddingBagCollection(tables=bag_tables())
        new = CompressedEmbeddingBagCollection(bag_tables(), {"*": embcomp.HashingTrick(rows=9)})
    else:
        full = EmbeddingCollection(tables=sequence_tables())
        new = CompressedEmbeddingCollection(sequence_tables(), {"*": embcomp.HashingTrick(rows=9)})
    model, before = nn.ModuleDict({"tables": new}), copy.deepcopy(new.state_dict())
    state = nn.ModuleDict({"tables": full}).state_dict()
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"table '\w+': the state is of a collection that is not compressed.*warm"):
            model.load_state_dict(state, strict=strict)
    assert all(torch.equal(value, before[name]) for name, value in new.state_dict().items())


def test_collections_are_what_torchrec_asks_for() -> None:
    """Code that asks isinstance takes them, and what it asks then is answered as torchrec's own do."""
    bags = [EmbeddingBagConfig(name="a", num_embeddings=20, embedding_dim=8, feature_names=["x", "y"])]
    own_bags = CompressedEmbeddingBagCollection(bags, {"*": embcomp.HashingTrick(rows=5)})
    assert isinstance(own_bags, EmbeddingBagCollectionInterface)
    assert own_bags.is_weighted() is EmbeddingBagCollection(tables=bags).is_weighted()
    tables = [
        EmbeddingConfig(name="a", num_embeddings=20, embedding_dim=8, feature_names=["x", "y"]),
        EmbeddingConfig(name="b", num_embeddings=30, embedding_dim=8, feature_names=["x"]),
    ]
    theirs = EmbeddingCollection(tables=tables)
    own = CompressedEmbeddingCollection(tables, {"*": embcomp.HashingTrick(rows=5)})
    assert isinstance(own, EmbeddingCollectionInterface)
    assert own.embedding_dim() == theirs.embedding_dim()
    assert own.embedding_names_by_table() == theirs.embedding_names_by_table()


@every_method
@pytest.mark.parametrize("make", [bags, sequences])
def test_rows_are_drawn_anew_as_the_constructor_draws_them(example, make):
    """Also after `to_empty` of a collection on the meta device: what lay in memory is overwritten."""
    collection, configs, _ = make(example)
    methods = {"*": example.make(as_tables(configs))}
    built = type(collection)(configs, methods)
    many = batch([[1] * FEWEST_IDS] * len(FEATURES))
    outputs = [key for key, *_ in outputs_of(configs)]
    waiting = type(collection)(configs, methods, device="meta").to_empty(device="cpu")
    for other in (type(collection)(configs, methods), waiting):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.fill_(9)
        other.reset_parameters()
        with torch.no_grad():
            out, expected = other(many), built(many)
        for key in outputs:
            a, b = (out[key], expected[key]) if make is bags else (out[key].values(), expected[key].values())
            assert 0.4 < a.std() / b.std() < 2.5
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(other.buffers(), built.buffers(), strict=True))


def test_rows_of_a_fused_collection_are_not_drawn_anew():
    model = nn.ModuleDict({"c": bags(next(e for e in EXAMPLES if e.name == "HashingTrick"))[0]})
    fuse_(model, optimizer=RowWiseAdagrad, optimizer_kwargs={"lr": 0.1})
    with pytest.raises(ValueError, match=r"fused, sharded or quantised.*reset_parameters before"):
        model["c"].reset_parameters()


@pytest.mark.parametrize("make", [bags, sequences])
def test_what_code_for_full_tables_looks_for_is_explained(make):
    collection, *_ = make(EXAMPLES[0])
    held = "embedding_bags" if make is bags else "embeddings"
    with pytest.raises(AttributeError, match=rf"no '{held}': vectors are what it returns for ids.*init='warm'"):
        getattr(collection, held)
    with pytest.raises(AttributeError, match="no attribute 'embedding_bag'"):
        _ = collection.embedding_bag
