"""A small click model, trained on clicks whose tables have two directions, and one that says nothing."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from embcomp.planner.losses import log_loss

IDS = {"user": 300, "item": 400, "noise": 200, "day": 5}
WIDTH = 8


class Clicks(nn.Module):
    """What user and item share, and the day; the noise has a vector, too."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(ids, WIDTH) for name, ids in IDS.items()})
        self.linear = nn.Linear(2 * WIDTH, 1)
        for table in self.tables.values():
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, ids):
        user, item, noise, day = (self.tables[name](ids[:, i]) for i, name in enumerate(IDS))
        return (user * item).sum(1) + self.linear(torch.cat([noise, day], 1)).squeeze(1)


def clicks(number, seed):
    """(ids [number, 4], labels) of clicks with a planted taste of two directions."""
    truth = torch.Generator().manual_seed(1)
    taste = {name: torch.randn(IDS[name], 2, generator=truth) * 1.5 for name in ("user", "item")}
    day = torch.randn(IDS["day"], generator=truth)
    random = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(count, (number,), generator=random) for count in IDS.values()], 1)
    logits = (taste["user"][ids[:, 0]] * taste["item"][ids[:, 1]]).sum(1) + day[ids[:, 3]]
    return ids, (torch.rand(number, generator=random) < logits.sigmoid()).float()


def mean_loss(model, batches):
    with torch.no_grad():
        return sum(float(log_loss(model.eval(), batch)) for batch in batches) / len(batches)


@pytest.fixture(scope="session")
def _trained():
    torch.manual_seed(0)
    model, (ids, labels) = Clicks(), clicks(60_000, seed=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(3):
        for rows in torch.randperm(len(ids)).split(500):
            optimizer.zero_grad()
            decay = 1e-4 * sum(t(ids[rows][:, i]).square().sum() for i, t in enumerate(model.tables.values()))
            (F.binary_cross_entropy_with_logits(model(ids[rows]), labels[rows]) + decay / 10).backward()
            optimizer.step()
    return model


@pytest.fixture
def trained(_trained):
    return copy.deepcopy(_trained)


@pytest.fixture(scope="session")
def held_out():
    ids, labels = clicks(8_000, seed=3)
    return list(zip(ids.split(2000), labels.split(2000), strict=True))


def chosen(choice, name):
    """The line of a choice for a table."""
    return next(table for table in choice.tables if table.name == name)
