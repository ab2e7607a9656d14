"""docs/tutorials/resume.md: its script runs on two processes, and goes on from where it stood."""

import json
import os
import runpy
import shutil
import socket
from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from embcomp.checkpoints import Checkpoints
from experiments.processes import start_context

ROOT = Path(__file__).parents[2]


def script() -> str:
    parser = Sybil([CodeBlockParser("python", lambda example: None)], path=str(ROOT))
    (found,) = (
        block.parsed for block in parser.parse(ROOT / "docs/tutorials/resume.md").examples() if "shard(" in block.parsed
    )
    return str(found)


def as_torchrun_does(rank: int, port: int, folder: Path) -> None:
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in environment.items()} | {"MASTER_ADDR": "localhost"}
    torch.set_num_threads(1)
    os.chdir(folder)
    runpy.run_path("train.py", run_name="__main__")


def run(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [start_context().Process(target=as_torchrun_does, args=(rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


def state(folder: Path) -> dict:
    dcp_to_torch_save(folder, folder.parent / "whole.pt")
    return torch.load(folder.parent / "whole.pt", weights_only=False)


@pytest.mark.timeout(900)  # two starts of two processes, on a machine that may be busy
def test_the_script_goes_on_exactly(tmp_path):
    (tmp_path / "train.py").write_text(script())
    run(tmp_path)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{step:010d}" for step in (8, 10, 12)]
    kept = shutil.move(folder / "step-0000000012", tmp_path / "kept")
    shutil.rmtree(folder / "step-0000000010")
    run(tmp_path)
    assert json.loads((folder / "step-0000000012" / "manifest.json").read_text())["position"] == {
        "epoch": 1,
        "batch": 6,
    }
    one, other = state(Path(kept)), state(folder / "step-0000000012")
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    parts: dict = {"__name__": "page"}
    exec(script().partition("dist.init_process_group(")[0], parts)  # as a reader who pastes the class
    model = parts["Ranker"]()
    Checkpoints(folder, model).load(random=False)
    torch.testing.assert_close(dict(model.state_dict()), one["model"], rtol=0, atol=0)
