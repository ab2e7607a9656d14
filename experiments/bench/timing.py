"""Paired timings: candidates take turns in one process, mostly on one thread; a disturbance affects all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.bench import BenchRow


def paired(
    candidates: Mapping[str, Callable[[], Any]],
    against: str,
    *,
    rounds: int = 30,
    warmup: int = 3,
    min_seconds: float = 0.002,
    progress: Callable[[int, int], None] = lambda done, total: None,
    threads: int = 1,
) -> list[BenchRow]:
    """Time each candidate over `against`, round by round: A B C A B C ...

    Args:
        candidates: the functions to time, by name.
        against: the name of the candidate that the others are divided by.
        rounds: the number of turns of each candidate.
        warmup: the number of untimed calls of each.
        min_seconds: the least time of a turn; a faster candidate is called several times in a turn.
        progress: a function that is called with (rounds done, rounds).
        threads: the threads of torch.

    Returns:
        The median of the rounds' ratios for each other candidate, with the 10th and 90th percentile.

    >>> row = paired({"one": lambda: sum(range(9)), "two": lambda: sum(range(9))}, against="one", rounds=3)[0]
    >>> row.name, row.against, row.low <= row.ratio <= row.high
    ('two', 'one', True)
    """
    if against not in candidates:
        raise ValueError(f"against={against!r} is not one of the candidates {list(candidates)}")
    times = seconds(
        candidates, rounds=rounds, warmup=warmup, min_seconds=min_seconds, progress=progress, threads=threads
    )
    return [spread(name, times[name] / times[against], against) for name in candidates if name != against]


def seconds(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 30,
    warmup: int = 3,
    min_seconds: float = 0.002,
    progress: Callable[[int, int], None] = lambda done, total: None,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] | None = None,
    threads: int = 1,
) -> dict[str, Tensor]:
    """Return the seconds of a call, float64 [rounds], by candidate; see `paired`. A GPU measures them by events.

    On a CPU `clock` measures them: `time.process_time` where other work of the machine must not count.
    """
    watch = _on_gpu if torch.device(device).type == "cuda" else partial(_on_cpu, clock or time.perf_counter)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    collecting = gc.isenabled()
    gc.disable()
    try:
        calls = {name: _calls(call, warmup, min_seconds, watch) for name, call in candidates.items()}
        times = {name: torch.empty(rounds, dtype=torch.float64) for name in candidates}
        for turn in range(rounds):
            for name, call in candidates.items():
                times[name][turn] = watch(call, calls[name]) / calls[name]
            gc.collect(0)
            progress(turn + 1, rounds)
    finally:
        torch.set_num_threads(before)
        if collecting:
            gc.enable()
    return times


def spread(name: str, ratios: Tensor, against: str) -> BenchRow:
    """Return the median, 10th and 90th percentile of the rounds."""
    low, ratio, high = torch.quantile(ratios, ratios.new_tensor([0.1, 0.5, 0.9])).tolist()
    return BenchRow(name, ratio, low, high, against)


Watch = Callable[[Callable[[], Any], int], float]


def _on_cpu(clock: Callable[[], float], call: Callable[[], Any], times: int) -> float:
    begin = clock()
    for _ in range(times):
        call()
    return clock() - begin


def _on_gpu(call: Callable[[], Any], times: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def _calls(call: Callable[[], Any], warmup: int, min_seconds: float, watch: Watch) -> int:
    """Return the number of calls of a turn."""
    shortest = min(watch(call, 1) for _ in range(max(warmup, 1)))
    return max(1, int(min_seconds / max(shortest, 1e-9)))
