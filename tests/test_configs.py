"""Configurations: equal by value, made again from JSON and a safetensors file, refused by name where they cannot be."""

import copy
import dataclasses
import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torchrec import EmbeddingBagConfig

import embcomp
from embcomp import METHODS, FrequencyHash, HashingTrick, LSHash, SemanticIds, Table, UnifiedEmbedding, configs
from embcomp.graph import ClusterMap
from embcomp.methods.base import Method
from embcomp.nn import CompressedEmbedding
from embcomp.semantic_ids import Neighbours, Vocabulary
from embcomp.testing.example import Example
from embcomp.testing.examples import EXAMPLES, items_of
from embcomp.torchrec import CompressedEmbeddingBagCollection

TABLES = [Table("film", 40, 8), Table("user", 30, 8)]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Around(Method):
    """A method around another, as codecs are."""

    bits: int
    of: Method

    def plan(self, tables, group="shared"):
        return self.of.plan(tables, group)

    @classmethod
    def for_budget(cls, tables, nbytes, **fixed):
        raise NotImplementedError


METHODS.pop("Around")  # other tests of this process go over all methods


@pytest.fixture
def around():
    METHODS["Around"] = Around
    yield Around
    METHODS.pop("Around")


def again(value, folder: Path):
    configs.save(value, folder / "c.safetensors")
    return configs.load(folder / "c.safetensors")


def rows_of(method: Method) -> list:
    plans = method.plan(TABLES).tables
    ids = torch.arange(30)
    return [[(c.rows.tolist(), c.weights) for c in plan.encoder.eval()(ids)] for plan in plans]


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_they_compare_by_value_and_are_made_again_from_files(example: Example, tmp_path: Path) -> None:
    method, twin = example.make(TABLES), example.make(TABLES)
    assert method == twin
    assert hash(method) == hash(twin)
    assert len({method, twin}) == 1
    other = dataclasses.replace(method, seed=77) if hasattr(method, "seed") else HashingTrick(rows=2)
    assert method != other
    read = again(method, tmp_path)
    assert read == method
    assert read is not method
    assert type(read) is type(method)
    assert configs.same(rows_of(read), rows_of(method))
    assert [t.nbytes() for t in (read.plan(TABLES), method.plan(TABLES))] == [method.plan(TABLES).nbytes()] * 2
    for copied in (copy.deepcopy(method), pickle.loads(pickle.dumps(method)), dataclasses.replace(method)):
        assert copied == method


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_a_method_takes_its_own_configuration_or_says_what_is_missing(example: Example) -> None:
    method = example.make(TABLES)
    config = json.loads(json.dumps(method.config()))
    try:
        configs.to_json(method)
        large = False
    except ValueError:  # it holds tensors
        large = True
    if not large:
        assert METHODS[config["method"]](**config) == method
        del config["method"]
        assert type(method)(**config) == method
        return
    with pytest.raises((TypeError, ValueError), match=r"counts|clusters|codes|features|pieces|vectors"):
        METHODS[config["method"]](**config)


def test_a_checksum_is_no_tensor_and_another_method_is_another() -> None:
    config = FrequencyHash(rows=4, counts=torch.ones(6)).config()
    with pytest.raises(ValueError, match=r"counts is the checksum of a tensor, 'tensor \[6\].*configs.save"):
        FrequencyHash(**config)
    with pytest.raises(ValueError, match="HashingTrick: the configuration is that of the method 'DoubleHash'"):
        HashingTrick(**embcomp.DoubleHash(rows=4).config())
    assert HashingTrick(rows=10) != embcomp.DoubleHash(rows=10)
    assert HashingTrick(rows=10) != {"rows": 10}
    assert HashingTrick(rows={"a": 5}) == HashingTrick(rows={"a": np.int16(5)}) != HashingTrick(rows={"a": 6})
    counts = torch.tensor([3, 1, 2])
    assert FrequencyHash(rows=2, counts=counts) == FrequencyHash(rows=2, counts=counts.numpy())
    assert FrequencyHash(rows=2, counts=counts) != FrequencyHash(rows=2, counts=counts.flip(0))


def test_equal_instances_stay_groups_of_their_own() -> None:
    """Grouping goes by instance: equal configurations do not merge stores."""
    one, two = (UnifiedEmbedding(rows=9, chunk_dim=4) for _ in range(2))
    assert one == two
    model = torch.nn.ModuleDict({name: torch.nn.Embedding(20, 8) for name in "abc"})
    embcomp.compress_(model, {"a": one, "b": one, "c": two})
    assert model["a"].stores[0] is model["b"].stores[0]
    assert model["a"].stores[0] is not model["c"].stores[0]
    from torchrec import EmbeddingBagConfig

    from embcomp.torchrec import CompressedEmbeddingBagCollection

    tables = [EmbeddingBagConfig(name=n, num_embeddings=20, embedding_dim=8, feature_names=[n]) for n in "abc"]
    collection = CompressedEmbeddingBagCollection(tables, {"a": one, "b": one, "c": two})
    assert sum(parameter.shape[0] for parameter in collection.parameters()) == 18


def test_they_nest_and_keep_what_is_shared(around: type[Method], tmp_path: Path) -> None:
    shared = torch.tensor([5, 1, 2, 0])
    inner = FrequencyHash(rows=3, counts={"a": shared, "b": shared})
    methods = {
        "x": around(bits=4, of=inner),
        "y": [around(bits=2, of=around(bits=1, of=HashingTrick(rows=5)))],
        "z": inner,
    }
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(configs.to_json(methods, tensors))
    assert list(tensors) == ["x.of.counts.a"]
    read = configs.from_json(json.loads(text), tensors)
    assert configs.same(read, methods)
    assert read["x"].of.counts["a"] is read["z"].counts["b"]
    assert configs.same(again(methods, tmp_path), methods)
    with pytest.raises(ValueError, match="Around: of must be"):
        around(bits=4, of="UnifiedEmbedding")


def test_maps_that_tables_share_are_one_again(tmp_path: Path) -> None:
    """Two tables of one map store it once; so they do after a round trip."""
    both = items_of([Table("a", 40, 8)])
    codes, counts = both["codes"]["a"], both["counts"]["a"]
    near, pieces = Neighbours.of(torch.randn(40, 4), counts, k=3), embcomp.PrefixNgram(2, unigrams=True)
    tables = [Table("a", 40, 8), Table("b", 40, 8)]
    method = SemanticIds(
        {"a": codes, "b": codes}, pieces, 16, counts={"a": counts, "b": counts}, neighbours={"a": near, "b": near},
        vocabulary=Vocabulary.of(codes, pieces, codebook_size=8, counts=counts), codebook_size=8,
    )  # fmt: skip
    read = again(method, tmp_path)
    assert read == method
    assert read.plan(tables).nbytes() == method.plan(tables).nbytes()


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_what_json_does_not_know_comes_back(tmp_path: Path) -> None:
    trained = embcomp.SentencePieces(vocab_size=3, model=b"\x00\xffmodel")
    sparse = torch.tensor([[0.0, 2.0], [1.0, 0.0]]).to_sparse()
    value = {
        "method": 3, "$tensor": [1, (2, "x", None)], "nested": {5: True}, "bytes": b"", "pieces kind": trained,
        "sparse": sparse, "rows": sparse.to_sparse_csr(), "array": np.arange(3), "none": torch.empty(0), "big": 2**80,
    }  # fmt: skip
    read = again(value, tmp_path)
    assert configs.same(read, value)
    assert read["rows"].layout == torch.sparse_csr
    assert read["pieces kind"].model == trained.model
    views = {"a": torch.arange(6)[:3], "b": torch.arange(6).view(2, 3).t()}
    views["c"] = views["a"].view(3)
    assert configs.same(again(views, tmp_path), views)
    for wrong, message in [
        (torch.float32, "'t' is of type|t is of type dtype"),
        (float("nan"), "t: nan cannot be part"),
        (torch.nn.Linear(1, 1), "Linear"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            configs.to_json({"t": wrong}, {})
    with pytest.raises(ValueError, match=r"t\.u is a tensor: pass `tensors`"):
        configs.to_json({"t": {"u": sparse.to_dense()}})


def test_files_that_are_wrong_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    configs.save(FrequencyHash(rows=4, counts=torch.arange(9)), path)
    good = path.read_bytes()
    assert torch.equal(safetensors.torch.load(good)["counts"], torch.arange(9))
    for place in range(0, len(good), 13):
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with pytest.raises(ValueError, match=r"c\.safetensors"):
            configs.load(path)
    ClusterMap.of([0, 1], 2).save(path)
    with pytest.raises(ValueError, match=r"c\.safetensors.*not a configuration|c\.safetensors is damaged"):
        configs.load(path)
    with pytest.raises(ValueError, match=r"item: no method is called 'Unheard'; known are \['"):
        configs.from_json({"item": {"method": "Unheard", "rows": 3}})
    with pytest.raises(ValueError, match=r"the configuration: .*'row'"):
        configs.from_json({"method": "HashingTrick", "row": 3})
    with pytest.raises(ValueError, match="its tensor 'counts' is missing"):
        configs.from_json({"method": "FrequencyHash", "rows": 3, "counts": {"$tensor": "counts"}})


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_integers_of_numpy_are_integers(kind: type) -> None:
    method = embcomp.MultiHash(rows=kind(9), num_hashes=kind(2), seed=kind(3), balanced=np.bool_(True))
    assert method == embcomp.MultiHash(rows=9, num_hashes=2, seed=3, balanced=True)
    assert type(method.rows) is int
    assert Table("t", kind(9), kind(4)) == Table("t", 9, 4)
    clusters = ClusterMap.of(np.array([0, 1, 1]), kind(2), unseen_rows=kind(0))
    assert type(clusters.rows) is int
    model = torch.nn.ModuleDict({"t": torch.nn.Embedding(kind(50), kind(8), padding_idx=kind(3))})
    embcomp.compress_(model, {"t": method})
    assert model["t"].load_state_dict(model["t"].state_dict())
    assert (type(model["t"].num_embeddings), type(model["t"].padding_idx)) == (int, int)


def made(method: Method) -> CompressedEmbedding:
    return CompressedEmbedding(9, 4, method)


def in_torchrec(method: Method) -> CompressedEmbeddingBagCollection:
    tables = [EmbeddingBagConfig(name="t", num_embeddings=9, embedding_dim=4, feature_names=["t"])]
    return CompressedEmbeddingBagCollection(tables, {"*": method})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: embcomp.MultiHash(rows=5, num_hashes=10**9), "MultiHash: num_hashes .* 4096"),
        (lambda: embcomp.HashEmbedding(rows=5, num_hashes=10**9), "HashEmbedding: num_hashes"),
        (lambda: HashingTrick(rows=torch.tensor(5)), "HashingTrick: rows must be .* Tensor"),
        (lambda: HashingTrick(rows={"a": float("nan")}), r"HashingTrick: rows\['a'\]"),
        (lambda: HashingTrick(rows=5, seed=2**70), "HashingTrick: seed"),
        (lambda: HashingTrick(rows=5, balanced=1), "HashingTrick: balanced must be True or False, got 1"),
        (lambda: FrequencyHash(rows=5, counts=torch.ones(3), hot_share=float("inf")), "FrequencyHash: hot_share"),
        (lambda: FrequencyHash(rows=5, counts="counts"), "FrequencyHash: counts"),
        (lambda: FrequencyHash(rows=5, counts=torch.ones(3, device="meta")), "FrequencyHash: counts"),
        (lambda: LSHash(rows=5, features="x"), "LSHash: features"),
        (lambda: embcomp.SoftGraphHash(ClusterMap.of([0, 1], 2), weights=None, k=10**9), "SoftGraphHash: weights"),
        (lambda: embcomp.SoftGraphHash(ClusterMap.of([0, 1], 2), weights={}, k=10**9), "SoftGraphHash: k"),
        (lambda: embcomp.GraphHash(ClusterMap.of([0, 1], 2), hot=[0.5]), "GraphHash: hot"),
        (lambda: ClusterMap.of([0, 1], rows=2**31 - 1), "rows of a map must be at most"),
        (lambda: UnifiedEmbedding(rows=5, chunk_dim=1).plan([Table("t", 9, 10**5)]), "table 't': chunk_dim 1"),
        (lambda: Table("t", 9, 10**9), "table 't': embedding_dim"),
        (lambda: Table("t", torch.tensor(3), 4), "table 't': num_embeddings"),
        (lambda: SemanticIds([[2**60]], embcomp.Unigram(), 4).plan([Table("t", 1, 8)]), "codes of item 0"),
        (lambda: SemanticIds(torch.tensor([[1]]), embcomp.Unigram(), 4, codebook_size=2**60), "codebook_size"),
        (lambda: HashingTrick.for_budget([Table("t", 9, 4)], 2**63), "nbytes must be"),
        (lambda: HashingTrick.for_budget([Table("t", 9, 4)], True), "nbytes must be"),
        (lambda: HashingTrick.for_budget([Table("t", 9, 4)], float("nan")), "nbytes must be"),
        (lambda: HashingTrick.for_budget([], 4000), "tables"),
        (lambda: HashingTrick.for_budget(["t"], 4000), "tables"),
        (lambda: HashingTrick.for_budget([Table("t", 9, 4)] * 2, 4000), "'t' twice"),
        # More than 4 GiB, and more than twice the full table, before memory is taken.
        (lambda: made(HashingTrick(rows=2**31 - 1)), r"take 34,359,738,\d+ bytes, and the full tables 144"),
        (lambda: made(UnifiedEmbedding(rows=2**31 - 1, chunk_dim=4)), "these settings take"),
        (lambda: made(embcomp.DeepHash(width=2**20)), "these settings take"),
        (lambda: made(embcomp.HotRows(rows=2**31 - 1, own_share=0.5)), "these settings take"),
        (lambda: in_torchrec(HashingTrick(rows=2**31 - 1)), r"tables \['t'\]: these settings take"),
        (lambda: embcomp.compress_(torch.nn.ModuleList([torch.nn.Embedding(9, 4)]), HashingTrick(rows=2**30)), "'0'"),
        (lambda: embcomp.nn.MemoryLinear(64, 2**20, bits=16), "262,144 rows of 1,048,576 numbers.*fewer bits"),
        (lambda: embcomp.compress_(None, HashingTrick(rows=3)), "model must be a torch.nn.Module, got None"),
        (lambda: embcomp.nbytes(3), "model must be a torch.nn.Module, got 3"),
        (lambda: embcomp.summary("x"), "model must be a torch.nn.Module"),
        (lambda: embcomp.save(None, "x.safetensors"), "model must be a torch.nn.Module"),
        (lambda: embcomp.export({}, "x.pt2", (torch.arange(4),)), "model must be a torch.nn.Module"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_once_by_name(make, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_mapping_is_copied() -> None:
    rows: Mapping[str, int] = {"a": 5}
    method = HashingTrick(rows=rows)
    rows["a"] = 6  # pyright: ignore
    assert method.rows == {"a": 5}
