"""Paired timings, on a clock that the test turns."""

import gc

import pytest
import torch

from experiments.bench import names, timing


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

    monkeypatch.setattr(timing.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_candidates_take_turns_and_are_compared_round_by_round(clock):
    turns = []

    def candidate(name, seconds):
        def call():
            turns.append(name)
            clock.now += next(seconds)

        return call

    slow = iter([9.0, 2.0, 4.0, 6.0, 8.0, 10.0])  # the first is the warm-up
    fast = iter([9.0, 1.0, 1.0, 2.0, 2.0, 5.0])
    (row,) = timing.paired(
        {"fast": candidate("fast", fast), "slow": candidate("slow", slow)}, "fast", rounds=5, warmup=1
    )
    assert turns == ["fast", "slow"] + ["fast", "slow"] * 5
    assert (row.name, row.against, row.ratio) == ("slow", "fast", 3.0)  # the median of 2, 4, 3, 4, 2
    assert (row.low, row.high) == (2.0, 4.0)


def test_fast_candidates_are_called_several_times_in_a_turn(clock):
    calls = {"quick": 0, "slow": 0}

    def quick():
        calls["quick"] += 1
        clock.now += 0.25

    def slow():
        calls["slow"] += 1
        clock.now += 2.0

    found = timing.seconds({"quick": quick, "slow": slow}, rounds=2, warmup=1, min_seconds=1.0)
    assert calls == {"quick": 1 + 2 * 4, "slow": 1 + 2}
    assert found["quick"].tolist() == [0.25, 0.25]


def test_threads_and_collection_are_as_before():
    torch.set_num_threads(2)
    try:
        timing.paired({"a": lambda: torch.get_num_threads(), "b": lambda: None}, "a", rounds=1)
        assert torch.get_num_threads() == 2
        assert gc.isenabled()
    finally:
        torch.set_num_threads(1)


def test_the_base_must_be_a_candidate():
    with pytest.raises(ValueError, match="not one of the candidates"):
        timing.paired({"a": lambda: None}, "b")


def test_only_modules_with_a_run_are_benches():
    assert "timing" not in names()
