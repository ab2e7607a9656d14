"""A small model of plain torch with tables in all places, and what tests of `compress_` ask of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import embcomp


class Recommender(nn.Module):
    """Two embeddings, a bag, towers in a list, an output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(50, 8)
        self.item = nn.Embedding(40, 8, padding_idx=0)
        self.tags = nn.EmbeddingBag(30, 8, mode="sum")
        self.towers = nn.ModuleList([nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8)) for _ in range(2)])
        self.out = nn.Linear(8, 1)

    def forward(self, user: Tensor, item: Tensor, tags: Tensor) -> Tensor:
        x = self.user(user) * self.item(item) + self.tags(tags)
        return self.out(x + sum(tower(user % 20) for tower in self.towers))


BATCH = (torch.arange(6), torch.arange(6), torch.arange(12).view(6, 2))
PATHS = ["user", "item", "tags", "towers.0.0", "towers.1.0"]


def kinds(model: nn.Module) -> dict[str, str]:
    return {path: type(model.get_submodule(path)).__name__ for path in PATHS}


def methods_of(report: embcomp.CompressionReport) -> dict[str, str]:
    return {table.name: f"{table.method}({table.rows})" for table in report.tables}


@contextmanager
def nothing_changes(model: nn.Module) -> Iterator[None]:
    """Same modules, same parameters, same values, same flags."""

    def picture() -> tuple[Any, ...]:
        return (
            {path: (id(module), module.training) for path, module in model.named_modules(remove_duplicate=False)},
            {
                name: (id(tensor), tensor.requires_grad)
                for name, tensor in model.named_parameters(remove_duplicate=False)
            },
        )

    before, state = picture(), {key: value.clone() for key, value in model.state_dict().items()}
    yield
    assert picture() == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items() if not value.is_meta)
