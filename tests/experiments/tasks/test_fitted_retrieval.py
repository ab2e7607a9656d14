"""Retrieval runs whose methods are fitted to trained full tables, and tested at once or trained on."""

import json

import pytest
import torch

from embcomp.ops.kmeans import no_progress
from experiments.errors import InputError
from experiments.runs.runner import Settings, execute, trained
from experiments.tasks.task import prepare

CPU = torch.device("cpu")
BITS = {"method": "LowBit", "options": {"bits": 2}}


@pytest.fixture
def small():
    options = {"num_rows": 12_000, "num_users": 150, "num_items": 120, "num_communities": 4, "drift": 0.0}
    return {
        "experiment": "small",
        "data": {"name": "synthetic", "options": options},
        "model": {"name": "LightGCN", "embedding_dim": 8, "options": {"num_layers": 2}},
        "optimizer": {"lr": 0.02},
        "training": {"batch_size": 256, "epochs": 4, "monitor": "valid/recall@20"},
        "retrieval": {"validate_every": 2},
        "methods": [{"method": "Full"}],
    }


@pytest.fixture
def settings(tmp_path):
    return Settings(tmp_path / "results", tmp_path / "out")


def result(settings, run):
    status, said = execute(run, settings, no_progress)
    assert status == "done", said
    return json.loads((settings.results / "small" / f"{run.name}.json").read_text())


@pytest.mark.parametrize("model", ["LightGCN", "MF"])
def test_tested_at_once_it_is_the_trained_model_but_for_rounding(make_run, settings, model):
    model = {"name": model, "options": {}}
    full = result(settings, make_run(model=model, methods=[{"method": "Full"}]))
    after = {"method": "LowBit", "options": {"bits": 8}, "after_training": True}
    fitted = result(settings, make_run(model=model, methods=[after]))
    assert fitted["nbytes"] < 0.3 * full["nbytes"] == 0.3 * fitted["training_nbytes"]
    assert fitted["metrics"]["test/recall@20"] == pytest.approx(full["metrics"]["test/recall@20"], abs=0.02)


@pytest.mark.parametrize("model", ["LightGCN", "MF", "NeuMF"])
def test_it_starts_from_the_trained_scores(make_run, settings, model):
    """With 8 bits the scores of all pairs are those of the trained model, up to rounding."""
    tuned = {"method": "LowBit", "options": {"bits": 8}, "fine_tuned": 0.3}
    run = make_run(model={"name": model, "options": {}}, methods=[tuned])
    result(settings, run.of_full_tables())
    task, users = prepare(run), torch.arange(100)
    built = task.model(CPU)
    trained(run.of_full_tables(), settings).load(built.model)
    with torch.no_grad():
        before = built.model.eval().scorer()(users)
        after = task.fitted(built).model.eval().scorer()(users)
    assert 0 < (after - before).square().mean().sqrt() < 0.05 * before.std()


def test_it_trains_on_from_them(make_run, settings):
    tuned = result(settings, make_run(methods=[{**BITS, "fine_tuned": 0.3}]))
    full = result(settings, make_run(methods=[{"method": "Full"}]))  # was trained first
    after = result(settings, make_run(methods=[{**BITS, "after_training": True}]))
    assert tuned["history"][0]["train/loss"] < full["history"][0]["train/loss"]  # not from new tables
    assert tuned["metrics"]["valid/ndcg@20"] != after["metrics"]["valid/ndcg@20"]
    assert tuned["nbytes"] == after["nbytes"] < full["nbytes"] / 15
    assert tuned["training_nbytes"] == full["nbytes"] + 2 * 4  # the steps


def test_bits_of_frequent_ids_are_chosen_for_the_trained_tables(make_run, settings):
    """The bits are fitted, so no epoch searches them, and the mean is kept."""
    method = {"method": "FrequencyBits", "options": {"mean_bits": 1.5, "groups": 4}, "fine_tuned": 0.5}
    tuned = result(settings, make_run(methods=[method]))
    assert "valid/recall@20" in tuned["history"][1]
    assert tuned["metrics"]["valid/recall@20"] > 0
    assert tuned["nbytes"] < tuned["full_nbytes"] / 8


def test_vectors_of_the_trained_tables_reach_the_methods_that_are_made_of_them(make_run, settings):
    method = {"method": "Pruned", "share": 0.4, "fine_tuned": 1.0}
    run = make_run(methods=[method])
    result(settings, run.of_full_tables())
    task = prepare(run)
    built = task.model(CPU)
    trained(run.of_full_tables(), settings).load(built.model)
    before = [table.weight.detach().clone() for table in (built.model.users, built.model.items)]
    task.fitted(built)
    for old, table in zip(before, (built.model.users, built.model.items), strict=True):
        kept = table.weight != 0
        assert 0 < kept.float().mean() < 1
        assert torch.equal(table.weight[kept], old[kept])


def test_a_method_for_each_table(make_run, settings):
    """Users in 4 bits and items in 2, with a step each, trained from the start or fitted."""
    two = {"method": "LowBit", "bits": 2}
    by = {"method": "LowBit", "options": {"bits": 4}, "by_table": {"item_id": two}}
    for more in ({}, {"after_training": True}):
        run = make_run(methods=[{**by, **more}])
        users, items = (table.num_embeddings for table in prepare(run).tables)
        found = result(settings, run)
        assert found["served_nbytes"] == users * 4 + items * 2 + 2 * 4  # and the steps
        assert found["metrics"]["test/recall@20"] > 0
    with pytest.raises(InputError, match="by_table: no feature 'item'; the tables are user_id, item_id"):
        prepare(make_run(methods=[{**by, "by_table": {"item": two}}]))


def test_what_only_clicks_have_is_still_refused(make_run):
    with pytest.raises(InputError, match=r"methods\[0\].apart: only click-through runs have it"):
        make_run(methods=[{**BITS, "apart": True}])
