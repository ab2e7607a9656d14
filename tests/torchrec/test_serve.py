"""Served collections against trained ones, and their programs."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import PlaceholderObserver
from torchrec.modules.embedding_configs import EmbeddingBagConfig, QuantConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.quant.embedding_modules import EmbeddingBagCollection as QuantEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embcomp
from embcomp.serving.swap import swap
from embcomp.testing.drop_ins import randomize
from embcomp.testing.examples import EXAMPLES
from embcomp.torchrec import CompressedEmbeddingBagCollection, fuse_
from tests.torchrec import batches
from tests.torchrec.batches import RAGGED, bag_tables, batch, sequence_tables

BATCHES = (RAGGED, [[0]] * 4, [[1, 0], [3, 2], [0, 0], [1, 1]])


def flat(result) -> dict[str, Tensor]:
    """The vectors of any kind of result, by key."""
    if isinstance(result, dict):
        return {key: jagged.values() for key, jagged in result.items()}
    return result.to_dict()


@pytest.mark.parametrize("kind", ["bags", "weighted", "sequences"])
@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_answers_as_the_collection_that_was_trained(example, kind: str) -> None:
    make = batches.sequences if kind == "sequences" else batches.bags
    module, *_ = make(example, **({"weighted": True} if kind == "weighted" else {}))
    randomize(module).eval()
    served = swap(module, "float32").model
    for lengths in BATCHES:
        features = batch(lengths, weighted=kind == "weighted")
        with torch.no_grad():
            mine, theirs = flat(served(features)), flat(module(features))
        assert list(mine) == list(theirs)
        for key, value in theirs.items():
            torch.testing.assert_close(mine[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
def test_plain_and_fused_collections_too(fused: bool, sequences: bool) -> None:
    kind = EmbeddingCollection if sequences else EmbeddingBagCollection
    model = nn.Sequential(kind(tables=sequence_tables() if sequences else bag_tables()))  # pyright: ignore
    if fused:
        fuse_(model, optimizer=torch.optim.SGD)
    with torch.no_grad():
        expected = flat(model(batch(RAGGED)))
        served = flat(swap(model, "float32").model(batch(RAGGED)))
    for key, value in expected.items():
        torch.testing.assert_close(served[key], value)


class Ranker(nn.Module):
    """Dense columns, and tables of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        methods = {"users": embcomp.UnifiedEmbedding(rows=9, chunk_dim=4), "films": embcomp.QuotientRemainder()}
        self.tables = CompressedEmbeddingBagCollection(bag_tables(), methods, is_weighted=False)
        self.head = nn.Linear(2 + 8 + 8 + 16 + 16 + 8, 1)

    def forward(self, dense: Tensor, features: KeyedJaggedTensor) -> Tensor:
        return self.head(torch.cat([dense, self.tables(features).values()], 1)).squeeze(1)


def test_a_model_over_a_jagged_batch_is_served_by_torch_alone(tmp_path: Path) -> None:
    model = randomize(Ranker())
    fuse_(model, optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 0.1})
    example = (torch.rand(3, 2), batch(RAGGED))
    report = embcomp.export(model, tmp_path / "m.pt2", example, dtype={"tables.films": "float16", "*": "int8"})
    assert report.needs == ("torch",)
    assert report.inputs == "float32 [n0, 2], (int64 [n1], int64 [4, n0])"
    assert [(t.name, t.method, t.dtypes) for t in report.tables] == [
        ("users", "UnifiedEmbedding", ("int8",)),
        ("films", "QuotientRemainder", ("float16",)),
        ("tags", "Full", ("int8",)),
    ]
    program = torch.export.load(report.path).module()
    served = swap(model, {"films": "float16", "*": "int8"}).model
    for lengths in (*BATCHES, [[], [], [], []]):
        dense, features = torch.rand(len(lengths[0]), 2), batch(lengths)
        with torch.no_grad():
            answer = program(dense, (features.values(), features.lengths().view(4, -1)))
            torch.testing.assert_close(answer, served(dense, features))
    features = batch(RAGGED)
    features.values()[-1] = 12
    with pytest.raises(RuntimeError, match="tags"):
        program(example[0], (features.values(), features.lengths().view(4, -1)))


@pytest.mark.parametrize(("dtype", "kind"), [("int8", torch.qint8), ("int4", torch.quint4x2)])
def test_rows_are_as_exact_as_those_of_torchrec_quant(dtype: str, kind: torch.dtype) -> None:
    """The same grid for each row: what both lose on average is alike."""
    sizes = {"users": 32, "films": 64}
    tables = [
        EmbeddingBagConfig(name=name, num_embeddings=500, embedding_dim=dim, feature_names=[name])
        for name, dim in sizes.items()
    ]
    collection = EmbeddingBagCollection(tables)
    outputs, weights = PlaceholderObserver.with_args(dtype=torch.float32), PlaceholderObserver.with_args(dtype=kind)
    collection.qconfig = QuantConfig(activation=outputs, weight=weights)
    features = KeyedJaggedTensor(list(sizes), torch.arange(500).repeat(2), lengths=torch.ones(1000, dtype=torch.int64))
    with torch.no_grad():
        trained = collection(features).values()
        theirs = (QuantEmbeddingBagCollection.from_float(collection)(features).values() - trained).abs()
        ours = (swap(collection, dtype).model(features).values() - trained).abs()  # pyright: ignore
    assert 0 < ours.mean() < 1.01 * theirs.mean()
    assert ours.max() < 1.1 * theirs.max()
