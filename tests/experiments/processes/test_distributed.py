"""Two processes train the same experiment as one, and go on where they were ended."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import embcomp
from embcomp.ops.kmeans import no_progress
from experiments.config import RunConfig
from experiments.errors import InputError
from experiments.load import check
from experiments.processes import distributed
from experiments.processes.processes import Processes
from experiments.runs import results, runner
from experiments.runs.runner import Settings, execute
from experiments.training import train

ROOT = Path(__file__).parents[3]
# Batches of odd sizes, so that shares are padded.
DATA = {"options": {"num_rows": 10_009, "num_users": 300, "num_items": 200, "num_communities": 5}}
TRAINING = {"batch_size": 1001, "epochs": 2, "eval_batch_size": 999}
TABLES = {"Adam": {"name": "Adam", "lr": 0.01}, "fused": {"lr": 0.01, "embedding": "RowWiseAdagrad"}}


def values(run: RunConfig, folder: Path) -> dict:
    return json.loads(results.path_of(run, folder).read_text())


def execute_there(run: RunConfig, folder: Path, cache: str, kill: int | None = None) -> tuple[str, str]:
    """A run in this process of several; with `kill`, the last process dies after so many batches."""
    os.environ["XDG_CACHE_HOME"] = cache
    if kill is not None:
        ask = train.Trainer._time_to_save

        def dying(trainer, now):
            if trainer.progress.epoch * trainer.steps + trainer.progress.batch == kill and distributed.rank() == 1:
                os._exit(9)
            return ask(trainer, now)

        train.Trainer._time_to_save = dying
        train._ASK_EVERY = 2
    seconds = 30.0 if kill is None else 0.0
    return execute(run, Settings(folder / "results", folder / "out", checkpoint_seconds=seconds), no_progress)


@pytest.fixture(params=TABLES)
def config(request, make_run) -> RunConfig:
    return make_run(data=DATA, training=TRAINING, optimizer=TABLES[request.param])


@pytest.fixture
def alone(config, tmp_path) -> dict:
    """What one process comes to."""
    status, text = execute(config, Settings(tmp_path / "alone", tmp_path / "alone-out"), no_progress)
    assert status == "done", text
    return values(config, tmp_path / "alone")


def test_two_processes_come_to_what_one_does(pair, config, alone, tmp_path):
    said = pair.run(execute_there, config, tmp_path, os.environ["XDG_CACHE_HOME"])
    assert [status for status, _ in said] == ["done", "done"]
    found = values(config, tmp_path / "results")
    assert found["processes"] == 2
    for key in ("nbytes", "rows", "full_nbytes", "epochs", "best_epoch", "key", "config", "method_config"):
        assert found[key] == alone[key], key
    assert found["metrics"] == pytest.approx(alone["metrics"], abs=2e-5)
    for mine, theirs in zip(found["history"], alone["history"], strict=True):
        assert mine == pytest.approx(theirs, abs=2e-5)


@pytest.mark.parametrize(("config", "kill"), [("fused", 5), ("Adam", 9)], indirect=["config"])
def test_where_one_process_dies_the_others_end_and_the_run_goes_on(config, alone, tmp_path, kill):
    cache = os.environ["XDG_CACHE_HOME"]
    with Processes(2) as pair:
        pair.start(execute_there, config, tmp_path, cache, kill)
        while not pair.ended():
            time.sleep(0.05)
        begin = time.monotonic()
        first, second = pair.outcomes()
    assert time.monotonic() - begin < 60
    assert second.error == "the process has died"
    assert "process 0 of 2 has ended" in first.error
    assert "continues from the last checkpoint" in first.error
    assert not results.path_of(config, tmp_path / "results").exists()
    runs = tmp_path / "out" / "runs" / config.experiment / config.name
    *_, saved = sorted(runs.glob("last-*/step-*/manifest.json"))
    position = json.loads(saved.read_text())["position"]
    assert position["batch"] + 8 * position["epoch"] == kill - 1
    if config.optimizer.embedding:  # sharded tables go on in one process
        execute_there(config, tmp_path, cache)
    else:
        with Processes(2) as pair:
            pair.run(execute_there, config, tmp_path, cache)
    assert values(config, tmp_path / "results")["metrics"] == pytest.approx(alone["metrics"], abs=2e-5)


def test_torchrun_is_the_command_of_one_process(toml, small, make_run, tmp_path):
    """The command line itself; what it comes to is compared above."""
    path = toml(values={**small, "seeds": [0], "methods": [{"method": "HashingTrick", "share": 0.5}]})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    folders = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "out")]
    command = [*torchrun, "-m", "experiments", "run", str(path), *folders]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("done small/") == 1  # one process speaks
    (file,) = (tmp_path / "results").rglob("*.json")
    found = json.loads(file.read_text())
    assert found["processes"] == 2
    run = make_run(methods=[{"method": "HashingTrick", "share": 0.5}])
    assert execute(run, Settings(tmp_path / "alone", tmp_path / "alone-out"), no_progress)[0] == "done"
    assert found["key"] == values(run, tmp_path / "alone")["key"]
    assert found["metrics"] == pytest.approx(values(run, tmp_path / "alone")["metrics"], abs=2e-5)


def execute_without_patience(run: RunConfig, folder: Path, cache: str) -> tuple[str, str]:
    runner._PATIENCE, usual = 0.1, runner._PATIENCE
    try:
        return execute_there(run, folder, cache)
    finally:
        runner._PATIENCE = usual


def test_all_processes_hear_that_another_command_trains_the_run(pair, make_run, tmp_path):
    run = make_run()
    lock = tmp_path / "out" / "runs" / run.experiment / run.name / "lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        first, second = pair.run(execute_without_patience, run, tmp_path, os.environ["XDG_CACHE_HOME"])
    assert first == second
    assert first[0] == "failed"
    assert str(lock) in first[1]


def other_counts() -> str:
    """What each process hears where the last one has counted other ids, tables being held by all."""
    model = torch.nn.ModuleDict({"film": torch.nn.Embedding(9, 4)})
    counts = torch.arange(9).roll(distributed.rank())
    embcomp.compress_(model, {"film": embcomp.FrequencyHash(rows=5, counts=counts)})
    with pytest.raises(InputError) as raised:
        distributed.spread(model, torch.device("cpu"), None)
    return str(raised.value)


def test_processes_that_differ_are_refused_before_they_train(pair):
    first, second = pair.run(other_counts)
    assert first == second
    assert "map 'hot_ids': rank 1 has" in first
    assert "the same file on every rank" in first


PAIRS = {"num_rows": 3001, "num_users": 60, "num_items": 50, "num_communities": 4, "drift": 0.0}
RANKED = {
    "experiment": "ranked",
    "data": {"name": "synthetic", "options": PAIRS},
    "optimizer": {"lr": 0.02, "weight_decay": 1e-3},
    "training": {"batch_size": 101, "eval_batch_size": 7, "epochs": 2, "monitor": "valid/recall@20"},
    "methods": [{"method": "DoubleHash", "share": 0.5}],
}
SEQUENCES = {
    "experiment": "sequences",
    "data": {"name": "synthetic", "options": PAIRS},
    "model": {"name": "BehaviorModel", "embedding_dim": 8, "options": {"hidden": [16]}},
    "optimizer": {"lr": 0.02},
    "training": {"batch_size": 9, "eval_batch_size": 7, "epochs": 2},
    "behavior": {"task": "next", "length": 20, "request": 4, "poolings": [{"pooling": "sdim"}]},
    "slices": {"long": {"feature": "history", "min_count": 20}},
    "methods": [{"method": "UnifiedEmbedding", "share": 0.5, "options": {"chunk_dim": 4}}],
}
NEXT_ITEMS = {
    **{name: SEQUENCES[name] for name in ("data", "optimizer", "methods")},
    "experiment": "next",
    "model": {"name": "SASRec", "embedding_dim": 8, "init_normal": 0.05, "options": {"dropout": 0.0}},
    "training": {"batch_size": 9, "eval_batch_size": 7, "epochs": 2, "monitor": "valid/ndcg@10"},
    "next_items": {"length": 20},
}
OTHERS = {
    "LightGCN": {**RANKED, "model": {"name": "LightGCN", "embedding_dim": 8}, "retrieval": {}},
    "DirectAU": {**RANKED, "model": {"name": "MF", "embedding_dim": 8}, "retrieval": {"loss": "directau"}},
    "bce": {**RANKED, "model": {"name": "NeuMF", "embedding_dim": 8}, "retrieval": {"loss": "bce"}},
    "behavior": SEQUENCES,
    "next items": NEXT_ITEMS,
}


@pytest.mark.parametrize("sections", OTHERS.values(), ids=OTHERS.keys())
def test_runs_of_other_kinds_come_to_what_one_process_does(pair, sections, tmp_path):
    run = next(check(sections, "x.toml").runs())
    assert execute(run, Settings(tmp_path / "alone", tmp_path / "alone-out"), no_progress)[0] == "done"
    said = pair.run(execute_there, run, tmp_path, os.environ["XDG_CACHE_HOME"])
    assert [status for status, _ in said] == ["done", "done"], said
    alone, found = values(run, tmp_path / "alone"), values(run, tmp_path / "results")
    assert found["processes"] == 2
    for mine, theirs in zip(found["history"], alone["history"], strict=True):
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], abs=2e-5)
    assert found["metrics"] == pytest.approx(alone["metrics"], abs=2e-3)  # a near tie that falls the other way
