"""docs/tutorials/resume.md: its script runs on two processes, and goes on from where it stood."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from embcomp.checkpoints import Checkpoints
from tests.programs import program, torchrun


def state(folder: Path) -> dict:
    dcp_to_torch_save(folder, folder.parent / "whole.pt")
    return torch.load(folder.parent / "whole.pt", weights_only=False)


@pytest.mark.timeout(900)  # two starts of two processes, on a machine that may be busy
def test_the_script_goes_on_exactly(tmp_path):
    script = program("tutorials/resume.md", "shard(Ranker")
    (tmp_path / "train.py").write_text(script)
    torchrun(tmp_path / "train.py")
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{step:010d}" for step in (8, 10, 12)]
    kept = shutil.move(folder / "step-0000000012", tmp_path / "kept")
    shutil.rmtree(folder / "step-0000000010")
    torchrun(tmp_path / "train.py")
    assert json.loads((folder / "step-0000000012" / "manifest.json").read_text())["position"] == {
        "epoch": 1,
        "batch": 6,
    }
    one, other = state(Path(kept)), state(folder / "step-0000000012")
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    parts: dict = {"__name__": "page"}
    exec(script.partition("dist.init_process_group(")[0], parts)  # as a reader who pastes the class
    model = parts["Ranker"]()
    Checkpoints(folder, model).load(random=False)
    torch.testing.assert_close(dict(model.state_dict()), one["model"], rtol=0, atol=0)
