"""Result files: what they say, what they never say, and when they are stale."""

import json
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest

import embcomp
from embcomp.ops.kmeans import no_progress
from experiments.errors import InputError
from experiments.runs import results
from experiments.runs.runner import Settings, execute


@pytest.fixture
def settings(tmp_path):
    return Settings(tmp_path / "results", tmp_path / "out")


@pytest.fixture
def run(make_run):
    return make_run(
        training={"epochs": 1},
        methods=[{"method": "HashingTrick", "share": 0.25}],
        slices={"rare": {"feature": "item", "max_count": 5}},
    )


def test_a_result_says_all_that_is_asked(run, settings):
    assert execute(run, settings, no_progress)[0] == "done"
    values = json.loads((settings.results / "small" / "synthetic-HashingTrick-share0.25-seed0.json").read_text())
    said = {name: values[name] for name in ("experiment", "dataset", "model", "method", "seed", "label", "budget")}
    assert said == {
        "experiment": "small",
        "dataset": "synthetic",
        "model": "DCN",
        "method": "HashingTrick",
        "seed": 0,
        "label": "HashingTrick",
        "budget": {"share": 0.25},
    }
    assert values["full_nbytes"] == 528 * 8 * 4
    assert 0.97 * values["full_nbytes"] / 4 < values["nbytes"] <= values["full_nbytes"] / 4
    assert values["rows"] == (values["nbytes"] - 4 * 64) // (8 * 4)  # the key of a balanced hash takes 64 bytes a table
    assert {"test/auc", "test/logloss", "test/ne", "test/gauc", "test/auc/rare", "valid/auc"} <= set(values["metrics"])
    assert values["seconds"] >= 0
    assert values["peak_memory"] > 0
    assert {"torch", "torchrec", "python", "embcomp"} <= set(values["versions"])
    assert {"cpu", "cores", "memory", "threads"} <= set(values["hardware"])
    assert values["config"]["data"]["name"] == "synthetic"
    assert values["config"]["method"] == {"method": "HashingTrick", "options": {}, "share": 0.25}


def test_nothing_of_this_machine_is_in_a_result(run, settings):
    execute(run, settings, no_progress)
    text = results.path_of(run, settings.results).read_text()
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text
    assert not re.search(r'"[^"]*(?<!/auc)(?<!/gauc)/(work|home|root|tmp|usr|var)\b', text)


def test_a_result_is_current_for_its_configuration_alone(run, settings, monkeypatch):
    assert not results.is_current(run, settings.results)
    execute(run, settings, no_progress)
    assert results.is_current(run, settings.results)
    other = replace(run, training=replace(run.training, epochs=2))
    assert other.name == run.name
    assert not results.is_current(other, settings.results)
    monkeypatch.setattr(embcomp, "__version__", "0.1.99")
    assert results.is_current(run, settings.results)
    monkeypatch.setattr(embcomp, "__version__", "0.2.0")
    assert not results.is_current(run, settings.results)


def test_a_broken_result_is_not_current_and_is_named(run, settings):
    execute(run, settings, no_progress)
    path = results.path_of(run, settings.results)
    path.write_text("{")
    assert not results.is_current(run, settings.results)
    with pytest.raises(InputError, match=f"{path}: not JSON"):
        results.read_results(settings.results)


def test_what_a_method_cannot_serve_is_noted_apart(make_run, settings):
    run = make_run(methods=[{"method": "HashingTrick", "nbytes": 64}])
    status, reason = execute(run, settings, no_progress)
    assert status == "infeasible"
    assert "too small" in reason
    assert results.read_results(settings.results) == []
    assert results.is_current(run, settings.results)
    (noted,) = results.read_infeasible(settings.results)
    assert noted["method"] == "HashingTrick"
    assert noted["reason"] == reason


def test_files_of_benches_are_left_aside(settings):
    path = settings.results / "bench" / "lookup.json"
    path.parent.mkdir(parents=True)
    path.write_text("[]")
    assert results.read_results(settings.results) == []
