"""The command line: exit codes, what is written, what is not."""

import io
import json
import re

import pytest
from rich.console import Console

import experiments.__main__ as cli
from experiments import bench
from experiments.bench import BenchRow
from experiments.runs import runner


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Run a command in an empty folder: (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "console", Console(width=200, force_terminal=False))

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["experiments", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run


def test_runs_are_run_once(call, toml, small, tmp_path):
    small |= {"training": {"batch_size": 512, "epochs": 1}, "seeds": [0]}
    path = toml(values=small)
    code, out, _ = call("run", path, "--results", "results")
    assert code == 0
    names = {"Full", "HashingTrick-share0.5", "HashingTrick-share0.1", "FrequencyHash-share0.2"}
    written = {path.stem for path in (tmp_path / "results" / "small").iterdir()}
    assert written == {f"synthetic-{name}-seed0" for name in names}
    assert out.count("done small/") == 4
    code, out, _ = call("run", path, "--results", "results")
    assert (code, out.strip()) == (0, "4 of 4 runs are current")
    code, out, _ = call("run", path, "--results", "results", "--force", "--filter", "*Full*")
    assert (code, out.count("done small/")) == (0, 1)
    assert (tmp_path / "out" / "tensorboard" / "small" / "synthetic-Full-seed0").is_dir()


def test_two_jobs_write_what_one_does(call, toml, small, tmp_path):
    small |= {"training": {"batch_size": 512, "epochs": 1}, "seeds": [0]}
    small["methods"] = [{"method": "HashingTrick", "share": [0.5, 0.1]}, {"method": "DoubleHash", "nbytes": 9}]
    path = toml(values=small)
    assert call("run", path, "--results", "one")[0] == 0
    code, out, _ = call("run", path, "--results", "two", "--out", "out2", "--jobs", 2)
    assert code == 0
    assert out.count("done small/") == 2
    assert "cannot small/synthetic-DoubleHash-nbytes9-seed0" in out
    for file in (tmp_path / "one" / "small").glob("*.json"):
        one, two = (json.loads((tmp_path / name / "small" / file.name).read_text()) for name in ("one", "two"))
        assert one["metrics"] == two["metrics"]
    assert len(list((tmp_path / "two" / "small" / "infeasible").iterdir())) == 1


def test_the_name_of_a_finished_run_stays_in_a_terminal(make_run, tmp_path, monkeypatch):
    """The bars are drawn again after each line, over whatever was not ended."""
    terminal = io.StringIO()
    monkeypatch.setattr(runner, "execute", lambda run, settings, report, task: report(1, 2, "x") or ("done", "auc 0.5"))
    console = Console(file=terminal, force_terminal=True, width=120, color_system=None)
    runs = [make_run(), make_run()]
    runner.run_all(runs, runner.Settings(tmp_path, tmp_path), console)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "\n").splitlines()
    assert lines.count("done small/synthetic-Full-seed0  auc 0.5") == 2


def test_a_budget_that_no_run_can_keep_is_exit_code_2(call, toml, small, tmp_path):
    small["methods"] = [{"method": "DoubleHash", "nbytes": 9}]
    code, out, _ = call("run", toml(values=small), "--results", "none")
    assert code == 2
    assert "a budget of 9 bytes is too small" in " ".join(out.split())
    assert not list((tmp_path / "none" / "small").glob("*.json"))


def test_bad_input_is_exit_code_2_before_anything_runs(call, toml, small, tmp_path):
    good = toml("good.toml")
    small["training"]["batchsize"] = 3
    bad = toml("bad.toml", small)
    code, out, err = call("run", good, bad)
    assert code == 2
    assert f"{bad}: unknown key 'training.batchsize'" in err.replace("\n", "")
    assert out == ""
    assert not (tmp_path / "out").exists()
    assert call("run", "no-such")[0] == 2
    assert call("run", good, "--seeds", "one")[0] == 2
    assert call("run", good, "--filter", "nothing")[0] == 2
    assert call("report", "--results", "empty")[0] == 2
    assert call("bench", "no-such")[0] == 2
    assert call("run", good, "--device", "cuda:77")[0] == 2


def test_what_only_the_data_shows_is_exit_code_2_before_anything_runs(call, toml, small, tmp_path):
    small["methods"] += [{"method": "UnifiedEmbedding", "options": {"chunk_dim": 3}, "rows": 5}]
    code, _, err = call("run", toml(values=small), "--results", "results")
    assert code == 2
    assert "small/synthetic-UnifiedEmbedding-chunk_dim=3-rows5-seed0: table 'user': embedding_dim" in err
    assert "not a multiple of chunk_dim 3" in err
    small["methods"].pop()
    small["model"]["options"]["hidden"] = [0]
    code, _, err = call("run", toml(values=small), "--results", "results")
    assert code == 2
    assert "model 'DCN': hidden layer of width 0" in err
    small["model"]["options"]["hidden"] = [8]
    small["slices"] = {"new": {"feature": "film", "max_count": 0}}
    code, _, err = call("run", toml(values=small), "--results", "results")
    assert code == 2
    assert "slices.new.feature: no feature 'film'" in err
    assert {path.name for path in tmp_path.iterdir()} == {"small.toml"}


def test_divergence_is_exit_code_1(call, toml, small):
    small |= {"optimizer": {"name": "SGD", "lr": 1e30}, "methods": [{"method": "Full"}], "seeds": [0]}
    code, out, _ = call("run", toml(values=small), "--results", "results")
    assert code == 1
    assert "lower the learning rate" in out


def test_dry_run_names_the_runs(call, toml, tmp_path):
    code, out, _ = call("run", toml(), "--dry-run", "--seeds", "1")
    assert code == 0
    assert out.split() == [f"small/synthetic-{name}-seed1" for name in ("Full", *SHARES)]
    assert not (tmp_path / "out").exists()


SHARES = ("HashingTrick-share0.5", "HashingTrick-share0.1")


def test_a_bench_prints_and_writes_its_rows(call, monkeypatch, tmp_path):
    def measure(console, *, size: int = 1):
        return [BenchRow("ours", 1.5 * size, 1.25, 2.0, "theirs")]

    monkeypatch.setattr(bench, "names", lambda: ["made"])
    monkeypatch.setattr(bench, "find", lambda name: measure)
    code, out, _ = call("bench", "made", "--json", "rows.json", "-o", "size=2")
    assert code == 0
    assert "3.00x" in out
    expected = [{"name": "ours", "ratio": 3.0, "low": 1.25, "high": 2.0, "against": "theirs"}]
    assert json.loads((tmp_path / "rows.json").read_text()) == expected
    assert call("bench", "made", "-o", "sice=2")[0] == 2
    assert call("bench", "made", "-o", "size")[0] == 2
    assert call("bench", "made", "--json", "no/rows.json")[0] == 2
    assert call("bench")[1].split() == ["made"]
