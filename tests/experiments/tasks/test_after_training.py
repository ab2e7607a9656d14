"""Methods that are fitted to trained full tables and not trained."""

import json

import pytest

from embcomp.ops.kmeans import no_progress
from experiments.errors import InputError
from experiments.runs.runner import Settings, execute


def result(settings, run):
    status, said = execute(run, settings, no_progress)
    assert status == "done", said
    return json.loads((settings.results / "small" / f"{run.name}.json").read_text())


def test_it_is_the_trained_model_but_for_rounding(make_run, tmp_path):
    fine = {"method": "LowBit", "options": {"bits": 8}, "after_training": True}
    full, after = make_run(methods=[{"method": "Full"}]), make_run(methods=[fine])
    alone = result(Settings(tmp_path / "alone", tmp_path / "a"), after)  # trains the full tables itself
    settings = Settings(tmp_path / "beside", tmp_path / "b")
    trained, fitted = result(settings, full), result(settings, after)  # takes those that are trained
    assert fitted["metrics"] == alone["metrics"]
    assert fitted["nbytes"] == alone["nbytes"] < 0.3 * trained["nbytes"] == 0.3 * fitted["training_nbytes"]
    assert fitted["metrics"]["test/auc"] == pytest.approx(trained["metrics"]["test/auc"], abs=2e-3)
    coarse = result(settings, make_run(methods=[{**fine, "options": {"bits": 1}}]))
    assert coarse["nbytes"] < fitted["nbytes"] / 6


def test_it_starts_from_the_trained_model_and_trains_on(make_run, tmp_path):
    settings = Settings(tmp_path / "results", tmp_path / "out")
    tuned = {"method": "LowBit", "options": {"bits": 2}, "fine_tuned": 0.3}
    first, more = result(settings, make_run(methods=[tuned])), result(settings, make_run(methods=[{"method": "Full"}]))
    after = result(settings, make_run(methods=[{**tuned, "fine_tuned": None, "after_training": True}]))
    assert first["history"][0]["train/loss"] < more["history"][0]["train/loss"]  # not from new tables
    assert first["metrics"]["valid/auc"] != after["metrics"]["valid/auc"]
    assert first["nbytes"] == after["nbytes"]
    assert first["config"]["method"]["fine_tuned"] == 0.3
    with pytest.raises(InputError, match="give after_training or fine_tuned"):
        make_run(methods=[{**tuned, "after_training": True}])
    with pytest.raises(InputError, match=r"fine_tuned: needs a method that is fitted"):
        make_run(methods=[{"method": "Full", "fine_tuned": 1.0}])


def test_a_method_for_each_table_is_fitted_to_its_own(make_run, tmp_path):
    settings = Settings(tmp_path / "results", tmp_path / "out")
    item = {"method": "LowBit", "bits": 8}
    after = {"method": "Full", "by_table": {"item": item}, "after_training": True}
    whole, fitted = (
        result(settings, make_run(methods=[{"method": "Full"}])),
        result(settings, make_run(methods=[after])),
    )
    assert fitted["metrics"]["test/auc"] == pytest.approx(whole["metrics"]["test/auc"], abs=2e-3)
    assert whole["nbytes"] - fitted["nbytes"] == 200 * 8 * 3 - 4 * (8 // 8)  # but for the step
    assert fitted["config"]["method"]["by_table"] == {"item": item}


def test_where_there_is_nothing_to_fit_it_is_refused(make_run, small):
    with pytest.raises(InputError, match=r"after_training: needs a method that is fitted"):
        make_run(methods=[{"method": "Full", "after_training": True}])
    with pytest.raises(InputError, match=r"after_training: its full tables are not fused"):
        make_run(
            optimizer={"embedding": "RowWiseAdagrad"},
            methods=[{"method": "LowBit", "after_training": True}],
        )
