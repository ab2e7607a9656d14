"""What reaches the inner collections: open id spaces, bad batches, settings of torch."""

import pickle
from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embcomp
from embcomp.ops.hashing import hash_key, hash_rows_reference
from embcomp.testing.examples import EXAMPLES, KINDS
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection, fuse_
from embcomp.torchrec.holders import stores_of
from tests.torchrec.batches import (
    FEATURES,
    RAGGED,
    as_tables,
    assert_close,
    bag_tables,
    bags,
    batch,
    look_ups,
    pooled_one_by_one,
    sequences,
)

OPEN = 2**63 - 1
every_method = pytest.mark.parametrize("example", EXAMPLES, ids=str)


# --- An open id space ---


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.open_ids], ids=str)
def test_open_id_space(example):
    configs = [
        EmbeddingBagConfig(name="page", num_embeddings=OPEN, embedding_dim=8, feature_names=["page"]),
        EmbeddingBagConfig(
            name="site", num_embeddings=OPEN, embedding_dim=8, feature_names=["site"], weight_init_min=-1.0,
            weight_init_max=1.0,
        ),
    ]  # fmt: skip
    method = example.make([embcomp.Table(c.name, None, c.embedding_dim) for c in configs])
    collection = CompressedEmbeddingBagCollection(configs, {"*": method})
    features = KeyedJaggedTensor(
        keys=["page", "site"], values=torch.tensor([2**62, 0, 2**63 - 2, 5]), lengths=torch.tensor([1, 1, 2, 0])
    )
    made = look_ups(collection, configs, method, open_ids=True)
    expected = pooled_one_by_one(made, configs, features)
    assert_close(collection(features).to_dict(), expected)


def test_open_id_space_reads_the_specified_row():
    configs = [EmbeddingConfig(name="page", num_embeddings=OPEN, embedding_dim=4, feature_names=["page"])]
    collection = CompressedEmbeddingCollection(configs, {"*": embcomp.HashingTrick(rows=1000)})
    ids = torch.tensor([2**62, 2**63 - 2, 3])
    rows = hash_rows_reference(ids, torch.tensor([hash_key(0, "page", 0)]), 1000).squeeze(1)
    features = KeyedJaggedTensor(keys=["page"], values=ids, lengths=torch.tensor([3]))
    expected = stores_of(collection)["page"][rows]
    assert torch.equal(collection(features)["page"].values(), expected)


@pytest.mark.parametrize("example", [e for e in EXAMPLES if not e.open_ids], ids=str)
def test_closed_methods_refuse_an_open_id_space(example):
    method = example.make(as_tables(bag_tables()))
    configs = [EmbeddingBagConfig(name="users", num_embeddings=OPEN, embedding_dim=8, feature_names=["user"])]
    with pytest.raises(ValueError, match="'users'"):
        CompressedEmbeddingBagCollection(configs, {"*": method})


# --- Bad input ---


@every_method
@pytest.mark.parametrize("make", [bags, sequences])
def test_bad_ids_name_the_table(example, make):
    collection, *_ = make(example)
    features = batch(RAGGED)
    for wrong in (-1, 33):
        features.values()[6] = wrong  # the first of "film"
        with pytest.raises(IndexError, match=rf"'films'.*{wrong}"):
            collection(features)
    floats = KeyedJaggedTensor(keys=FEATURES, values=torch.rand(14), lengths=torch.tensor(RAGGED).reshape(-1))
    with pytest.raises(ValueError, match=r"'users'.*float32"):
        collection(floats)


@pytest.mark.parametrize("make", [bags, sequences])
def test_missing_feature(make):
    collection, *_ = make(EXAMPLES[0])
    with pytest.raises(KeyError, match="friend"):
        collection(batch(RAGGED[1:], keys=["user", "film", "tag"]))


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_missing_weights(example):
    collection, *_ = bags(example, weighted=True)
    with pytest.raises(ValueError, match="no weights"):
        collection(batch(RAGGED))


def test_batches_that_differ_in_size():
    collection, *_ = bags(EXAMPLES[0])
    features = KeyedJaggedTensor(
        keys=FEATURES,
        values=torch.arange(5),
        lengths=torch.ones(5, dtype=torch.int64),
        stride_per_key_per_rank=[[2], [1], [1], [1]],
    )
    with pytest.raises(ValueError, match="varies"):
        collection(features)


def test_inverse_indices():
    collection, *_ = bags(EXAMPLES[0])
    features = KeyedJaggedTensor(
        keys=FEATURES,
        values=torch.arange(4),
        lengths=torch.ones(4, dtype=torch.int64),
        inverse_indices=(FEATURES, torch.zeros(4, 2, dtype=torch.int64)),
    )
    with pytest.raises(ValueError, match="inverse indices"):
        collection(features)


# --- Settings of torch ---


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("example", KINDS, ids=str)
def test_default_dtype_changes_nothing(example, weighted, float64_by_default):
    """Torchrec's tables are float32 whatever the default is."""
    collection, configs, method = bags(example, weighted)
    assert {store.dtype for store in stores_of(collection).values()} == {torch.float32}
    features = batch(RAGGED, weighted=weighted)
    expected = pooled_one_by_one(look_ups(collection, configs, method), configs, features, weighted)
    expected = {key: value.float() for key, value in expected.items()}
    assert_close(collection(features).to_dict(), expected)
    fuse_(collection, optimizer=RowWiseAdagrad)
    fused = collection(features)
    assert_close(fused.to_dict(), expected)
    fused.values().sum().backward()
    assert all(weight.isfinite().all() for weight in collection.parameters())


@every_method
def test_shapes_of_stand_ins(example):
    """Under FakeTensorMode (to count operations, say) nothing is read, and nothing is left behind."""
    collection, *_ = bags(example)
    expected = collection(batch(RAGGED)).values()
    twin = pickle.loads(pickle.dumps(collection))
    features = batch(RAGGED)
    sizes = features.length_per_key()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = KeyedJaggedTensor(
            features.keys(),
            values=mode.from_tensor(features.values()),
            lengths=mode.from_tensor(features.lengths()),
            stride=features.stride(),
            length_per_key=sizes,
        )
        assert twin(fake).values().shape == expected.shape
    assert torch.equal(twin(batch(RAGGED)).values(), expected)
