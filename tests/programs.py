"""Programs of the docs on two processes, with what torchrun tells them."""

import os
import re
import runpy
import socket
from pathlib import Path

import torch

from experiments.processes.processes import start_context

DOCS = Path(__file__).parent.parent / "docs"


def program(page: str, holding: str) -> str:
    """The one Python block of a page of the docs that holds this text."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)
    (found,) = (block for block in blocks if holding in block)
    return found


def torchrun(file: Path, processes: int = 2) -> list[str]:
    """Runs a program in its folder, as `torchrun --nproc-per-node` does -> what each process printed, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    workers = [start_context().Process(target=_work, args=(file, told, rank)) for rank in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * processes
    return [_printed(file, rank).read_text() for rank in range(processes)]


def _work(file: Path, told: dict[str, object], rank: int) -> None:
    os.environ |= {name: str(value) for name, value in {**told, "RANK": rank, "LOCAL_RANK": rank}.items()}
    torch.set_num_threads(1)
    os.chdir(file.parent)
    os.dup2(os.open(_printed(file, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    runpy.run_path(file.name, run_name="__main__")


def _printed(file: Path, rank: int) -> Path:
    return file.with_name(f"{file.stem}-{rank}.txt")
