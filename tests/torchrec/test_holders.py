"""`compress_` on models that hold torchrec's collections."""

import copy

import pytest
import torch
from torch import nn
from torchrec.modules.embedding_configs import DataType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

import embcomp
from embcomp.ops.hashing import hash_key, hash_rows_reference
from embcomp.testing.examples import EXAMPLES, KINDS
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection, fuse_
from embcomp.torchrec.holders import stores_of
from tests.torchrec.batches import RAGGED, as_tables, bag_tables, batch, sequence_tables

every_method = pytest.mark.parametrize("example", EXAMPLES, ids=str)


class Model(nn.Module):
    """Bags, sequences and a plain table."""

    def __init__(self, **config) -> None:
        super().__init__()
        self.bags = EmbeddingBagCollection(bag_tables(**config))
        self.tower = nn.ModuleDict({"history": EmbeddingCollection(sequence_tables(**config), need_indices=True)})
        self.country = nn.Embedding(50, 8)

    def forward(self, features):
        bags, sequences = self.bags(features), self.tower["history"](features)
        return bags.to_dict(), {key: jagged.values() for key, jagged in sequences.items()}


def rows_of(collection) -> dict[str, torch.Tensor]:
    held = collection.embedding_bags if isinstance(collection, EmbeddingBagCollection) else collection.embeddings
    return {name: module.weight.detach().clone() for name, module in held.items()}


def assert_unchanged(model: nn.Module, before: nn.Module) -> None:
    assert [(name, type(part)) for name, part in model.named_modules()] == [
        (name, type(part)) for name, part in before.named_modules()
    ]
    for (name, mine), theirs in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
        assert mine.requires_grad == theirs.requires_grad


@every_method
def test_all_tables_keep_keys_widths_and_bytes(example):
    model = Model()
    expected = model(batch(RAGGED))
    full = embcomp.nbytes(model)
    methods = {
        "bags.*": example.make(as_tables(bag_tables())),
        "tower.history.*": example.make(as_tables(sequence_tables())),
    }
    report = embcomp.compress_(model, methods)
    for mine, theirs in zip(model(batch(RAGGED)), expected, strict=True):
        assert list(mine) == list(theirs)
        assert [value.shape for value in mine.values()] == [value.shape for value in theirs.values()]
    assert report.bytes_before - report.bytes_after == full - embcomp.nbytes(model)
    if example.name == "Full":
        assert report.tables == []
        assert type(model.bags) is EmbeddingBagCollection
    else:
        assert type(model.bags) is CompressedEmbeddingBagCollection
        assert type(model.tower["history"]) is CompressedEmbeddingCollection
        assert model.tower["history"].need_indices()
        assert len(report.tables) == 6
        assert {table.method.partition("(")[0] for table in report.tables} == {example.method.__name__}
    assert type(model.country) is nn.Embedding


def test_a_table_name_matches_in_every_collection_and_a_path_in_one():
    model = Model()
    embcomp.compress_(model, {"bags.users": embcomp.HashingTrick(rows=3), "users": embcomp.HashingTrick(rows=4)})
    assert stores_of(model.bags)["users"].shape == (3, 8)
    assert stores_of(model.tower["history"])["users"].shape == (4, 8)
    assert stores_of(model.bags)["films"].shape == (33, 16)


@pytest.mark.parametrize("init", ["fresh", "warm"])
@pytest.mark.parametrize("data_type", [DataType.FP32, DataType.FP16])
def test_unmatched_tables_keep_their_rows_exactly(init, data_type):
    model = Model(data_type=data_type)
    before = copy.deepcopy(model)
    counts = {"films": torch.arange(33), "users": torch.arange(20)} if init == "warm" else None
    report = embcomp.compress_(model, {"users": embcomp.DoubleHash(rows=5)}, init=init, counts=counts)
    for mine, theirs in (model.bags, before.bags), (model.tower["history"], before.tower["history"]):
        old = rows_of(theirs)
        for name in ("films", "tags"):
            assert torch.equal(stores_of(mine)[name], old[name])
            assert stores_of(mine)[name].dtype == old[name].dtype
    bags, sequences = before(batch(RAGGED))
    for result, expected in zip(model(batch(RAGGED)), (bags, sequences), strict=True):
        for key in ("film", "user@films", "tag"):
            torch.testing.assert_close(result[key], expected[key])
    untouched = [table for table in report.tables if table.method == "Full"]
    assert [(table.bytes_before, table.ratio) for table in untouched] == [
        (table.bytes_after, 1.0) for table in untouched
    ]


def test_a_module_in_two_places_stays_one():
    model = Model()
    model.again = model.bags
    report = embcomp.compress_(model, {"again.users": embcomp.HashingTrick(rows=4)})
    assert model.again is model.bags
    assert type(model.bags) is CompressedEmbeddingBagCollection
    assert [table.name for table in report.tables] == ["users", "films", "tags"]


def test_frozen_tables_stay_frozen_and_training_mode_stays():
    model = Model().eval()
    for collection in (model.bags.embedding_bags, model.tower["history"].embeddings):
        collection["users"].weight.requires_grad_(False)
        collection["tags"].weight.requires_grad_(False)
    embcomp.compress_(model, {"users": embcomp.HashingTrick(rows=4)}, init="warm")
    for collection in (model.bags, model.tower["history"]):
        trained = {name: store.requires_grad for name, store in stores_of(collection).items()}
        assert trained == {"users": False, "films": True, "tags": False}
        assert not any(part.training for part in collection.modules())


def test_weighted_collections_stay_weighted():
    model = nn.ModuleDict(
        {"bags": EmbeddingBagCollection(bag_tables(pooling=bag_tables()[0].pooling), is_weighted=True)}
    )
    features = batch(RAGGED, weighted=True)
    before = model["bags"](features)["film"]
    embcomp.compress_(model, {"users": embcomp.HashingTrick(rows=4)})
    assert model["bags"].is_weighted()
    torch.testing.assert_close(model["bags"](features)["film"], before)


# --- Warm starts ---


@pytest.mark.parametrize("kind", ["bags", "sequences"])
def test_warm_rows_are_weighted_means(kind):
    """By a loop over ids and the specified hash."""
    module = EmbeddingBagCollection(bag_tables()) if kind == "bags" else EmbeddingCollection(sequence_tables())
    model = nn.ModuleDict({"tables": module})
    old = rows_of(module)
    counts = torch.arange(20).float() + 1
    embcomp.compress_(model, {"*": embcomp.HashingTrick(rows=6)}, init="warm", counts={"users": counts})
    for name, weights in (("users", counts), ("films", torch.ones(33)), ("tags", torch.ones(12))):
        rows = hash_rows_reference(torch.arange(len(weights)), torch.tensor([hash_key(0, name, 0)]), 6).squeeze(1)
        for row in rows.unique().tolist():
            mine = rows == row
            expected = (old[name][mine] * weights[mine, None]).sum(0) / weights[mine].sum()
            torch.testing.assert_close(stores_of(model["tables"])[name][row].detach(), expected)


@every_method
def test_warm_starts_come_closer_than_fresh_ones(example):
    def error(init: str) -> float:
        torch.manual_seed(0)
        model = nn.ModuleDict({"tables": EmbeddingCollection(sequence_tables())})
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(torch.randn(weight.shape) + 1.0)
        features = batch([[12], [8], [12], [12]])
        before = model["tables"](features)
        embcomp.compress_(model, {"*": example.make(as_tables(sequence_tables()))}, init=init)
        after = model["tables"](features)
        return sum((before[key].values() - after[key].values()).square().sum().item() for key in before)

    if example.name == "Full":
        assert error("warm") == error("fresh") == 0.0
    else:
        assert error("warm") < 0.75 * error("fresh")


@pytest.mark.parametrize("example", KINDS, ids=str)
def test_compressed_and_fused_models_train(example):
    model = nn.ModuleDict({"tables": EmbeddingBagCollection(bag_tables())})
    embcomp.compress_(model, {"*": example.make(as_tables(bag_tables()))}, init="warm")
    size = embcomp.nbytes(model)
    fuse_(model, optimizer=torch.optim.Adagrad, optimizer_kwargs={"lr": 0.1})
    assert embcomp.nbytes(model) == size
    losses = []
    for _ in range(5):
        loss = model["tables"](batch(RAGGED)).values().sub(1.0).square().mean()
        loss.backward()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


# --- What is refused, before anything has changed ---


def refused(model: nn.Module, methods, match: str, **settings) -> None:
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=match):
        embcomp.compress_(model, methods, **settings)
    assert_unchanged(model, before)


def test_one_unified_instance_over_two_collections():
    refused(Model(), {"*": embcomp.UnifiedEmbedding(rows=9, chunk_dim=8)}, match="its own instance")
    refused(Model(), {"users": embcomp.UnifiedEmbedding(rows=9, chunk_dim=8)}, match="its own instance")


@pytest.mark.parametrize(
    ("methods", "match"),
    [
        ({"bags.user": embcomp.HashingTrick(rows=5)}, r"'bags.user' matches no table"),
        ({"films": embcomp.MultiHash(rows=5, num_hashes=3, combine="concat")}, "16 is not a multiple"),
        ({"bags.users": embcomp.UnifiedEmbedding(rows=5, chunk_dim=8, lookups={"users": 2})}, r"'users'.*width"),
        ({"*": embcomp.FrequencyHash(rows=5, counts=torch.ones(20))}, r"counts.*\[33\]"),
    ],
)  # fmt: skip
def test_methods_that_do_not_fit(methods, match):
    model = Model()
    model.country = nn.Embedding(20, 8)
    refused(model, methods, match)


@pytest.mark.parametrize(
    "hook",
    [
        lambda module: module.register_forward_hook(lambda *_: None),
        lambda module: module.register_forward_pre_hook(lambda *_: None),
        lambda module: module.register_full_backward_hook(lambda *_: None),
        lambda module: module.register_full_backward_pre_hook(lambda *_: None),
    ],
)
@pytest.mark.parametrize("inner", [False, True])
def test_hooks_that_would_be_lost(hook, inner):
    model = Model()
    hook(model.bags.embedding_bags["films"] if inner else model.bags)
    with pytest.raises(ValueError, match=r"'bags'.*hooks"):
        embcomp.compress_(model, {"users": embcomp.HashingTrick(rows=5)})
    assert type(model.bags) is EmbeddingBagCollection


def test_weights_held_elsewhere():
    model = Model()
    model.output = nn.Linear(16, 33, bias=False)
    model.output.weight = model.bags.embedding_bags["films"].weight
    refused(model, {"users": embcomp.HashingTrick(rows=5)}, match=r"output")


def test_a_table_alone_is_refused():
    with pytest.raises(ValueError, match="inside a model"):
        embcomp.compress_(EmbeddingBagCollection(bag_tables()), {"*": embcomp.HashingTrick(rows=5)})


def test_compressed_collections_are_passed_over():
    model = Model()
    embcomp.compress_(model, {"users": embcomp.HashingTrick(rows=5)})
    before = copy.deepcopy(model)
    embcomp.compress_(model, {"*": embcomp.HashingTrick(rows=5)})
    assert type(model.country) is not nn.Embedding
    for mine, theirs in (model.bags, before.bags), (model.tower["history"], before.tower["history"]):
        assert {k: v.shape for k, v in stores_of(mine).items()} == {k: v.shape for k, v in stores_of(theirs).items()}


def test_tables_that_train_inside_the_backward_pass_already_are_refused():
    model = Model()
    fuse_(model, optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 0.1})
    before = [type(part) for part in model.modules()]
    with pytest.raises(ValueError, match=r"'bags'.*compress before fuse_"):
        embcomp.compress_(model, {"*": embcomp.HashingTrick(rows=5)})
    assert [type(part) for part in model.modules()] == before
