"""How tables become stores: patterns, names, initial rows."""

import functools
import math

import pytest
import torch
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embcomp
from embcomp.torchrec import CompressedEmbeddingBagCollection
from embcomp.torchrec.holders import stores_of
from tests.torchrec.batches import (
    bag_tables,
)

# --- Patterns ---


def test_unknown_pattern_and_duplicate_table():
    with pytest.raises(ValueError, match=r"'songs'.*users"):
        CompressedEmbeddingBagCollection(bag_tables(), {"songs": embcomp.HashingTrick(rows=5)})
    with pytest.raises(ValueError, match="duplicate"):
        CompressedEmbeddingBagCollection([bag_tables()[0], bag_tables()[0]], {})


def test_first_matching_pattern_wins_and_the_rest_stays_full():
    collection = CompressedEmbeddingBagCollection(
        bag_tables(), {"user?": embcomp.HashingTrick(rows=5), "us*": embcomp.HashingTrick(rows=6)}
    )
    assert {name: store.shape[0] for name, store in stores_of(collection).items()} == {
        "users": 5, "films": 33, "tags": 12,
    }  # fmt: skip


def test_tables_of_one_store_share_a_data_type():
    configs = bag_tables()
    configs[1].data_type = DataType.FP16
    with pytest.raises(ValueError, match=r"'films'.*FP16"):
        CompressedEmbeddingBagCollection(configs, {"*": embcomp.UnifiedEmbedding(rows=5, chunk_dim=8)})


# --- Names of stores ---


def named(*names: str) -> list[EmbeddingBagConfig]:
    return [EmbeddingBagConfig(name=name, num_embeddings=100, embedding_dim=8, feature_names=[name]) for name in names]


@pytest.mark.parametrize("unified_first", [True, False])
def test_a_table_may_be_called_shared(unified_first):
    names = ("films", "shared") if unified_first else ("shared", "films")
    methods = {"shared": embcomp.Full(), "*": embcomp.UnifiedEmbedding(rows=9, chunk_dim=8)}
    stores = stores_of(CompressedEmbeddingBagCollection(named(*names), methods))
    assert {name: store.shape for name, store in stores.items()} == {"shared": (100, 8), "shared_1": (9, 8)}


def test_shared_stores_are_numbered_among_themselves():
    """So that another method of another table changes no state-dict key of theirs."""
    first, second = (embcomp.UnifiedEmbedding(rows=rows, chunk_dim=8) for rows in (9, 7))
    methods = {"a": embcomp.HashingTrick(rows=5), "b": first, "c": embcomp.Full(), "*": second}
    stores = stores_of(CompressedEmbeddingBagCollection(named("a", "b", "c", "d"), methods))
    assert {name: store.shape[0] for name, store in stores.items()} == {"a": 5, "shared": 9, "c": 100, "shared_1": 7}


@pytest.mark.parametrize("method", [embcomp.QuotientRemainder(combine="concat"), embcomp.QuotientRemainder()])
@pytest.mark.parametrize("other", ["same", "another"])
def test_clashing_names_of_stores_are_refused(method, other):
    """One table's quotient rows and another table's rows would be one store."""
    methods = {"a": method, "*": method if other == "same" else embcomp.Full()}
    with pytest.raises(ValueError, match=r"'a_quotient'.*rename"):
        CompressedEmbeddingBagCollection(named("a", "a_quotient"), methods)


# --- Initial rows ---


def test_rows_start_as_those_of_torchrec():
    configs = named("t")
    full = stores_of(CompressedEmbeddingBagCollection(configs, {"*": embcomp.Full()}))["t"]
    hashed = stores_of(CompressedEmbeddingBagCollection(configs, {"*": embcomp.HashingTrick(rows=25)}))["t"]
    for store, bound in ((full, 0.1), (hashed, 0.2)):
        assert store.abs().max() <= bound
        assert store.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


RULES = {
    "normal": functools.partial(torch.nn.init.normal_, mean=0.0, std=2.0),
    "uniform": functools.partial(torch.nn.init.uniform_, a=-2 * math.sqrt(3), b=2 * math.sqrt(3)),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_own_initialisation_keeps_its_spread(rule):
    """An init_fn of the user's rules, scaled so that a sum of rows has the standard deviation asked for (2 here)."""
    config = EmbeddingBagConfig(name="t", num_embeddings=900, embedding_dim=64, feature_names=["t"], init_fn=rule)
    features = KeyedJaggedTensor(keys=["t"], values=torch.arange(900), lengths=torch.ones(900, dtype=torch.int64))
    for method in (
        embcomp.Full(),
        embcomp.MultiHash(rows=400, num_hashes=3),
        embcomp.QuotientRemainder(),
        embcomp.HashEmbedding(rows=400),
    ):
        spread = CompressedEmbeddingBagCollection([config], {"*": method})(features).values().std().item()
        assert spread == pytest.approx(2.0, rel=0.15), method


def test_weight_init_bounds_are_honoured():
    configs = bag_tables(weight_init_min=0.5, weight_init_max=0.75)
    for store in stores_of(CompressedEmbeddingBagCollection(configs, {"*": embcomp.HashingTrick(rows=9)})).values():
        assert ((store >= 0.5) & (store <= 0.75)).all()
