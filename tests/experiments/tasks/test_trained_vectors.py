"""Methods made of trained vectors, which are those of the full tables of the same run."""

import json

import pytest
import torch
from torchrec import KeyedJaggedTensor

from embcomp.ops.kmeans import no_progress
from embcomp.torchrec.holders import stores_of
from experiments.errors import InputError
from experiments.runs.runner import Settings, execute, trained
from experiments.tasks.clicks import ClickTask
from experiments.tasks.task import preflight

PRUNED = {"method": "Pruned", "options": {"block": 4}, "share": 0.3}
DEDUP = {"method": "Dedup", "share": 0.3}


def result(settings, run):
    status, said = execute(run, settings, no_progress)
    assert status == "done", said
    return json.loads((settings.results / "small" / f"{run.name}.json").read_text())


@pytest.fixture
def full(make_run, tmp_path):
    """The settings in whose folder full tables are trained, and these tables."""
    settings, run = Settings(tmp_path / "results", tmp_path / "out"), make_run(methods=[{"method": "Full"}])
    result(settings, run)
    built = ClickTask.prepare(run).model(torch.device("cpu"))
    best = trained(run, settings)
    assert best is not None
    best.load(built.model)
    return settings, stores_of(next(built.embeddings.children()))


def looked_up(embeddings, name, size):
    """Return the vectors of all ids of a table of a torchrec collection, by its own forward."""
    lengths = torch.zeros(len(embeddings.embedding_bag_configs()), size, dtype=torch.int64)
    names = [config.name for config in embeddings.embedding_bag_configs()]
    features = [config.feature_names[0] for config in embeddings.embedding_bag_configs()]
    lengths[names.index(name)] = 1
    asked = KeyedJaggedTensor(features, torch.arange(size), lengths=lengths.flatten())
    return embeddings(asked)[features[names.index(name)]]


@pytest.mark.parametrize("method", [PRUNED, DEDUP])
def test_the_map_is_that_of_the_trained_tables(make_run, full, method):
    """The kept blocks are the largest of the trained ones, and a warm run begins with their values."""
    settings, tables = full
    run = make_run(methods=[{**method, "fine_tuned": 1.0}])
    task = ClickTask.prepare(run)
    built = task.model(torch.device("cpu"))
    trained(run.of_full_tables(), settings).load(built.model)
    embeddings = next(task.fitted(built).embeddings.children())
    for name, table in tables.items():
        vectors = looked_up(embeddings, name, len(table))
        if method is DEDUP:
            assert len(vectors.unique(dim=0)) < len(table) or len(table) < 30
            continue
        kept = vectors != 0
        assert torch.equal(vectors[kept], table[kept])


@pytest.mark.parametrize("method", [PRUNED, DEDUP])
def test_full_tables_are_trained_first(make_run, tmp_path, method):
    run = make_run(methods=[{**method, "fine_tuned": 0.5}])
    settings = Settings(tmp_path / "results", tmp_path / "out")
    preflight([run])  # sizes it before anything is trained
    values = result(settings, run)
    assert 0.1 < values["served_nbytes"] / values["full_nbytes"] <= 0.3
    assert values["training_nbytes"] == values["full_nbytes"]  # of the first training
    assert "vectors" not in values["method_config"]


def test_served_without_further_training(make_run, full):
    settings, _ = full
    values = result(settings, make_run(methods=[{**PRUNED, "after_training": True}]))
    whole = result(settings, make_run(methods=[{**PRUNED, "share": None, "options": {"keep": 1.0}, "label": "all",
                                               "after_training": True}]))  # fmt: skip
    trained_full = json.loads(next((settings.results / "small").glob("*Full-seed0.json")).read_text())
    assert whole["metrics"]["test/auc"] == pytest.approx(trained_full["metrics"]["test/auc"], abs=1e-6)
    assert values["served_nbytes"] < 0.5 * whole["served_nbytes"]


def test_where_nothing_is_trained_before_it_is_refused(make_run):
    with pytest.raises(InputError, match=r"methods\[0\]: Pruned is made of trained vectors: add fine_tuned"):
        make_run(methods=[PRUNED])
    with pytest.raises(InputError, match=r"methods\[0\]: Pruned needs keep: give rows, nbytes or share"):
        make_run(methods=[{"method": "Pruned", "fine_tuned": 1.0}])


def test_a_method_inside_takes_them_too(make_run, full):
    settings, _ = full
    inside = {
        "method": "LowBit",
        "options": {"bits": 4, "of": {"method": "Pruned"}},
        "share": 0.1,
        "after_training": True,
    }
    values = result(settings, make_run(methods=[inside]))
    assert values["served_nbytes"] <= 0.1 * values["full_nbytes"]
