"""A process killed with SIGKILL at random moments ends, run again, where one that was left alone ends: exactly."""

import fcntl
import json
import random
import time

import pytest

from embcomp.ops.kmeans import no_progress
from experiments.processes.processes import start_context
from experiments.runs import runner
from experiments.runs.runner import Settings, execute

SECTIONS = {
    "adam and dropout": {"model": {"options": {"hidden": [16], "dropout": 0.3, "batch_norm": True}}},
    "owners that move": {"methods": [{"method": "HotRows", "share": 0.3}], "optimizer": {"embedding": "Adagrad"}},
    "gates that are searched": {"methods": [{"method": "LearnedMask", "share": 0.3, "options": {"rule": "gates"}}]},
    "fused row-wise Adagrad": {"optimizer": {"embedding": "RowWiseAdagrad", "embedding_lr": 0.1}},
}


@pytest.mark.parametrize("sections", SECTIONS.values(), ids=SECTIONS.keys())
def test_killed_runs_end_like_others(make_run, tmp_path, sections):
    training = {"epochs": 3, "batch_size": 32, "patience": 3}
    run = make_run(**{"training": training, "methods": [{"method": "DoubleHash", "share": 0.3}], **sections})
    settings = {
        name: Settings(tmp_path / name / "results", tmp_path / name / "out", checkpoint_seconds=0.1)
        for name in ("alone", "killed")
    }
    assert execute(run, settings["alone"], no_progress)[0] == "done"

    moments, kills = random.Random(0), 0
    folder = tmp_path / "killed" / "out" / "runs" / run.experiment / run.name
    while True:
        before = _saved(folder)
        process = start_context().Process(target=execute, args=(run, settings["killed"], no_progress))
        process.start()
        while process.is_alive() and (kills >= 4 or _saved(folder) == before):  # each session gets a little further
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -9
        kills += 1
    assert kills >= 3

    alone, killed = (json.loads((s.results / "small" / f"{run.name}.json").read_text()) for s in settings.values())
    for changing in ("seconds", "peak_memory"):
        del alone[changing], killed[changing]
    assert killed == alone
    assert sorted(path.name for path in folder.iterdir()) == ["best.safetensors", "lock"]


def test_two_commands_never_train_the_same_run(make_run, tmp_path, monkeypatch):
    run, settings = make_run(), Settings(tmp_path / "results", tmp_path / "out")
    folder = tmp_path / "out" / "runs" / run.experiment / run.name
    folder.mkdir(parents=True)
    monkeypatch.setattr(runner, "_PATIENCE", 0.3)
    said = []
    with (folder / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        status, text = execute(run, settings, lambda *state: said.append(state))
    assert status == "failed"
    assert text == f"another command trains this run, and has locked {folder / 'lock'}: let it end, or stop it"
    assert said[0] == (0, 0, "waits for another command that trains this run")
    assert not (tmp_path / "results").exists()
    assert execute(run, settings, no_progress)[0] == "done"


def _saved(folder):
    return [path.name for path in folder.glob("last-*/step-*")]
