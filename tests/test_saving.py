"""`save` and `load`: a model with compressed tables, in one file, into what its class builds."""

import copy
import json
import os
from pathlib import Path

import pytest
import safetensors
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

import embcomp
from embcomp import DoubleHash, GraphHash, HashingTrick, UnifiedEmbedding
from embcomp.graph import ClusterMap
from embcomp.methods import Table
from embcomp.testing.drop_ins import N
from embcomp.testing.example import Example
from embcomp.testing.examples import EXAMPLES

IDS = torch.tensor([[0, 3, 3], [7, 39, 1]])
BATCH = KeyedJaggedTensor(["a", "b"], torch.randint(N, (9,)), lengths=torch.tensor([2, 1, 0, 1, 3, 2]))


class Ranker(nn.Module):
    """Tables of every kind that is swapped: one module at two places, bags, torchrec collections."""

    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Embedding(N, 8, padding_idx=3)
        self.tower = nn.ModuleDict({"item": self.item, "history": nn.EmbeddingBag(N, 8, mode="sum")})
        bags = [EmbeddingBagConfig(name=n, num_embeddings=N, embedding_dim=8, feature_names=[n]) for n in ("a", "b")]
        rows = [EmbeddingConfig(name="c", num_embeddings=N, embedding_dim=8, feature_names=["a"])]
        self.bags, self.sequences = EmbeddingBagCollection(tables=bags), EmbeddingCollection(tables=rows)
        self.small = nn.Embedding(5, 8)
        self.norm, self.out = nn.BatchNorm1d(8), nn.Linear(8, 1)

    def forward(self, ids: Tensor) -> list[Tensor]:
        vectors = self.item(ids).sum(1) + self.tower["history"](ids) + self.small(ids[:, 0] % 5)
        return [self.out(self.norm(vectors)), self.bags(BATCH).values(), self.sequences(BATCH)["a"].values()]


NAMES = ("item", "tower.history", "a", "b", "c")


def compressed(make, seed: int = 0) -> Ranker:
    """Trained a little, so that nothing is as it was drawn."""
    torch.manual_seed(seed)
    model = Ranker()
    method = make([Table(name, N, 8) for name in NAMES])
    if method.shares_store:  # one instance for each module tree
        others = [make([Table(name, N, 8) for name in NAMES]) for _ in range(2)]
        methods = {"small": embcomp.Full(), "[ab]": others[0], "c": others[1], "*": method}
    else:
        methods = {"small": embcomp.Full(), "*": method}
    embcomp.compress_(model, methods)
    model(IDS)[0].sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_a_model_comes_back_whole_into_what_its_class_builds(example: Example, tmp_path: Path) -> None:
    model, path = compressed(example.make), tmp_path / "model.safetensors"
    embcomp.save(model, path)
    fresh, ready = Ranker().eval(), compressed(example.make, seed=1)
    for other in (fresh, ready):
        assert embcomp.load(other, path) is other
        for mine, theirs in zip(other(IDS), model(IDS), strict=True):
            assert torch.equal(mine, theirs)
        assert embcomp.nbytes(other) == embcomp.nbytes(model)
        assert other.item is other.tower["item"]
    expected, state = model.state_dict(), fresh.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    for target in (compressed(example.make, seed=2), copy.deepcopy(fresh)):  # an ordinary module from here on
        target.load_state_dict(state)
        assert torch.equal(target(IDS)[0], model(IDS)[0])
    sum(out.sum() for out in fresh.train()(IDS)).backward()
    embcomp.save(fresh, tmp_path / "again.safetensors")
    size = os.path.getsize(path)
    assert os.path.getsize(tmp_path / "again.safetensors") == size
    assert size < embcomp.nbytes(model) + 150_000  # nothing large beside what the model holds: headers in JSON


def test_groups_stay_groups_and_frozen_tables_frozen(tmp_path: Path) -> None:
    def build() -> nn.ModuleDict:
        return nn.ModuleDict({name: nn.Embedding(20, 8) for name in ("a", "b", "c", "[x]*")})

    model, one = build(), UnifiedEmbedding(rows=9, chunk_dim=4)
    embcomp.compress_(
        model, {"a": one, "b": one, "c": UnifiedEmbedding(rows=9, chunk_dim=4), "*": HashingTrick(rows=4)}
    )
    model["c"].requires_grad_(False)
    embcomp.save(model, tmp_path / "m")
    other = build()
    other["c"].requires_grad_(False)
    other["a"].requires_grad_(False)
    other = embcomp.load(other, tmp_path / "m")
    assert other["a"].stores[0] is other["b"].stores[0]
    assert other["a"].stores[0] is not other["c"].stores[0]
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(other["[x]*"].weight, model["[x]*"].weight)


def test_tied_outputs_come_back_tied(tmp_path: Path) -> None:
    def build(tied: bool = True) -> nn.ModuleDict:
        model = nn.ModuleDict({"item": nn.Embedding(20, 8), "out": nn.Linear(8, 20)})
        if tied:
            model["out"].weight = model["item"].weight
        return model

    model, hidden = build(), torch.randn(3, 8)
    embcomp.compress_(model, DoubleHash(rows=9))
    embcomp.save(model, tmp_path / "m")
    other = embcomp.load(build(), tmp_path / "m")
    assert other["out"].table is other["item"]
    assert torch.equal(other["out"](hidden), model["out"](hidden))
    embcomp.save(model, tmp_path / "tables", only_tables=True)
    other = build()
    bias = other["out"].bias
    embcomp.load(other, tmp_path / "tables")
    torch.testing.assert_close(other["out"](hidden), hidden @ model["item"].weight.T + bias)
    apart = build(tied=False)
    embcomp.compress_(apart, DoubleHash(rows=9))
    embcomp.save(apart, tmp_path / "apart")
    for file, tied, message in (
        ("m", False, "of another model: it lacks .'out.weight'"),
        ("apart", True, "hold the w"),
    ):
        with pytest.raises(ValueError, match=message):
            embcomp.load(fresh := build(tied), tmp_path / file)
        assert type(fresh["item"]) is nn.Embedding


def test_tables_alone_and_what_the_file_says(tmp_path: Path) -> None:
    counts = torch.arange(100_000)
    model = nn.ModuleDict({"item": nn.Embedding(100_000, 8), "out": nn.Linear(8, 1)})
    embcomp.compress_(model, {"item": embcomp.FrequencyHash(rows=400, counts=counts)})
    embcomp.save(model, tmp_path / "m", only_tables=True)
    assert os.path.getsize(tmp_path / "m") < embcomp.nbytes(model) + 4000  # the counts, 800 000 bytes, are not there
    other = nn.ModuleDict({"item": nn.Embedding(100_000, 8), "out": nn.Linear(8, 1)})
    before = other["out"].weight.clone()
    embcomp.load(other, tmp_path / "m")
    assert torch.equal(other["item"].weight, model["item"].weight)
    assert torch.equal(other["out"].weight, before)
    with safetensors.safe_open(tmp_path / "m", "pt") as file:  # by the library, without embcomp
        header = json.loads(file.metadata()["header"])
        rows = file.get_tensor(header["state"]["item.stores.0.weight"])
    assert torch.equal(rows, model["item"].stores[0].weight)
    assert header["methods"]["item"]["method"] == "FrequencyHash"
    assert header["methods"]["item"]["rows"] == 400
    with pytest.raises(ValueError, match="only_tables=True, but no table"):
        embcomp.save(nn.Linear(2, 2), tmp_path / "n", only_tables=True)
    assert not (tmp_path / "n").exists()


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    def build(items: int = 50, dim: int = 8, **more: nn.Module) -> nn.ModuleDict:
        return nn.ModuleDict({"item": nn.Embedding(items, dim), "user": nn.Embedding(9, 8), **more})

    model, path = build(), tmp_path / "m.safetensors"
    one = UnifiedEmbedding(rows=9, chunk_dim=4)
    embcomp.compress_(model, {"*": one})
    embcomp.save(model, path)
    half = build()
    embcomp.compress_(half, {"user": one})
    wrong = [
        (
            build(items=51),
            r"m.safetensors: table 'item' was saved with 50 ids and 8 columns, but the model has 51 and 8",
        ),
        (build(dim=16), "8 columns, but the model has 50 and 16"),
        (build(out=nn.Linear(8, 1)), r"another model: it lacks \['out.weight', 'out.bias'\]"),
        (nn.ModuleDict({"item": nn.Embedding(50, 8)}), r"of which the model lacks \['user'\]"),
        (half, r"only \['user'\] are compressed"),
    ]
    for other, message in wrong:
        before, kinds = copy.deepcopy(other.state_dict()), [type(module) for module in other.modules()]
        with pytest.raises(ValueError, match=message):
            embcomp.load(other, path)
        assert [type(module) for module in other.modules()] == kinds
        assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
    other = build()
    embcomp.compress_(other, {"*": UnifiedEmbedding(rows=9, chunk_dim=4, seed=1)})
    with pytest.raises(ValueError, match=r"another configuration .seed: saved 0, here 1"):
        embcomp.load(other, path)
    good = path.read_bytes()
    for place in range(0, len(good), len(good) // 40):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(ValueError, match=r"m\.safetensors"):
            embcomp.load(build(), path)
    ClusterMap.of([0, 1], 2).save(path)
    with pytest.raises(ValueError, match=r"m\.safetensors holds a cluster map, not a model"):
        embcomp.load(build(), path)


def test_other_devices_dtypes_and_meta(tmp_path: Path) -> None:
    model = nn.ModuleDict({"item": nn.Embedding(6, 8)})
    embcomp.compress_(model, {"*": GraphHash(ClusterMap.of([0, 0, 1, 2, 2, -1], 3))})
    embcomp.save(model.half(), tmp_path / "m")
    with torch.device("meta"):
        on_meta = nn.ModuleDict({"item": nn.Embedding(6, 8)})
    for other in (nn.ModuleDict({"item": nn.Embedding(6, 8)}), on_meta):
        embcomp.load(other, tmp_path / "m")
        assert torch.equal(other["item"].weight.half(), model["item"].weight)


def test_the_mixin_of_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from embcomp.hub import CompressedModelHubMixin

    class Model(nn.Module, CompressedModelHubMixin):
        def __init__(self, items: int, dim: int = 8) -> None:
            super().__init__()
            self.item, self.out = nn.Embedding(items, dim, padding_idx=0), nn.Linear(dim, 1)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.item(ids))

    assert issubclass(Model, hub.PyTorchModelHubMixin)
    model = Model(60).eval()
    embcomp.compress_(model, {"item": embcomp.DoubleHash(rows=7)})
    model.save_pretrained(tmp_path / "folder")
    again = Model.from_pretrained(tmp_path / "folder")
    ids = torch.arange(60)
    assert torch.equal(again(ids), model(ids))
    assert embcomp.nbytes(again) == embcomp.nbytes(model) < embcomp.nbytes(Model(60))
    full = Model(60).eval()
    full.save_pretrained(tmp_path / "full")
    assert torch.equal(Model.from_pretrained(tmp_path / "full")(ids), full(ids))


def test_a_namesake_of_a_part_takes_no_place(tmp_path: Path) -> None:
    """`torch.export` derives classes of the same names; a user may write one."""
    model = nn.ModuleDict({"item": nn.Embedding(N, 8)})
    embcomp.compress_(model, {"item": HashingTrick(rows=5)})
    torch.export.export(model["item"], (torch.tensor([1, 2]),), strict=False)

    class HashEncoder(embcomp.methods.base.Encoder):
        def encode(self, ids: Tensor) -> list:
            raise AssertionError

    embcomp.save(model, tmp_path / "model")
    again = embcomp.load(nn.ModuleDict({"item": nn.Embedding(N, 8)}), tmp_path / "model")
    assert type(again["item"].encoder) is type(model["item"].encoder)
    assert torch.equal(again["item"].weight, model["item"].weight)
    with pytest.raises(ValueError, match=r"HashingTrick of .*test_saving: embcomp has a method of that name"):
        type("HashingTrick", (embcomp.Method,), {"__module__": __name__})
    assert embcomp.METHODS["HashingTrick"] is HashingTrick
