"""`compress_` on models that we did not write.

All click-through models of torch-rechub, built as its examples do, and what `python -m experiments.third_party` tries
of the libraries that are installed: two always are, requirements/third-party.txt brings the others.
"""

import importlib
import json
import math
import os
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.models import ranking
from torch_rechub.trainers import CTRTrainer

import embcomp
from experiments.third_party.__main__ import THIRD_PARTY
from experiments.third_party.libraries import PACKAGES
from experiments.third_party.trial import METHODS, try_exact, try_method

BATCH, LENGTH, DIM = 32, 6, 8
SPARSE = {"user": 300, "item": 400, "city": 150}
DENSE = ["age", "price"]


def sparse(dim: int = DIM, times: int = 1) -> list[SparseFeature]:
    # Features keep the table that they make, so each model gets features of its own.
    return [SparseFeature(name, vocab_size=size * times, embed_dim=dim) for name, size in SPARSE.items()]


def dense() -> list[DenseFeature]:
    return [DenseFeature(name) for name in DENSE]


def target() -> list[SparseFeature]:
    return [SparseFeature("item", vocab_size=SPARSE["item"], embed_dim=DIM, padding_idx=0)]


def history(name: str = "history") -> list[SequenceFeature]:
    """Item ids padded with 0, read from the table of the target item."""
    size = SPARSE["item"]
    return [SequenceFeature(name, size, embed_dim=DIM, pooling="concat", shared_with="item", padding_idx=0)]


def profile() -> list[SparseFeature]:
    return [SparseFeature("user", vocab_size=SPARSE["user"], embed_dim=DIM)]


MLP = {"dims": [16, 8], "dropout": 0.2, "activation": "relu"}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "WideDeep": lambda: ranking.WideDeep(
        wide_features=sparse(), deep_features=sparse() + dense(), mlp_params=dict(MLP)
    ),
    "DeepFM": lambda: ranking.DeepFM(deep_features=dense(), fm_features=sparse(), mlp_params=dict(MLP)),
    "DCN": lambda: ranking.DCN(features=dense() + sparse(), n_cross_layers=3, mlp_params=dict(MLP)),
    "DCNv2": lambda: ranking.DCNv2(features=dense() + sparse(), n_cross_layers=3, mlp_params=dict(MLP)),
    "EDCN": lambda: ranking.EDCN(features=dense() + sparse(), n_cross_layers=3, mlp_params=dict(MLP)),
    "AFM": lambda: ranking.AFM(fm_features=sparse(), embed_dim=DIM),
    "FiBiNet": lambda: ranking.FiBiNet(features=dense() + sparse(), reduction_ratio=3, mlp_params=dict(MLP)),
    "DeepFFM": lambda: ranking.DeepFFM(
        linear_features=sparse(dim=1), cross_features=sparse(times=len(SPARSE)), embed_dim=DIM, mlp_params=dict(MLP)
    ),
    "FatDeepFFM": lambda: ranking.FatDeepFFM(
        linear_features=sparse(dim=1),
        cross_features=sparse(times=len(SPARSE)),
        embed_dim=DIM,
        reduction_ratio=1,
        mlp_params=dict(MLP),
    ),
    "BST": lambda: ranking.BST(
        features=profile(), history_features=history(), target_features=target(), mlp_params=dict(MLP)
    ),
    "DIN": lambda: ranking.DIN(
        features=profile(),
        history_features=history(),
        target_features=target(),
        mlp_params={"dims": [16, 8]},
        attention_mlp_params={"dims": [16, 8]},
    ),
    "DIEN": lambda: ranking.DIEN(
        features=profile(),
        history_features=history(),
        neg_history_features=history("negatives"),
        target_features=target(),
        mlp_params={"dims": [16, 8]},
    ),
    "AutoInt": lambda: ranking.AutoInt(sparse_features=sparse(), dense_features=dense(), mlp_params=dict(MLP)),
}
# torch says so of every encoder layer with an activation of its own, as BST's.
pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
every_model = pytest.mark.parametrize("name", MODELS)


def make(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = MODELS[name]()
    # The library draws rows of 1e-4, too small for a wrong row to show in the output.
    for table in tables(model).values():
        with torch.no_grad():
            table.weight.normal_(0, 0.5)
            if table.padding_idx is not None:
                table.weight[table.padding_idx] = 0
    return model


def tables(model: nn.Module) -> dict[str, nn.Embedding]:
    return {path: module for path, module in model.named_modules() if type(module) is nn.Embedding}


def batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = {name: torch.randint(1, size, (BATCH,), generator=generator) for name, size in SPARSE.items()}
    for name in ("history", "negatives"):
        ids = torch.randint(1, SPARSE["item"], (BATCH, LENGTH), generator=generator)
        lengths = torch.randint(1, LENGTH + 1, (BATCH, 1), generator=generator)
        x[name] = ids.where(torch.arange(LENGTH) < lengths, 0)
    # Negatives are drawn one for each item of the history.
    x["negatives"] = x["negatives"].where(x["history"] > 0, 0)
    return x | {name: torch.rand(BATCH, generator=generator) for name in DENSE}


def predict(model: nn.Module, x: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Probabilities and, for DIEN, its auxiliary loss."""
    out = model(x)
    return out if isinstance(out, tuple) else (out,)


def hashing(model: nn.Module) -> dict[str, embcomp.Method]:
    return {"*": embcomp.HashingTrick(rows=20)}


def unified(model: nn.Module) -> dict[str, embcomp.Method]:
    return {
        "*": embcomp.UnifiedEmbedding(rows=60, chunk_dim=math.gcd(*(t.embedding_dim for t in tables(model).values())))
    }


def quotient_remainder(model: nn.Module) -> dict[str, embcomp.Method]:
    """As many remainders as ids: an id's row is its own."""
    return {path: embcomp.QuotientRemainder(rows=t.num_embeddings, combine="mul") for path, t in tables(model).items()}


def frequency(model: nn.Module) -> dict[str, embcomp.Method]:
    """Every id owns a row: half of the rows are owned, and there are twice as many as ids."""
    return {
        path: embcomp.FrequencyHash(rows=2 * t.num_embeddings, counts=torch.ones(t.num_embeddings, dtype=torch.int64))
        for path, t in tables(model).items()
    }


def test_no_model_of_the_library_is_missing():
    assert set(MODELS) == set(ranking.__all__)


@every_model
@pytest.mark.parametrize("methods", [hashing, unified])
def test_a_compressed_model_trains(name, methods):
    model = make(name)
    before, shapes = embcomp.nbytes(model), [out.shape for out in predict(model, batch())]
    full = sum(table.weight.nbytes for table in tables(model).values())
    report = embcomp.compress_(model, methods(model))

    assert not tables(model)
    assert report.bytes_before == full
    assert report.bytes_after < full / 3
    assert embcomp.nbytes(model) == before - full + report.bytes_after

    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rows = {n: p.detach().clone() for n, p in model.named_parameters() if ".stores." in f".{n}"}
    assert rows
    label = torch.randint(0, 2, (BATCH,)).float()
    prediction, *auxiliary = predict(model, batch())
    loss = nn.functional.binary_cross_entropy(prediction, label) + sum(auxiliary)
    loss.backward()
    optimizer.step()
    for n, old in rows.items():
        assert not torch.equal(model.get_parameter(n), old), f"{n} did not learn"

    outputs = predict(model.eval(), batch(1))
    assert [out.shape for out in outputs] == shapes
    assert all(out.isfinite().all() for out in outputs)


@every_model
def test_the_trainer_of_the_library_learns(name, tmp_path):
    """Its own loop, on clicks that follow from the item: the log-loss falls below that of always saying 1/2."""
    model = make(name)
    embcomp.compress_(model, {"*": embcomp.DoubleHash(rows=100)})
    batches = [(x, (x["item"] % 2).float()) for x in map(batch, range(2))]
    trainer = CTRTrainer(
        model,
        optimizer_params={"lr": 0.01},
        n_epoch=20,
        loss_mode=len(predict(model, batch())) == 1,
        model_path=str(tmp_path),
    )
    trainer.fit(batches)
    model.eval()
    losses = [nn.functional.binary_cross_entropy(predict(model, x)[0], y) for x, y in batches]
    assert torch.stack(losses).mean() < 0.6


@every_model
@pytest.mark.parametrize("methods", [hashing, unified])
def test_state_dict_round_trip(name, methods):
    first, second = make(name, seed=0), make(name, seed=1)
    for model in (first, second):
        embcomp.compress_(model, methods(model))
        model.eval()
    assert not torch.equal(predict(first, batch())[0], predict(second, batch())[0])
    second.load_state_dict(first.state_dict())
    for ours, theirs in zip(predict(first, batch()), predict(second, batch()), strict=True):
        assert torch.equal(ours, theirs)


@every_model
@pytest.mark.parametrize("methods", [quotient_remainder, frequency])
def test_warm_start_with_a_row_for_each_id_changes_nothing(name, methods):
    model = make(name).eval()
    expected = predict(model, batch())
    embcomp.compress_(model, methods(model), init="warm")
    assert not tables(model)
    for ours, before in zip(predict(model, batch()), expected, strict=True):
        assert torch.equal(ours, before)


@every_model
def test_full_leaves_a_table_alone(name):
    model = make(name).eval()
    found, expected = tables(model), predict(model, batch())
    embcomp.compress_(model, {"*": embcomp.Full()}, init="warm")
    assert all(tables(model)[path] is table for path, table in found.items())
    for ours, before in zip(predict(model, batch()), expected, strict=True):
        assert torch.equal(ours, before)


# All nine ways with EMBCOMP_TEST_ALL=1; these show rows that tables share, codecs, and vectors that are kept.
WAYS = {("UnifiedEmbedding", "fresh"), ("LowBit", "warm")}
if "EMBCOMP_TEST_ALL" in os.environ:
    WAYS = {(label, init) for label in METHODS for init in ("fresh", "warm")}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("library", PACKAGES)
def test_models_of_other_libraries_do_as_recorded(library):
    """Each trains, is refused or has no table, as the file of results says; that never says that it went wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        try:
            builds = importlib.import_module(f"experiments.third_party.libraries.{library}").models()
        except ImportError as error:
            pytest.skip(f"{PACKAGES[library]}: {error} (requirements/third-party.txt)")
        recorded = {
            row["model"]: row["outcomes"].keys() for row in json.loads((THIRD_PARTY / f"{library}.json").read_text())
        }
        assert "wrong" not in {outcome for outcomes in recorded.values() for outcome in outcomes}
        for name, build in builds.items():
            found = {way: try_method(build, METHODS[way[0]], way[1]) for way in WAYS} | {"exact": try_exact(build)}
            assert {outcome for outcome, _ in found.values()} <= recorded.get(name, {"trained"}), (name, found)
