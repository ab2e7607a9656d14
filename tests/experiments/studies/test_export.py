"""Trained runs, exported and judged again."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from experiments.errors import InputError
from experiments.runs import results as files
from experiments.runs.runner import Settings
from experiments.studies import export as exports
from experiments.studies.export import export_all, write_markdown

CONSOLE = Console(quiet=True)


def test_a_run_is_trained_once_and_judged_from_its_file(make_run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(exports, "DTYPES", ("int8",))
    run = make_run(training={"batch_size": 512, "epochs": 1})
    settings = Settings(tmp_path / "results", tmp_path / "out")
    assert export_all([run], settings, CONSOLE) == 0
    path = tmp_path / "results" / "export" / "small" / f"{run.name}.json"
    values = json.loads(path.read_text())
    trained = json.loads(files.path_of(run, settings.results).read_text())
    assert values["metrics"]["auc"] == trained["metrics"]["test/auc"]
    assert values["nbytes"] == trained["nbytes"]
    (served,) = values["exported"]
    assert served["needs"] == ["torch"]
    assert served["nbytes"] < 0.35 * values["nbytes"]  # 10 bytes in the place of 32
    assert abs(served["metrics"]["auc"] - values["metrics"]["auc"]) < 0.01
    assert served["metrics"] != values["metrics"]

    monkeypatch.setattr(exports, "judge", lambda *given: pytest.fail("it is current"))
    assert export_all([run], settings, CONSOLE) == 0
    assert [found["experiment"] for found in files.read_results(settings.results)] == ["small"]  # not among the runs
    text = write_markdown(settings.results, tmp_path).read_text()
    ratio, auc = values["full_nbytes"] / served["nbytes"], served["metrics"]["auc"]
    loss = auc - values["metrics"]["auc"]
    assert f"B, {ratio:.1f}x | {served['file_nbytes'] / 1000:.1f} kB | {auc:.4f} ({loss:+.5f}) |" in text
    assert "B, 1.0x |" in text


def test_weights_that_are_there_are_not_trained_again(make_run, tmp_path: Path, monkeypatch) -> None:
    run = make_run()
    folder = tmp_path / "out" / "runs" / run.experiment / run.name
    monkeypatch.setattr(exports.Best, "exists", lambda self: self.path == folder / "best.safetensors")
    monkeypatch.setattr(exports, "run_all", lambda *given: pytest.fail("its weights are there"))
    monkeypatch.setattr(exports, "judge", lambda *given: {"metrics": {"auc": 0.5}, "exported": []})
    assert export_all([run], Settings(tmp_path / "results", tmp_path / "out"), CONSOLE) == 0


def test_what_cannot_be_exported_is_said(make_run, tmp_path: Path) -> None:
    run = make_run(retrieval={}, training={"monitor": "valid/recall@20"}, model={"name": "MF", "options": {}})
    with pytest.raises(InputError, match="is a retrieval or behavior run"):
        export_all([run], Settings(tmp_path, tmp_path), CONSOLE)
    with pytest.raises(InputError, match="holds no results"):
        write_markdown(tmp_path, tmp_path)
