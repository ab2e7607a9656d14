"""The program of docs/tutorials/sharded-training.md runs on two processes, with what torchrun tells them."""

import os
import re
import runpy
import socket
from pathlib import Path

from experiments.processes import start_context

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "sharded-training.md"


def test_the_program_runs_on_two_processes(tmp_path, monkeypatch):
    program = re.search(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert program
    (tmp_path / "train.py").write_text(program[1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [start_context().Process(target=work, args=(rank, port, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    for rank in range(2):
        said = (tmp_path / f"out-{rank}").read_text()
        assert f"process {rank} of 2: 32 rows in the last batch" in said
        assert re.search(r"'user': '(table|row)_wise'", said)
        assert re.search(r"'shared': '(table|row)_wise'", said)


def work(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    os.dup2(os.open(folder / f"out-{rank}", os.O_WRONLY | os.O_CREAT), 1)
    runpy.run_path(str(folder / "train.py"), run_name="__main__")
