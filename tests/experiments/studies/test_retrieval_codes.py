"""Item vectors in few bits: which ways are tried, what is judged, that files go on where they ended."""

import json

import pytest
import torch
from rich.console import Console

from embcomp import retrieval
from experiments.load import load
from experiments.studies import retrieval_codes as study
from experiments.tasks.ranking import rank_metrics
from experiments.tasks.task import prepare

TOML = """
experiment = "retrieval-codes"
seeds = [3]
model = { name = "LightGCN", embedding_dim = 16, options = { num_layers = 1 } }
optimizer = { lr = 0.02 }
training = { batch_size = 256, epochs = 2, monitor = "valid/recall@20" }
retrieval = { validate_every = 2 }
methods = [{ method = "Full" }]

[data]
name = "synthetic"
options = { num_rows = 3_000, num_users = 80, num_items = 60, num_communities = 4, drift = 0.0 }
"""


@pytest.mark.parametrize(("rows", "dim"), [(12_101, 64), (40_981, 64), (3_668, 32)])
def test_every_way_fits_a_share(rows, dim):
    found = study.ways(rows, dim)
    for settings in found.values():
        if not settings or "learn" in settings or "floats" in settings:
            continue
        nbytes = retrieval.way(**settings).nbytes(rows, dim)
        shares = [share for share in study.SHARES if 0.75 * share < nbytes / (4 * rows * dim) <= share]
        assert shares, settings
        retrieval.way(**settings).check(rows, dim)
    for share in study.SHARES:  # each has several ways
        there = [s for s in found.values() if s and "learn" not in s and "floats" not in s]
        near = [s for s in there if 0.75 * share < retrieval.way(**s).nbytes(rows, dim) / (4 * rows * dim) <= share]
        assert len(near) >= 1, share


def test_runs_leave_files_and_go_on(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "small.toml").write_text(TOML)
    given = {"full": {}, "bits 8": {"bits": 8}}
    monkeypatch.setattr(study, "ways", lambda rows, dim, nested: given)
    monkeypatch.setattr(study, "CHOSEN", ())
    run = [tmp_path / "results", tmp_path / "out", Console(quiet=True), tmp_path / "configs"]
    study.run_all(*run)
    file = tmp_path / "results" / "retrieval-codes" / "synthetic" / "seed3.json"
    first = json.loads(file.read_text())
    assert list(first["ways"]) == ["full", "bits 8"]
    eight = first["ways"]["bits 8"]
    rows = first["ways"]["full"]["nbytes"] // 64
    assert eight["nbytes"] == retrieval.way(bits=8).nbytes(rows, 16)
    assert eight["lost"] < 1e-3
    full = first["ways"]["full"]["metrics"]["float query"]
    assert eight["metrics"]["float query"]["test/recall@50"] == pytest.approx(full["test/recall@50"], abs=0.02)
    assert set(eight["metrics"]) == {"float query", "codes"}
    given["bits 1"] = {"bits": 1}
    monkeypatch.setattr(study.Trainer, "fit", lambda self: pytest.fail("the vectors are there"))
    study.run_all(*run)
    second = json.loads(file.read_text())
    assert {**second, "ways": {**second["ways"], "bits 1": None}} == {
        **first,
        "ways": {**first["ways"], "bits 1": None},
    }
    assert second["ways"]["bits 1"]["lost"] > 0.2
    table = study.write_markdown(tmp_path / "results", tmp_path).read_text()
    assert "| bits 8 | 0.000 |" in table
    assert "| bits 1 | 0." in table
    monkeypatch.setattr(study, "CHOSEN", (0.5,))
    study.run_all(*run)
    third = json.loads(file.read_text())
    name = third["chosen"]["50%"]
    assert third["ways"][name]["share"] <= 0.5
    kept = third["ways"][name]["metrics"]["float query"]["test/recall@10"] / full["test/recall@10"]
    page = study.write_markdown(tmp_path / "results", tmp_path).read_text()
    assert f"Chosen at 50% by `retrieval.choose` with the valid split: {name}, which keeps {100 * kept:.1f} and" in page


def test_vectors_are_those_of_the_model(tmp_path):
    (tmp_path / "small.toml").write_text(TOML)
    (run,) = load(tmp_path / "small.toml").runs()
    task = prepare(run)
    users, items = study.vectors_of(run, task, tmp_path)
    again = study.vectors_of(run, task, tmp_path)
    assert torch.equal(items, again[1])
    found = rank_metrics(study.Vectors(users, items), *study.pairs(task, "test"), len(items), 64)
    stored = study.judged(task, users, items, {})["metrics"]["float query"]
    assert stored["test/recall@10"] == found["recall@10"]


def test_cut_vectors_keep_the_products_that_they_can(tmp_path):
    users, items = torch.randn(200, 8) * torch.linspace(2, 0.1, 8), torch.randn(50, 8)
    products = users @ items.T
    values = torch.linalg.svdvals(products.double())
    for width in (2, 5, 8):
        nbytes, asking, decoded = study.cut(users, items, {"floats": width})
        left = (products - asking @ decoded.T).square().sum()
        assert float(left) == pytest.approx(float(values[width:8].square().sum()), rel=1e-3, abs=1e-2)
        assert nbytes == 4 * (50 + 8) * width
    nbytes, asking, decoded = study.cut(users, items, {"nested": 3})
    assert nbytes == 4 * 50 * 3
    assert torch.equal(asking @ decoded.T, users[:, :3] @ items[:, :3].T)


def test_nested_tables_have_rows_of_their_own(tmp_path, monkeypatch):
    (tmp_path / "configs" / "nested").mkdir(parents=True)
    (tmp_path / "configs" / "small.toml").write_text(TOML)
    nested = TOML.replace("retrieval = { ", 'retrieval = { loss = "bpr", widths = [1, 2, 4, 8, 16], candidates = 3, ')
    (tmp_path / "configs" / "nested" / "small.toml").write_text(nested)
    monkeypatch.setattr(study, "SHARES", ())
    monkeypatch.setattr(study, "CHOSEN", ())
    study.run_all(tmp_path / "results", tmp_path / "out", Console(quiet=True), tmp_path / "configs")
    file = json.loads((tmp_path / "results" / "retrieval-codes" / "synthetic" / "seed3.json").read_text())
    names = [f"floats, {kind}, width {width}" for kind in ("svd", "nested") for width in (8, 4, 2, 1)]
    assert list(file["ways"]) == ["full", *names, "learned signs"]
    assert file["ways"]["floats, nested, width 4"]["share"] == 4 / 16
    page = study.write_markdown(tmp_path / "results", tmp_path).read_text()
    assert "| floats, nested, width 4 |" in page


def test_sums_of_signs_of_earlier_releases_are_coded_again(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "small.toml").write_text(TOML)
    monkeypatch.setattr(study, "ways", lambda rows, dim, nested: {"full": {}, "signs 20": {"signs": 20}})
    monkeypatch.setattr(study, "CHOSEN", ())
    run = [tmp_path / "results", tmp_path / "out", Console(quiet=True), tmp_path / "configs"]
    study.run_all(*run)
    file = tmp_path / "results" / "retrieval-codes" / "synthetic" / "seed3.json"
    first = json.loads(file.read_text())
    older = {**first["ways"]["signs 20"], "nbytes": 1, "share": 0.9}
    file.write_text(json.dumps({**first, "ways": {**first["ways"], "signs 20": older}}))
    study.run_all(*run)
    assert json.loads(file.read_text())["ways"]["signs 20"]["share"] == first["ways"]["signs 20"]["share"]
