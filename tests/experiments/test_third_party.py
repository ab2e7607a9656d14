"""The trial of other libraries' models, on small models that stand for what is found there."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import embcomp
from experiments.third_party.__main__ import counts
from experiments.third_party.case import Case
from experiments.third_party.trial import METHODS, try_exact, try_method

IDS = torch.arange(12)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.item, self.out = nn.Embedding(30, 8), nn.Linear(8, 1)
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.item(ids))


class Scaled(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Subclass(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.item = Scaled(30, 8)
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)


class Kept(Plain):
    """Reads a copy of its table that no one can know of."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.item.weight.detach().clone()

    def forward(self, ids: Tensor) -> Tensor:
        table = self.item(ids) if type(self.item) is nn.Embedding else self.first[ids]
        return self.out(table)


class Dense(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Linear(12, 8)  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.item(ids.float()))


class Broken(Plain):
    def forward(self, ids: Tensor) -> Tensor:
        raise KeyError("label")


def case(kind: Callable[[], nn.Module], **settings: object) -> Case:
    return Case(kind(), lambda model: model(IDS).square().mean(), **settings)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("kind", "outcome", "reason"),
    [
        (Plain, "trained", ""),
        (Subclass, "refused", "Scaled is a subclass"),
        (Kept, "wrong", "not trained: item.stores.0.weight"),
        (Dense, "no table", ""),
        (Broken, "does not run", "KeyError: 'label'"),
    ],
)
def test_outcomes(kind, outcome, reason):
    for name, method in METHODS.items():
        found, why = try_method(lambda: case(kind, own_optimizer=True), method, "fresh")
        assert (found, reason in why) == (outcome, True), (name, why)


def test_a_warm_start_with_a_row_for_each_id_leaves_the_loss():
    assert try_exact(lambda: case(Plain))[0] == "trained"
    noise = iter(range(99))
    moved = try_exact(lambda: Case(Plain(), lambda model: model(IDS).mean() + next(noise)))
    assert moved[0] == "wrong"
    assert "loss" in moved[1]


def test_penalties_must_reach_the_rows():
    def to_none(model: nn.Module) -> Tensor:
        rows = model.item.weight if type(model.item) is nn.Embedding else model.out.weight
        return rows.square().sum()

    found = try_method(lambda: case(Plain, penalty=to_none), lambda model: embcomp.HashingTrick(rows=5), "warm")
    assert found == ("wrong", "no penalty: item.stores.0.weight")


def test_models_count_by_their_worst_outcome():
    rows = [{"outcomes": {"trained": 9}}, {"outcomes": {"trained": 7, "refused": {"a": ["x"], "b": ["y"]}}}]
    assert counts(rows) == ({"trained": 1, "refused": 1}, {"trained": 16, "refused": 2})
