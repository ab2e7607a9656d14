"""Paired timings: candidates take turns in one process on one thread, so that what disturbs one disturbs all."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from experiments.bench import BenchRow


def paired(
    candidates: Mapping[str, Callable[[], Any]],
    against: str,
    *,
    rounds: int = 30,
    warmup: int = 3,
    min_seconds: float = 0.002,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[BenchRow]:
    """Time of each candidate over that of `against`, round by round: A B C A B C ...

    Args:
        candidates: name -> what to time.
        against: the name of the candidate that the others are divided by.
        rounds: turns of each candidate.
        warmup: untimed calls of each.
        min_seconds: a candidate that is faster is called several times in a turn.
        progress: called with (rounds done, rounds).

    Returns:
        For each other candidate the median of the rounds' ratios, with their 10th and 90th percentile.

    >>> row = paired({"one": lambda: sum(range(9)), "two": lambda: sum(range(9))}, against="one", rounds=3)[0]
    >>> row.name, row.against, row.low <= row.ratio <= row.high
    ('two', 'one', True)
    """
    if against not in candidates:
        raise ValueError(f"against={against!r} is none of the candidates {list(candidates)}")
    times = seconds(candidates, rounds=rounds, warmup=warmup, min_seconds=min_seconds, progress=progress)
    rows = []
    for name in candidates:
        if name != against:
            low, ratio, high = np.percentile(times[name] / times[against], [10, 50, 90]).tolist()
            rows.append(BenchRow(name, ratio, low, high, against))
    return rows


def seconds(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 30,
    warmup: int = 3,
    min_seconds: float = 0.002,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, np.ndarray]:
    """Seconds of a call, float64 [rounds] for each candidate; see `paired`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    collecting = gc.isenabled()
    gc.disable()
    try:
        calls = {name: _calls(call, warmup, min_seconds) for name, call in candidates.items()}
        times = {name: np.empty(rounds) for name in candidates}
        for turn in range(rounds):
            for name, call in candidates.items():
                begin = time.perf_counter()
                for _ in range(calls[name]):
                    call()
                times[name][turn] = (time.perf_counter() - begin) / calls[name]
            gc.collect(0)
            progress(turn + 1, rounds)
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()
    return times


def _calls(call: Callable[[], Any], warmup: int, min_seconds: float) -> int:
    """How many calls make a turn."""
    shortest = float("inf")
    for _ in range(max(warmup, 1)):
        begin = time.perf_counter()
        call()
        shortest = min(shortest, time.perf_counter() - begin)
    return max(1, int(min_seconds / max(shortest, 1e-9)))
