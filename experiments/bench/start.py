"""`python -m experiments bench start`: the time that `import embcomp` and the command `embcomp` add to `import torch`.

Each turn starts a new process. Times are processor seconds, so that other work of the machine changes them little.
"""

import os
import resource
import subprocess
import sys

import torch
from rich.console import Console

from experiments.bench import BenchRow
from experiments.bench.timing import spread

_TORCH = "import torch"
_STARTS = {
    "import embcomp": ["-c", "import torch, embcomp"],
    "import embcomp.torchrec": ["-c", "import torch, embcomp.torchrec"],
    "embcomp --help": ["-m", "embcomp", "--help"],
}


def run(console: Console, *, rounds: int = 9) -> list[BenchRow]:
    """Time each start against `import torch` alone, in turns."""
    commands = {_TORCH: ["-c", _TORCH], **_STARTS}
    for words in commands.values():  # reads the files from disk, and compiles ours
        _seconds(words)
    times = {name: [] for name in commands}
    for _ in range(rounds):
        for name, words in commands.items():
            times[name].append(_seconds(words))
    seconds = {name: torch.tensor(each, dtype=torch.float64) for name, each in times.items()}
    for name in _STARTS:
        added = (seconds[name] - seconds[_TORCH]).median().item()
        console.log(f"{name}: {added:.2f} s more than {seconds[_TORCH].median().item():.2f} s")
    return [spread(name, seconds[name] / seconds[_TORCH], _TORCH) for name in _STARTS]


def _seconds(words: list[str]) -> float:
    """Return the processor time of a Python process that is started with these arguments."""
    keeps = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # what is compiled, as an installation does
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, capture_output=True, env=keeps)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
