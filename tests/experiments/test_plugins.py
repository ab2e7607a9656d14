"""Methods, models, readers and loggers that live outside of the checkout; loggers of other packages, by fakes."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import polars as pl
import pytest
from rich.console import Console

import experiments.__main__ as cli
from data.registry import DATASETS
from embcomp.methods import METHODS
from embcomp.ops.kmeans import no_progress
from experiments import plugins
from experiments.errors import InputError
from experiments.load import check
from experiments.loggers import LOGGERS, MLflow, Start, WandB
from experiments.runs.flat import save, table
from experiments.runs.results import key
from experiments.runs.runner import Settings, execute
from recsys_models.build import MODELS, RETRIEVAL_MODELS

MINE = '''
from dataclasses import dataclass
import torch
from data.registry import DATASETS, Dataset
from data.readers.synthetic import OPTIONS, read
from embcomp import HashingTrick
from experiments.loggers import LOGGERS
from experiments.plugins import add_model
from recsys_models import DCN

@dataclass(frozen=True, kw_only=True)
class MyHash(HashingTrick):
    """Own."""

class MyModel(DCN):
    def forward(self, dense, sparse):
        return 2 * super().forward(dense, sparse)

def my_read(**options):
    return read(**options)

class Lines:
    def __init__(self, start):
        self.path = start.work / "lines.txt"
        self.text = f"{start.name} from {start.step}\\n"
    def log(self, step, values):
        self.text += f"{step} {sorted(values)}\\n"
    def close(self, metrics):
        self.path.write_text(self.text + f"end {'test/auc' in metrics}\\n")

add_model(MyModel)
DATASETS["mine"] = Dataset(my_read, defaults=OPTIONS)
LOGGERS["lines"] = Lines
'''


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As they were, afterwards."""
    known = [(names, dict(names)) for names in (METHODS, MODELS, RETRIEVAL_MODELS, DATASETS, LOGGERS)]
    path = list(sys.path)
    yield
    for names, before in known:
        names.clear()
        names.update(before)
    sys.path[:] = path
    for name in ("mine", "mine_installed"):
        sys.modules.pop(name, None)


@pytest.fixture
def own(small: dict[str, Any]) -> dict[str, Any]:
    small["data"]["name"] = "mine"
    small |= {"seeds": [0], "training": {"batch_size": 512, "epochs": 1}}
    small["model"]["name"] = "MyModel"
    small["methods"] = [{"method": "MyHash", "share": 0.5}]
    return small


def test_own_code_is_imported_and_counts(
    own: dict[str, Any], toml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "console", Console(width=200, force_terminal=False))
    words = ["run", str(toml(values=own)), "--import", "mine.py", "--log", "lines", "--results", "results"]

    def call(*more: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["experiments", *words, *more])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out + captured.err

    code, said = call()
    assert code == 0, said
    values = json.loads((tmp_path / "results" / "small" / "mine-MyHash-share0.5-seed0.json").read_text())
    assert (values["method"], values["model"], values["dataset"]) == ("MyHash", "MyModel", "mine")
    lines = (tmp_path / "out" / "lines.txt").read_text().splitlines()
    assert lines[0] == "small/mine-MyHash-share0.5-seed0 from 0"
    assert lines[-1] == "end True"
    assert any("'valid/auc'" in line for line in lines)
    assert not (tmp_path / "out" / "tensorboard").exists()
    assert "1 of 1 runs are current" in call("--dry-run")[1]
    (run,) = check(own, "x").runs()
    first = key(run)
    monkeypatch.setattr(plugins, "_checksum", lambda path: "another file")
    assert key(run) != first
    words[words.index("lines")] = "lnes"
    assert call() == (2, "error: --log lnes: unknown logger: did you mean 'lines'?\n")


def test_modules_that_cannot_be_imported_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("1 / 0")
    for module, message in (
        ("no.such.module", r"--import no\.such\.module: cannot be imported: ModuleNotFoundError: No module named 'no'"),
        (str(tmp_path / "mine.py"), r"mine\.py: cannot be imported: ZeroDivisionError: division by zero"),
        (str(tmp_path / "other.py"), r"other\.py: no such file"),
    ):
        with pytest.raises(InputError, match=message):
            plugins.load([module])
    entry = EntryPoint("installed", "mine_installed", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == plugins.GROUP else [])
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_installed.py").write_text(MINE.replace("MyHash", "InstalledHash"))
    plugins.load()
    assert "InstalledHash" in METHODS
    with pytest.raises(InputError, match="there is a model DCN already"):
        plugins.add_model(type("DCN", (MODELS["DLRM"],), {}))


class FakeClient:
    """What is used of mlflow.MlflowClient, and a list of its calls."""

    calls: ClassVar[list[tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            FakeClient.calls.append((name, *args, *kwargs.values()))
            if name == "get_experiment_by_name":
                return None
            return SimpleNamespace(info=SimpleNamespace(run_id="r1")) if name == "create_run" else "e1"

        return call


def test_mlflow_and_wandb(make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(training={"epochs": 1})
    start = Start(run, tmp_path, tmp_path, 0)
    for kind, name in ((MLflow, "mlflow"), (WandB, "wandb")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(InputError, match=f"--log {name}: .*: pip install {name}"):
            kind(start)
    mlflow, wandb = ModuleType("mlflow"), ModuleType("wandb")
    told: list[Any] = []
    made = SimpleNamespace(
        id="w1",
        log=lambda values, step: told.append((step, values)),
        summary=SimpleNamespace(update=told.append),
        finish=lambda exit_code: told.append(exit_code),
    )
    mlflow.MlflowClient, wandb.init = FakeClient, lambda **given: told.append(given) or made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(FakeClient, "calls", [])
    settings = Settings(tmp_path / "results", tmp_path / "out", loggers=("mlflow", "wandb"))
    assert execute(run, settings, no_progress)[0] == "done"
    calls = FakeClient.calls
    assert calls[:3] == [
        ("get_experiment_by_name", "small"),
        ("create_experiment", "small"),
        ("create_run", "e1", "synthetic-Full-seed0"),
    ]
    assert ("log_param", "r1", "optimizer.lr", "0.01") in calls
    logged = {call[2]: call[3:] for call in calls if call[0] == "log_metric"}
    values = json.loads((tmp_path / "results" / "small" / f"{run.name}.json").read_text())
    assert logged["test/auc"] == (values["metrics"]["test/auc"],)
    assert calls[-1] == ("set_terminated", "r1", "FINISHED")
    assert told[0]["name"] == run.name
    assert told[0]["resume"] is None
    assert told[-2]["test/auc"] == values["metrics"]["test/auc"]
    assert told[-1] == 0
    assert any(isinstance(part, tuple) and "valid/auc" in part[1] for part in told)
    # A resumed run goes on in its own run there; one that breaks off says so.
    (tmp_path / "mlflow-run").write_text("r7")
    (tmp_path / "wandb-run").write_text("w7")
    resumed = MLflow(Start(run, tmp_path, tmp_path, 5)), WandB(Start(run, tmp_path, tmp_path, 5))
    assert (told[-1]["id"], told[-1]["resume"]) == ("w7", "must")
    resumed[0].log(6, {"valid/recall@20": 0.5})
    for logger in resumed:
        logger.close(None)
    assert calls[-2:] == [("log_metric", "r7", "valid/recall_at_20", 0.5, 6), ("set_terminated", "r7", "KILLED")]
    assert told[-1] == 1


def test_results_as_one_table(tmp_path: Path) -> None:
    for number, extra in enumerate(({}, {"served_nbytes": 30, "training_nbytes": 90})):
        metrics = {"test/auc": 0.5 + number / 10, **({"test/gauc": 0.25} if number else {})}
        values = {"experiment": "e", "dataset": "d", "model": "m", "method": "LowBit", "label": "l", "seed": number}
        values |= {"budget": {"share": 0.5} if number else {}, "rows": 3, "nbytes": 50, "full_nbytes": 100, **extra}
        values |= {"metrics": metrics, "versions": {"torch": "2"}, "epochs": 2}
        path = tmp_path / "results" / "e" / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    frame = table(tmp_path / "results")
    assert frame["test/auc"].to_list() == [0.5, 0.6]
    assert frame["test/gauc"].to_list() == [None, 0.25]
    assert frame["served_nbytes"].to_list() == [50, 30]
    assert frame["training_nbytes"].to_list() == [50, 90]
    assert frame.select("budget_kind", "budget", "share").rows() == [(None, None, 0.5), ("share", 0.5, 0.5)]
    for name, read in (("t.csv", pl.read_csv), ("t.parquet", pl.read_parquet)):
        save(frame, tmp_path / name)
        assert read(tmp_path / name)["test/auc"].to_list() == [0.5, 0.6]
    with pytest.raises(InputError, match=r"written as \.csv or \.parquet"):
        save(frame, tmp_path / "t.xlsx")
    with pytest.raises(InputError, match="no results of experiment 'f'"):
        table(tmp_path / "results", ["f"])
