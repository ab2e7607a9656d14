"""`python -m experiments bench compress`: what `compress_` takes, of many tables and of a large one, fresh and warm.

Memory is the most that the process holds during the call, over what it held before, as a multiple of the tables made;
time is processor time, as a multiple of one pass over the tables replaced, and of the same with half as many tables.
Each case runs in a process of its own. Linux alone, whose kernel says how much memory was held at most.
"""

import ctypes
import gc
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import nn

import embcomp
from experiments.bench import BenchRow
from experiments.bench.timing import spread

SHARE = 10  # ids for each row
WIDTH = 16
IDS = 20_000  # of each of many tables
LARGE = 50_000_000
TABLES = 1_000


Init = Literal["fresh", "warm"]


@dataclass(frozen=True)
class Measured:
    """One call: its processor seconds, those of a pass over the tables, and bytes."""

    seconds: float
    one_pass: float
    peak: int
    result: int


def run(console: Console, *, tables: int = TABLES, ids: int = LARGE, rounds: int = 3) -> list[BenchRow]:
    """Measure `tables` tables, half of them, and one of `ids` ids, or of a tenth with several reads per id."""
    rows: list[BenchRow] = []
    cases: list[tuple[str, Init, int]] = [
        ("HashingTrick", "fresh", 1),
        ("HashingTrick", "warm", 1),
        ("DoubleHash", "warm", 10),
    ]
    for method, init, share in cases:
        label = f"{method}, {init}"
        sizes = [(tables, IDS), (tables // 2, IDS), (1, max(IDS, ids // share))]
        runs = [[in_process(method, init, *size) for _ in range(rounds)] for size in sizes]
        rows += _rows(console, label, *sizes[0], runs[0])
        times = [whole.seconds / half.seconds for whole, half in zip(runs[0], runs[1], strict=True)]
        rows.append(_row(f"{label}, {_shape(*sizes[0])}: time", times, f"{tables // 2:,} tables"))
        rows += _rows(console, label, *sizes[2], runs[2])
    return rows


def _rows(console: Console, label: str, tables: int, ids: int, found: list[Measured]) -> list[BenchRow]:
    name = f"{label}, {_shape(tables, ids)}"
    console.log(
        f"{name}: {min(each.seconds for each in found):.1f} s, at most {max(each.peak for each in found) / 2**20:.0f} "
        f"MiB for {found[0].result / 2**20:.0f} MiB of tables"
    )
    return [
        _row(f"{name}: memory", [each.peak / each.result for each in found], "the tables made"),
        _row(f"{name}: time", [each.seconds / each.one_pass for each in found], "a pass over the old tables"),
    ]


def _shape(tables: int, ids: int) -> str:
    return f"{tables:,} x {ids:,} x {WIDTH}"


def in_process(method: str, init: Init, tables: int, ids: int) -> Measured:
    """Run `measure` in a process of its own."""
    code = f"from experiments.bench.compress import measure, said; said(measure({method!r}, {init!r}, {tables}, {ids}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def said(measured: Measured) -> None:
    """Print what was measured, for the process that asked."""
    print(json.dumps(asdict(measured)))


def measure(method: str, init: Init, tables: int, ids: int) -> Measured:
    """Compress a model of `tables` tables of `ids` ids each in this process."""
    torch.set_num_threads(1)
    rows = max(2, ids // SHARE)
    chosen = getattr(embcomp, method)(rows=rows)
    embcomp.compress_(model(2, 100), getattr(embcomp, method)(rows=10), init=init)  # what is loaded once
    given = model(tables, ids)
    start = time.process_time()
    for weight in given.parameters():
        weight.detach().sum()
    one_pass = time.process_time() - start
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the most that was held
    before, start = _held("VmRSS"), time.process_time()
    old = list(given.parameters())  # held, so that what is made comes on top of them
    embcomp.compress_(given, chosen, init=init)
    seconds, peak = time.process_time() - start, _held("VmHWM") - before
    del old
    return Measured(seconds, one_pass, peak, embcomp.nbytes(given))


def model(tables: int, ids: int) -> nn.ModuleDict:
    """Return a model of tables with random values."""
    made = {}
    for number in range(tables):
        weight = torch.empty(ids, WIDTH).uniform_(-1, 1)
        made[f"t{number}"] = nn.Embedding(ids, WIDTH, _weight=weight)
    return nn.ModuleDict(made)


def _held(which: str) -> int:
    """Return the bytes of this process's memory, by the name that the kernel gives them."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{which}:"))
    return int(line.split()[1]) * 1024


def _row(name: str, ratios: list[float], against: str) -> BenchRow:
    return spread(name, torch.tensor(ratios, dtype=torch.float64), against)
