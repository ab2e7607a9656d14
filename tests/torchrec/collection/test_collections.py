"""CompressedEmbeddingBagCollection and CompressedEmbeddingCollection against torchrec's classes and a plain loop."""

import pytest
import torch
from hypothesis import example as explicit
from hypothesis import given
from hypothesis import strategies as st
from torchrec.modules.embedding_configs import DataType, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    EmbeddingCollection,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embcomp
from embcomp.testing.examples import EXAMPLES, missing
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection
from embcomp.torchrec.holders import stores_of
from tests.torchrec.batches import (
    RAGGED,
    as_tables,
    assert_close,
    bag_tables,
    bags,
    batch,
    batch_lengths,
    look_ups,
    pooled_one_by_one,
    sequence_tables,
    sequences,
)
from tests.torchrec.every import every_method, few


def test_every_method_has_an_example():
    assert missing() == set()


# --- The same as the classes replaced ---


def copied_from(original, collection) -> None:
    """Loads the rows of torchrec's collection into a collection of `Full()` tables."""
    held = original.embedding_bags if isinstance(original, EmbeddingBagCollection) else original.embeddings
    with torch.no_grad():
        for name, store in stores_of(collection).items():
            store.copy_(held[name].weight)


@pytest.mark.parametrize("weighted", [False, True])
@given(lengths=batch_lengths(), seed=st.integers(0, 99))
@explicit(lengths=[[0], [0], [0], [0]], seed=0)
def test_full_bags_equal_torchrec(weighted, lengths, seed):
    configs = bag_tables(pooling=PoolingType.SUM) if weighted else bag_tables()
    original = EmbeddingBagCollection(configs, is_weighted=weighted)
    collection = CompressedEmbeddingBagCollection(configs, {"*": embcomp.Full()}, is_weighted=weighted)
    copied_from(original, collection)
    features = batch(lengths, weighted=weighted, seed=seed)
    actual, expected = collection(features), original(features)
    assert actual.keys() == expected.keys() == ["user@users", "friend", "film", "user@films", "tag"]
    assert actual.length_per_key() == expected.length_per_key()
    torch.testing.assert_close(actual.values(), expected.values())
    torch.testing.assert_close(actual["user@films"], expected["user@films"])


@given(lengths=batch_lengths(), seed=st.integers(0, 99), need_indices=st.booleans())
@explicit(lengths=[[0], [0], [0], [0]], seed=0, need_indices=True)
def test_full_sequences_equal_torchrec(lengths, seed, need_indices):
    configs = sequence_tables()
    original = EmbeddingCollection(configs, need_indices=need_indices)
    collection = CompressedEmbeddingCollection(configs, {"*": embcomp.Full()}, need_indices=need_indices)
    copied_from(original, collection)
    features = batch(lengths, seed=seed, ids=torch.int32)
    actual, expected = collection(features), original(features)
    assert list(actual) == list(expected)
    assert collection.need_indices() == need_indices
    for key, value in expected.items():
        torch.testing.assert_close(actual[key].values(), value.values())
        assert torch.equal(actual[key].lengths(), value.lengths())
        assert torch.equal(actual[key].offsets(), value.offsets())
        if need_indices:
            assert torch.equal(actual[key].weights(), value.weights())
        else:
            assert actual[key].weights_or_none() is None


def test_half_precision_tables_equal_torchrec():
    configs = bag_tables(data_type=DataType.FP16)
    original = EmbeddingBagCollection(configs)
    collection = CompressedEmbeddingBagCollection(configs, {"*": embcomp.Full()})
    assert {store.dtype for store in stores_of(collection).values()} == {torch.float16}
    assert embcomp.nbytes(collection) == embcomp.nbytes(original)
    copied_from(original, collection)
    features = batch(RAGGED)
    actual, expected = collection(features).values(), original(features).values()
    assert actual.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(actual, expected)


# --- The same as a loop over single ids, for every method ---


@pytest.mark.parametrize("weighted", [False, True])
@every_method
@few
@given(lengths=batch_lengths(), seed=st.integers(0, 99))
@explicit(lengths=[[0, 0], [0, 0], [0, 0], [0, 0]], seed=0)
def test_bags_equal_pooled_singles(example, weighted, lengths, seed):
    collection, configs, method = bags(example, weighted)
    features = batch(lengths, weighted=weighted, seed=seed)
    expected = pooled_one_by_one(look_ups(collection, configs, method), configs, features, weighted)
    assert_close(collection(features).to_dict(), expected)


@every_method
@few
@given(lengths=batch_lengths(), seed=st.integers(0, 99))
@explicit(lengths=[[0], [0], [0], [0]], seed=0)
def test_sequences_equal_singles(example, lengths, seed):
    collection, configs, method = sequences(example)
    features = batch(lengths, seed=seed)
    single = look_ups(collection, configs, method)
    result = collection(features)
    expected = {}
    for key in result:
        feature, _, table = key.partition("@")
        name = table or {"friend": "users", "film": "films", "tag": "tags"}[feature]
        expected[key] = single[name](features[feature].values())
        assert torch.equal(result[key].lengths(), features[feature].lengths())
    assert list(result) == ["user@users", "friend", "film", "user@films", "tag"]
    assert_close({key: value.values() for key, value in result.items()}, expected)


@pytest.mark.parametrize("weighted", [False, True])
@every_method
def test_gradients_equal_those_of_singles(example, weighted):
    collection, configs, method = bags(example, weighted)
    features = batch(RAGGED, weighted=weighted)
    if weighted:
        features.weights().requires_grad_()
    stores = stores_of(collection)
    wanted = [*stores.values(), *([features.weights()] if weighted else [])]
    expected_values = torch.cat(
        list(pooled_one_by_one(look_ups(collection, configs, method), configs, features, weighted).values()), dim=1
    )
    values = collection(features).values()
    signal = torch.randn_like(values)
    actual = torch.autograd.grad(values, wanted, signal)
    expected = torch.autograd.grad(expected_values, wanted, signal)
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("lengths_dtype", [torch.int32, torch.int64])
@every_method
def test_narrow_integers(example, lengths_dtype):
    collection, *_ = bags(example)
    expected = collection(batch(RAGGED)).values()
    features = batch(RAGGED, ids=torch.int32, lengths_dtype=lengths_dtype)
    assert torch.equal(collection(features).values(), expected)


@every_method
def test_half_precision_tables(example):
    collection, configs, method = bags(example, data_type=DataType.FP16)
    features = batch(RAGGED)
    expected = pooled_one_by_one(look_ups(collection, configs, method), configs, features)
    assert_close(collection(features).to_dict(), expected, rtol=1e-2, atol=1e-3)


@every_method
def test_weighted_means_divide_by_the_number_of_ids(example):
    """As in FBGEMM, and so as in a sharded collection (torchrec's plain class refuses them)."""
    configs = bag_tables()
    method = example.make(as_tables(configs))
    collection = CompressedEmbeddingBagCollection(configs, {"*": method}, is_weighted=True)
    features = batch(RAGGED, weighted=True)
    expected = pooled_one_by_one(look_ups(collection, configs, method), configs, features, weighted=True)
    assert_close(collection(features).to_dict(), expected)


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.name != "UnifiedEmbedding-whole"], ids=str)
def test_narrow_tables(example):
    """Width 4: weights and vectors of HashEmbedding are in one inner collection; a table's name names its feature."""
    configs = [EmbeddingConfig(name="users", num_embeddings=20, embedding_dim=4)]
    collection = CompressedEmbeddingCollection(configs, {"*": example.make(as_tables(configs))})
    single = look_ups(collection, configs, example.make(as_tables(configs)))["users"]
    features = KeyedJaggedTensor(["users"], torch.arange(20), lengths=torch.tensor([15, 0, 5]))
    assert_close({k: v.values() for k, v in collection(features).items()}, {"users": single(torch.arange(20))})


@every_method
def test_offsets_instead_of_lengths(example):
    collection, *_ = bags(example)
    features = batch(RAGGED)
    other = KeyedJaggedTensor(features.keys(), features.values(), offsets=features.offsets())
    assert torch.equal(collection(other).values(), collection(features).values())


@every_method
def test_other_order_and_further_features(example):
    collection, *_ = bags(example)
    features = batch(RAGGED, seed=4)
    parts = features.to_dict()
    keys = ["price", "tag", "film", "brand", "user", "friend"]
    jagged = {**parts, "price": parts["user"], "brand": parts["film"]}
    other = KeyedJaggedTensor(
        keys=keys,
        values=torch.cat([jagged[key].values() for key in keys]),
        lengths=torch.cat([jagged[key].lengths() for key in keys]),
    )
    assert_close(collection(other).to_dict(), collection(features).to_dict(), rtol=0, atol=0)


@every_method
def test_weights_are_ignored_where_the_collection_is_not_weighted(example):
    """As in torchrec, where is_weighted=False reads a weighted batch."""
    collection, *_ = bags(example)
    features = batch(RAGGED, weighted=True)
    plain = KeyedJaggedTensor(keys=features.keys(), values=features.values(), lengths=features.lengths())
    assert torch.equal(collection(features).values(), collection(plain).values())


MIXTURES = {
    "branches": {
        "users": embcomp.HashEmbedding(rows=5),
        "films": embcomp.UnifiedEmbedding(rows=9, chunk_dim=4),
        "tags": embcomp.Full(),
    },
    "interleaved": {"films": embcomp.DoubleHash(rows=5), "*": embcomp.UnifiedEmbedding(rows=9, chunk_dim=4)},
    "fixed weights": {
        "users": embcomp.FrequencyHash(rows=8, counts=torch.arange(20), tail="double"),
        "films": embcomp.QuotientRemainder(combine="concat"),
        "tags": embcomp.QuotientRemainder(),
    },
    "two stores": {
        "users": embcomp.UnifiedEmbedding(rows=9, chunk_dim=8),
        "*": embcomp.UnifiedEmbedding(rows=9, chunk_dim=8),
    },
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("methods", MIXTURES.values(), ids=list(MIXTURES))
def test_methods_mix_in_one_collection(methods, weighted):
    configs = bag_tables(pooling=PoolingType.SUM) if weighted else bag_tables()
    collection = CompressedEmbeddingBagCollection(configs, methods, is_weighted=weighted)
    held, tables = stores_of(collection), as_tables(configs)
    look_up = {}
    for output in collection.assemble.outputs:  # the rows of each table, whatever its store is called
        name = output.plan.table.name
        method = methods.get(name, methods.get("*"))
        members = [t for t in tables if methods.get(t.name, methods.get("*")) is method]
        plan = method.plan(members)
        part = next(part for part in plan.tables if part.table.name == name)
        modules = {}
        for mine, theirs in zip(part.chunks, output.plan.chunks, strict=True):
            modules[mine.store] = embcomp.nn.stores.PlainStore(plan.stores[mine.store])
            modules[mine.store].weight = held[theirs.store]
        look_up[name] = embcomp.nn.CompressedEmbedding.from_plan(plan, part, modules)
    features = batch(RAGGED, weighted=weighted)
    assert_close(collection(features).to_dict(), pooled_one_by_one(look_up, configs, features, weighted))


def test_two_unified_instances_keep_two_stores_and_two_keys():
    collection = CompressedEmbeddingBagCollection(bag_tables(), MIXTURES["two stores"])
    assert [store.shape for store in stores_of(collection).values()] == [(9, 8), (9, 8)]


def test_unified_look_ups_set_the_width():
    method = embcomp.UnifiedEmbedding(rows=9, chunk_dim=4, lookups={"tags": 5})
    collection = CompressedEmbeddingBagCollection(bag_tables(), {"*": method})
    result = collection(batch(RAGGED))
    assert result.length_per_key() == [8, 8, 16, 16, 20]
    assert result["tag"].shape == (3, 20)
