"""Modules away from the CPU, without a GPU: the meta device stands for it.

It refuses operands on different devices and every read-back of a value, so that a tensor made on the CPU inside a
look-up, a CPU kernel called for other tensors, or a synchronisation fails here.
"""

import pytest
import torch
from torchrec import KeyedJaggedTensor

from embcomp import Table
from embcomp.nn import CompressedEmbedding, CompressedEmbeddingBag
from embcomp.testing.examples import EXAMPLES
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection
from embcomp.torchrec.collection.encoder import KeyedEncoder
from tests.torchrec.batches import FEATURES, as_tables, bag_tables, sequence_tables

N, D = 40, 16
every_method = pytest.mark.parametrize("example", EXAMPLES, ids=str)


def ids(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64, device="meta")


def batch() -> KeyedJaggedTensor:
    """One id in each of two bags; lengths that the host knows, as a loader gives them."""
    known = {"length_per_key": [2] * 4, "offset_per_key": [0, 2, 4, 6, 8]}
    return KeyedJaggedTensor(FEATURES, ids(8), lengths=ids(8), offsets=ids(9), stride=2, **known)


def check_gradients(module: torch.nn.Module, *outputs: torch.Tensor) -> None:
    assert all(out.is_meta for out in outputs)
    sum(out.sum() for out in outputs).backward()
    assert all(parameter.grad.is_meta for parameter in module.parameters())


@every_method
def test_plain_drop_ins(example) -> None:
    method = example.make([Table("embedding", N, D)])
    single = CompressedEmbedding(N, D, method, padding_idx=3).to("meta")
    check_gradients(single, single(ids(5, 2)), single.materialize())
    for mode, padding in (("mean", None), ("mean", 3), ("max", None)):
        bag = CompressedEmbeddingBag(N, D, method, mode=mode, padding_idx=padding).to("meta")
        check_gradients(bag, bag(ids(6), ids(2)), bag(ids(3, 2)))


@every_method
def test_collections(example) -> None:
    tables = bag_tables()
    bags = CompressedEmbeddingBagCollection(tables, {"*": example.make(as_tables(tables))}).to("meta")
    check_gradients(bags, bags(batch()).values())
    tables = sequence_tables()
    sequences = CompressedEmbeddingCollection(tables, {"*": example.make(as_tables(tables))}).to("meta")
    check_gradients(sequences, *(part.values() for part in sequences(batch()).values()))


@every_method
def test_made_under_a_default_device(example) -> None:
    """Rows wait for memory; maps and keys are those that would be made elsewhere."""
    tables = bag_tables()
    method, alone = example.make(as_tables(tables)), example.make([Table("embedding", 12, 8)])
    with torch.device("meta"):
        collection = CompressedEmbeddingBagCollection(tables, {"*": method})
        single = CompressedEmbedding(12, 8, alone)
    assert all(parameter.is_meta for module in (collection, single) for parameter in module.parameters())
    expected = dict(CompressedEmbeddingBagCollection(tables, {"*": method}).named_buffers())
    for name, buffer in collection.to_empty(device="cpu").named_buffers():
        assert torch.equal(buffer, expected[name])


def test_encoders_follow_the_rows(monkeypatch) -> None:
    """To where torchrec has put them, also without `device`; not to where no memory is."""
    seen = []
    monkeypatch.setattr(KeyedEncoder, "to", lambda self, device: seen.append(device) or self)
    CompressedEmbeddingBagCollection(bag_tables(), {})
    assert seen == [torch.device("cpu")]
    CompressedEmbeddingBagCollection(bag_tables(), {}, device="meta")
    assert len(seen) == 1
