"""docs/tutorials/serve.md: two processes train and export, and torch alone serves what they have trained."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from embcomp.checkpoints import Checkpoints
from tests.programs import program, torchrun

PAGE = "tutorials/serve.md"
TORCH_ALONE = """
import sys
for name in ("embcomp", "torchrec", "fbgemm_gpu"):
    sys.modules[name] = None  # an import of it fails
"""


@pytest.mark.timeout(900)  # a start of two processes, on a machine that may be busy
def test_what_two_processes_have_trained_is_served(tmp_path: Path) -> None:
    training, serving = program(PAGE, "shard(Ranker"), program(PAGE, "print(scores")
    (tmp_path / "train.py").write_text(training)
    first, second = torchrun(tmp_path / "train.py")
    assert "UnifiedEmbedding  int8" in first
    assert second == ""
    served = subprocess.run(
        [sys.executable, "-c", TORCH_ALONE + serving], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    parts: dict = {"__name__": "page"}
    exec(training.partition("dist.init_process_group(")[0], parts)  # as a reader who pastes the class
    torch.manual_seed(0)
    model = parts["Ranker"]()
    ids = torch.tensor([9_999, 17, 3, 4_999, 17, 4])
    batch = KeyedJaggedTensor(["user", "item"], ids, lengths=torch.ones(6, dtype=torch.int64))
    untrained = model(batch)
    Checkpoints(tmp_path / "checkpoints", model).load(random=False)
    scores, most = model(batch), error(model)
    assert (torch.tensor(json.loads(served.stdout)) - scores).abs().max() <= most
    assert (untrained - scores).abs().min() > 10 * most


def error(model: nn.Module) -> Tensor:
    """What int8 may cost a score: half a scale for each value that is looked up, two rows of "user"."""
    (user,), (item,) = (
        [w for name, w in model.named_parameters() if f".{store}." in name] for store in ("user", "shared")
    )
    halves = [2 * half(user).expand(16), half(item).expand(16)]
    return (torch.cat(halves) * model.head.weight.abs().squeeze(0)).sum() + 1e-6


def half(rows: Tensor) -> Tensor:
    return (rows.max() - rows.min()) / 255 / 2
