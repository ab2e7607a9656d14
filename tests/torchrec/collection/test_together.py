"""Encoding all features together: equal to feature by feature, in a number of operations that features do not raise."""

import importlib.util
import os
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embcomp
from embcomp import Table
from embcomp.methods.together import Part, alike
from embcomp.ops.hashed_features import hash_features
from embcomp.testing.examples import EXAMPLES, KINDS, Example, counts_of
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection, fuse_
from embcomp.torchrec.collection.encoder import KeyedEncoder
from tests.ops.together.triton_form import needs_triton, one_launch
from tests.torchrec.batches import FEATURES, as_tables, bag_tables, bags, batch, batch_lengths, sequences

ALONE = (
    "BitCipher",
    "BitCipher-sorted",
    "Pruned",
    "MixedDimensions",
    "ProductCodes-hot",
    "SoftGraphHash",
    "LowBit-soft",
    "SemanticIds-concat",
    "SemanticIds-hybrid",
    "SemanticIds-neighbours",
)
TOGETHER = [example for example in EXAMPLES if example.name not in ALONE]
COUNTED = [
    example
    for example in TOGETHER
    if "EMBCOMP_TEST_ALL" in os.environ
    or example.name
    in {
        "HashingTrick",
        "DoubleHash",
        "HashEmbedding-hashed",
        "QuotientRemainder-mul",
        "FrequencyHash-double",
        "DoubleGraphHash-own",
        "UnifiedEmbedding-balanced",
        "ClusteredHash",
        "Dedup-blocks",
        "ROBE",
        "TensorTrain",
        "SemanticIds",
    }
]
"""An encoder of each kind, in the form with the most operations."""


def encoders_of(collection) -> list[KeyedEncoder]:
    return [branch.encoder for branch in collection.branches.values()]


def by_both(encoder: KeyedEncoder, features: KeyedJaggedTensor) -> tuple[KeyedJaggedTensor, KeyedJaggedTensor]:
    """Together, as on a GPU, and feature by feature."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embcomp.torchrec.collection.encoder._pays_together", lambda values: True)
        together = encoder(features)
    return together, encoder(features)


def assert_equal(encoder: KeyedEncoder, features: KeyedJaggedTensor) -> None:
    mine, expected = by_both(encoder, features)
    assert mine.keys() == expected.keys()
    assert torch.equal(mine.values(), expected.values())
    assert torch.equal(mine.lengths(), expected.lengths())
    assert mine.length_per_key() == expected.length_per_key()
    if expected.weights_or_none() is not None:
        assert torch.equal(mine.weights(), expected.weights())


@settings(max_examples=60)
@given(
    example=st.sampled_from(EXAMPLES),
    make=st.sampled_from([bags, sequences]),
    lengths=batch_lengths(),
    weighted=st.booleans(),
    kind=st.sampled_from([torch.int64, torch.int32, torch.uint8]),
    data=st.data(),
)
def test_together_as_one_by_one(example, make, lengths, weighted, kind, data):
    weighted = weighted and make is bags
    collection, *_ = make(example, weighted=True) if weighted else make(example)
    flat = torch.tensor(lengths).reshape(-1)
    ids = data.draw(st.lists(st.integers(0, 11), min_size=int(flat.sum()), max_size=int(flat.sum())))
    features = KeyedJaggedTensor(
        keys=data.draw(st.permutations(FEATURES)),
        values=torch.tensor(ids, dtype=kind),
        lengths=flat,
        weights=torch.rand(len(ids)) if weighted else None,
    )
    for encoder in encoders_of(collection):
        assert_equal(encoder.eval(), features)


@pytest.mark.parametrize("order", [["tag", "film", "user", "friend"], FEATURES], ids=["other order", "own order"])
@pytest.mark.parametrize("make", [bags, sequences])
@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.name.startswith(("ROBE", "TensorTrain"))], ids=str)
def test_what_is_handed_over_and_combined_together(example, make, order, monkeypatch):
    collection, *_ = make(example)
    for number, combiner in enumerate(collection.assemble.combiners):  # what a warm start would have set
        if isinstance(combiner, embcomp.methods.robe.Blocks):
            combiner.centre.fill_(number + 0.5)
    features = batch([[2, 0, 19], [0, 3, 0], [1, 21, 4], [0, 2, 0]], order)
    alone = values_of(collection(features))
    gradients = torch.autograd.grad(alone.square().sum(), list(collection.parameters()))
    for module in ("combine", "hand"):
        monkeypatch.setattr(f"embcomp.torchrec.collection.{module}.pays_together", lambda vectors: True)
    together = values_of(collection(features))
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
    if importlib.util.find_spec("triton") is not None:
        with one_launch():
            torch.testing.assert_close(values_of(collection(features)), alone, rtol=0, atol=0)
    for mine, theirs in zip(
        torch.autograd.grad(together.square().sum(), list(collection.parameters())), gradients, strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@needs_triton
@pytest.mark.parametrize("make", [bags, sequences])
@pytest.mark.parametrize("example", COUNTED, ids=str)
def test_in_one_launch_as_one_by_one(example, make):
    """Triton's kernels (`tests/ops/together`) from whole batches, whose keys are read in another order, some twice."""
    collection, *_ = make(example)
    features = batch([[2, 0, 19], [0, 3, 0], [1, 21, 4], [0, 2, 0]], ["tag", "film", "user", "friend"])
    with one_launch():
        for encoder in encoders_of(collection):
            assert_equal(encoder, features)


@settings(max_examples=30)
@given(data=st.data())
def test_large_ids_and_maps_of_different_sizes(data):
    """Every id below 2^63 where the space is open; each table with a map, a range and a key of its own."""
    configs, methods = [], {}
    for name in FEATURES:
        size = data.draw(st.sampled_from([1, 2, 40, 5000, 2**31 + 5, 2**60]))
        table = Table(name, size, 8)
        rows = data.draw(st.integers(2, 3000))
        seed = data.draw(st.integers(0, 9))
        kinds = [
            embcomp.HashingTrick(rows=rows, seed=seed),
            embcomp.MultiHash(rows=rows, num_hashes=3, seed=seed),
            embcomp.HashingTrick(rows=rows, balanced=True),
        ]
        if size <= 5000:
            clusters = embcomp.graph.ClusterMap.of(
                (torch.arange(size) % rows).masked_fill(torch.arange(size) % 5 == 1, -1), rows
            )
            kinds += [
                embcomp.QuotientRemainder(rows=rows),
                embcomp.FrequencyHash(rows=rows, counts=counts_of([table]), tail="double"),
                embcomp.FrequencyHash(rows=rows, counts=torch.zeros(size)),
                embcomp.GraphHash(clusters),
            ]
        methods[name] = data.draw(st.sampled_from(kinds))
        configs.append(EmbeddingBagConfig(name=name, num_embeddings=size, embedding_dim=8, feature_names=[name]))
    collection = CompressedEmbeddingBagCollection(configs, methods)
    ids = [data.draw(st.lists(st.integers(0, c.num_embeddings - 1), min_size=4, max_size=4)) for c in configs]
    lengths = torch.tensor([[4, 0], [1, 3], [0, 4], [2, 2]]).reshape(-1)
    features = KeyedJaggedTensor(FEATURES, values=torch.tensor(ids).reshape(-1), lengths=lengths)
    for encoder in encoders_of(collection):
        assert_equal(encoder, features)


@pytest.mark.parametrize("example", [example for example in KINDS if example in TOGETHER], ids=str)
def test_a_wrong_id_names_the_tables_of_its_group(example, monkeypatch):
    monkeypatch.setattr("embcomp.torchrec.collection.encoder._pays_together", lambda values: True)
    collection, *_ = bags(example)
    features = KeyedJaggedTensor(FEATURES, values=torch.tensor([3, 3, 33, 3]), lengths=torch.ones(4, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="films"):
        collection(features)


def operations(encoder: KeyedEncoder, features: KeyedJaggedTensor) -> Counter:
    """Operations of torch by name, without those that others are made of."""
    by_both(encoder, features)  # what is kept is made
    with pytest.MonkeyPatch.context() as patch, profile(activities=[ProfilerActivity.CPU]) as profiler:
        patch.setattr("embcomp.torchrec.collection.encoder._pays_together", lambda values: True)
        patch.setattr(
            "embcomp.torchrec.collection.encoder.check_features", lambda *given: None
        )  # of a GPU it reads nothing
        encoder(features)
    return outermost(profiler)


def outermost(profiler: profile) -> Counter:
    events = [event for event in profiler.events() if event.name.startswith("aten::")]
    return Counter(event.name for event in events if event.cpu_parent is None or event.cpu_parent.name[:6] != "aten::")


def many(example: Example, number: int, sequences: bool = False) -> tuple[Any, KeyedJaggedTensor]:
    names = [f"f{i}" for i in range(number)]
    config, kind = EmbeddingBagConfig, CompressedEmbeddingBagCollection
    if sequences:
        config, kind = EmbeddingConfig, CompressedEmbeddingCollection
    configs = [
        config(name=name, num_embeddings=50 + i, embedding_dim=8, feature_names=[name]) for i, name in enumerate(names)
    ]
    collection = kind(configs, {"*": example.make(as_tables(configs))})
    ids = torch.randint(0, 50, (number * 8,))
    features = KeyedJaggedTensor(names, ids, lengths=torch.ones(number * 8, dtype=torch.int64))
    features.length_per_key()
    return collection, features


@pytest.mark.parametrize("example", COUNTED, ids=str)
def test_operations_do_not_grow_with_the_features(example):
    counts = []
    for number in (26, 100):
        collection, features = many(example, number)
        counts.append([operations(encoder, features) for encoder in encoders_of(collection)])
    assert counts[0] == counts[1]
    for each in counts[0]:
        assert 0 < each.total() <= 60, each


VIEWS = {"split", "split_with_sizes", "slice", "narrow", "select", "view", "unsqueeze", "unbind", "expand"}


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize(
    "example",
    [
        example
        for example in EXAMPLES
        if example.name in {"MultiHash-sum", "QuotientRemainder-mul", "HashEmbedding", "DoubleGraphHash", "TensorTrain"}
    ],
    ids=str,
)
def test_operations_of_combining_do_not_grow_with_the_features(example, sequences, monkeypatch):
    """Views aside, which launch nothing; and the vectors are those that each feature has alone."""
    counts = []
    for number in (26, 100):
        collection, features = many(example, number, sequences)
        results = {name: branch(features) for name, branch in collection.branches.items()}
        alone = values_of(collection.assemble(features, results))
        with monkeypatch.context() as patch:
            patch.setattr("embcomp.torchrec.collection.combine.pays_together", lambda vectors: True)
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                together = collection.assemble(features, results)
        counts.append(Counter({name: n for name, n in outermost(profiler).items() if name[6:] not in VIEWS}))
        torch.testing.assert_close(values_of(together), alone, rtol=0, atol=0)
    assert counts[0] == counts[1]
    assert counts[0].total() <= 20, counts[0]


LAUNCH_NOTHING = VIEWS | {"empty", "detach", "resize_", "set_", "alias"}


def launches(profiler: profile) -> Counter:
    """Outermost operations that a GPU would run a kernel for: no views, nor casts to the type that there is."""
    found: Counter = Counter()
    for event in profiler.events():
        outer = event.cpu_parent is None or event.cpu_parent.name[:6] != "aten::"
        name = event.name.removeprefix("aten::")
        copies = any(child.name in ("aten::_to_copy", "aten::clone") for child in event.cpu_children)
        idle = name in LAUNCH_NOTHING or (name in ("to", "contiguous", "reshape") and not copies)
        if event.name != name and outer and not idle:
            found[name] += 1
    return found


@pytest.mark.parametrize("example", COUNTED, ids=str)
def test_a_whole_forward_takes_as_few_operations_for_many_features(example, monkeypatch):
    """Encoding, the look-up in fused tables (one call of an engine) and combining, views aside."""
    counts = []
    for number in (26, 100):
        collection, features = many(example, number)
        model = fuse_(torch.nn.ModuleDict({"c": collection}), optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 0.1})
        alone = model["c"](features).values()
        with monkeypatch.context() as patch:
            patch.setattr("embcomp.torchrec.collection.encoder._pays_together", lambda values: True)
            for module in ("combine", "hand"):
                patch.setattr(f"embcomp.torchrec.collection.{module}.pays_together", lambda vectors: True)
            for module in ("collection.encoder", "fused.tables"):  # of a GPU it reads nothing
                patch.setattr(f"embcomp.torchrec.{module}.check_features", lambda *given: None)
            model["c"](features)  # what is kept is made
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                together = model["c"](features).values()
        counts.append(launches(profiler))
        torch.testing.assert_close(together, alone)
    assert counts[0] == counts[1]
    most = 100 if example.name == "ROBE" else 60  # the places of its blocks are hashed for rows, and for the combiner
    assert 0 < counts[0].total() <= most, counts[0]


def values_of(result) -> torch.Tensor:
    return torch.cat([part.values() for part in result.values()]) if isinstance(result, dict) else result.values()


def test_a_subclass_that_encodes_otherwise_is_encoded_alone():
    class Next(embcomp.methods.hashing.HashEncoder):
        def encode(self, ids):
            return [embcomp.methods.base.Rows((rows.rows + 1) % self.ranges[0]) for rows in super().encode(ids)]

    table = Table("a", 10, 8)
    next_, plain = Next(table, {}, 0, [5], [1]), embcomp.methods.hashing.HashEncoder(table, {}, 0, [5], [1])
    assert alike(Part(next_, 0)) is None
    assert alike(Part(plain, 0)) is not None
    assert (next_.hashes() is None, plain.hashes() is None) == (True, False)


@pytest.mark.parametrize(
    "method",
    [embcomp.HashingTrick(rows=9), embcomp.DoubleHash(rows=9), embcomp.UnifiedEmbedding(rows=99, chunk_dim=4),
     embcomp.UnifiedEmbedding(rows=99, chunk_dim=4, balanced=True)],
    ids=str,
)  # fmt: skip
def test_plain_hashes_of_all_features_are_one_call_on_cpu(method, monkeypatch):
    collection = CompressedEmbeddingBagCollection(bag_tables(), {"*": method})
    (encoder,) = encoders_of(collection)
    features = batch([[2, 0], [1, 1], [3, 1], [0, 2]])
    calls: list[int | None] = []
    with monkeypatch.context() as patch:
        counted = lambda *given: calls.append(hash_features(*given)) or calls[-1]  # noqa: E731
        patch.setattr("embcomp.torchrec.collection.encoder.hash_features", counted)
        found = encoder(features)
    assert calls == [None]
    own = features.to_dict()
    each = [encoder.encoders[run[0].table](own[run[0].feature].values()) for run in encoder.runs]
    assert torch.equal(found.values(), torch.cat([rows.rows.reshape(-1) for chunks in each for rows in chunks]))


def test_a_map_that_is_swapped_is_read_at_once():
    configs = bag_tables()
    collection, *_ = bags(next(example for example in EXAMPLES if example.name == "GraphHash"))
    (encoder,) = encoders_of(collection)
    features = KeyedJaggedTensor(FEATURES, values=torch.tensor([3, 4, 5, 6]), lengths=torch.ones(4, dtype=torch.int64))
    assert_equal(encoder, features)
    for config in configs:
        own = encoder.encoders[config.name]
        own.set_map(embcomp.graph.ClusterMap.of(torch.arange(config.num_embeddings + 9) % 7, 7))
    assert_equal(encoder, features)
