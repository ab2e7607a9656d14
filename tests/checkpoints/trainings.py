"""A small training with all that a checkpoint holds."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import nn

import embcomp
from embcomp.checkpoints import Checkpoints

COUNTS = torch.tensor([5.0, 0, 9, 1, 3, 3])


class Model(nn.Module):
    """Hashed users, films with a map, a dense part with dropout."""

    def __init__(self, rows: int = 9, counts: torch.Tensor = COUNTS, width: int = 16) -> None:
        super().__init__()
        self.users, self.films = nn.Embedding(100, 8), nn.Embedding(6, 8)
        methods = {"users": embcomp.DoubleHash(rows=rows), "films": embcomp.FrequencyHash(rows=4, counts=counts)}
        embcomp.compress_(self, methods)
        self.head = nn.Sequential(nn.Linear(16, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 1))

    def forward(self, users: torch.Tensor, films: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.users(users), self.films(films)], dim=1)).mean()


class Training:
    """A model, its optimizer and scheduler, and batches drawn at random."""

    def __init__(self, folder: Path, seed: int = 0, **settings) -> None:
        torch.manual_seed(seed)
        self.model = Model(**settings.pop("model", {}))
        sparse, dense = [self.model.users, self.model.films], self.model.head
        self.optimizer = torch.optim.Adam(
            [{"params": nn.ModuleList(sparse).parameters(), "lr": 0.1}, {"params": dense.parameters(), "lr": 0.01}]
        )
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=2, gamma=0.5)
        self.parts = {"scheduler": self.scheduler, **settings.pop("parts", {})}
        self.checkpoints = Checkpoints(folder, self.model, [self.optimizer], parts=self.parts, **settings)

    def steps(self, number: int) -> list[float]:
        losses = []
        for _ in range(number):
            self.optimizer.zero_grad()
            users = torch.randint(100, (7,)) + random.randrange(0, 1)
            loss = self.model(users, torch.from_numpy(np.random.randint(0, 6, 7)))
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item())
        return losses


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def save_and_wait(checkpoints: Checkpoints, step: int, asynchronous: bool) -> None:
    checkpoints.save(step, asynchronous=asynchronous)
    checkpoints.wait()


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
