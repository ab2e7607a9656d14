"""Files that embcomp 0.1 wrote still load."""

import shutil
from pathlib import Path

import torch

from embcomp.checkpoints import Checkpoints, Progress
from embcomp.graph import ClusterMap, Mixture
from embcomp.sdim import BehaviorEncoder

FOLDER = Path(__file__).parent / "embcomp-0.1"


def test_maps_and_encoders() -> None:
    users = ClusterMap.load(FOLDER / "users.map")
    assert torch.equal(users.assignment(), torch.arange(20) % 7)
    assert (users.rows, users.side, users.coherence, users.clustering) == (8, "users", 0.25, "x")
    assert Mixture.load(FOLDER / "mixture").weights.tolist() == [[255, 85], [255, 0]]
    encoder = BehaviorEncoder.load(FOLDER / "encoder.pt")
    torch.manual_seed(0)
    assert torch.equal(encoder.items(torch.arange(20)), torch.nn.Embedding(20, 8).weight)


def test_a_checkpoint(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "checkpoints", tmp_path / "run")
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [7])
    checkpoints = Checkpoints(tmp_path / "run", model, [optimizer], parts={"s": scheduler})
    assert checkpoints.load() == Progress(3, {"a": [1]})
    assert (scheduler.last_epoch, dict(scheduler.milestones)) == (1, {2: 1, 3: 1})
    assert optimizer.state[model.bias]["step"] == 1
