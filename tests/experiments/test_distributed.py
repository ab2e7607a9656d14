"""Two processes train the same experiment as one, and go on where they were ended."""

import json
import os
import time
from pathlib import Path

import pytest
import torch

from experiments import distributed, results, train
from experiments.config import RunConfig
from experiments.load import check
from experiments.processes import Processes
from experiments.runner import Settings, execute, unheard

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
    return execute(run, Settings(folder / "results", folder / "out", checkpoint_seconds=seconds), unheard)


@pytest.fixture(params=TABLES)
def config(request, make_run) -> RunConfig:
    return make_run(data=DATA, training=TRAINING, optimizer=TABLES[request.param])


@pytest.fixture
def alone(config, tmp_path) -> dict:
    """What one process comes to."""
    status, text = execute(config, Settings(tmp_path / "alone", tmp_path / "alone-out"), unheard)
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
    cache, begin = os.environ["XDG_CACHE_HOME"], time.monotonic()
    with Processes(2) as pair:
        first, second = pair.outcomes(execute_there, config, tmp_path, cache, kill)
    assert time.monotonic() - begin < 60
    assert second.error == "the process has died"
    assert "process 0 of 2 has ended" in first.error
    assert "goes on from the last checkpoint" in first.error
    assert not results.path_of(config, tmp_path / "results").exists()
    saved = torch.load(tmp_path / "out" / "runs" / config.experiment / config.name / "last.pt", weights_only=True)
    assert saved["progress"]["batch"] + 8 * saved["progress"]["epoch"] == kill - 1
    with Processes(2) as pair:
        pair.run(execute_there, config, tmp_path, cache)
    assert values(config, tmp_path / "results")["metrics"] == pytest.approx(alone["metrics"], abs=2e-5)


def test_retrieval_runs_are_refused(pair):
    section = {
        "data": {"name": "synthetic"},
        "model": {"name": "MF", "embedding_dim": 8},
        "optimizer": {"name": "Adam"},
        "training": {"batch_size": 64, "epochs": 1, "monitor": "valid/recall@20"},
        "retrieval": {},
        "methods": [{"method": "Full"}],
    }
    said = pair.run(prepare_there, next(check(section, "x.toml").runs()))
    assert said == ["retrieval runs train in one process: leave torchrun out"] * 2


def prepare_there(run: RunConfig) -> str:
    from experiments.errors import InputError
    from experiments.task import prepare

    try:
        prepare(run)
    except InputError as error:
        return str(error)
    return ""
