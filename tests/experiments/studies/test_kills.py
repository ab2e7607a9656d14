"""The experiment `kills`, small: what it says of a training that was killed a few times."""

import re

import pytest

from experiments.studies.kills import PATIENCE, Kill, run, spread


@pytest.mark.timeout(900)  # a few starts and ends of two processes, on a machine that may be busy
def test_a_training_that_is_killed_ends_as_one_left_alone():
    said: list[str] = []
    found = run(kills=3, epochs=1, batch_size=120, seed=1, report=said.append)
    assert found["equal"]
    assert len(said) == 1 + len(found["kills"]) == 4
    alone, *killed = found["outcomes"].values()
    assert all(each == alone for each in killed)
    assert list(alone) == ["steps", "loss", "test/auc", "test/logloss", "test/ne", "weights"]
    assert alone["steps"] == 40
    assert alone["test/auc"] > 0.5
    assert re.fullmatch("[0-9a-f]{64}", alone["weights"])
    for kill in found["kills"]:
        assert kill["phase"] in ("start", "train", "save")
        if len(kill["ranks"]) == 1:
            assert kill["others_ended_after"] < PATIENCE
            assert "Error" in kill["error"]
    assert sum(found["kills_in_quarters"]) == 3
    assert sum(number > 0 for number in found["kills_in_quarters"]) > 1  # two wait for two new checkpoints of eight


def test_kills_are_counted_by_the_checkpoint_before_them():
    at = [None, 0, 5, 10, 15, 15, 20]
    assert spread([Kill([0], "train", step, None, None) for step in at], steps=20) == [2, 1, 1, 3]
