"""Searches on held-out data against the same two steps by hand."""

import copy

import pytest
import torch
from torch import nn

from embcomp import LearnedMask, LearnedWidths, Schedule
from embcomp.nn import CompressedEmbedding

IDS, DIM, STEPS = 40, 8, 12
METHODS = {
    "widths": LearnedWidths(width=3, strength=0.5),
    "gates": LearnedMask(keep=0.5, rule="gates", counts=torch.arange(IDS), groups=3, strength=0.05),
    "thresholds": LearnedMask(keep=0.5, rule="threshold"),
}


class Model(nn.Module):
    def __init__(self, method):
        super().__init__()
        torch.manual_seed(0)
        self.item = CompressedEmbedding(IDS, DIM, method)
        self.tower = nn.Linear(DIM, 1)

    def loss(self, number):
        ids = torch.randint(IDS, (16,), generator=torch.Generator().manual_seed(number))
        return (self.tower(self.item(ids)).squeeze(1) - torch.sin(ids.float())).square().mean()


def searched(model):
    names = ("alpha", "gates")
    return {name: p for name, p in model.named_parameters() if name.rpartition(".")[2] in names}


def training(method, optimizer=torch.optim.Adam):
    model, asked = Model(method), []
    optimizer = optimizer(model.parameters(), lr=0.02)

    def validate(number):
        asked.append(number)
        return model.loss(10_000 + number)

    schedule = Schedule(model, epochs=4, steps=STEPS, optimizer=optimizer, validate=validate)
    return model, optimizer, schedule, asked


def train(model, optimizer, schedule, first, last):
    for epoch in range(first, last):
        for step in range(STEPS):
            (model.loss(STEPS * epoch + step) + schedule.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        schedule.epoch_ended()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("name", ["widths", "gates"])
def test_turns_are_steps_of_two_optimizers(name, optimizer):
    """By hand: two optimizers, and gradients of one loss for the rows and of another for what is searched."""
    model, own, schedule, asked = training(METHODS[name], optimizer)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.requires_grad_(True)
    theirs = searched(other)
    rest = optimizer([p for n, p in other.named_parameters() if n not in theirs], lr=0.02)
    turns = optimizer(list(theirs.values()), lr=0.02)
    for step in range(5):
        for name, buffer in model.named_buffers():  # the noise of the step
            other.get_buffer(name).copy_(buffer)
        (model.loss(step) + schedule.penalty()).backward()
        own.step()
        own.zero_grad()
        schedule.step()

        rest.zero_grad()
        other.loss(step).backward()
        rest.step()
        turns.zero_grad()
        held_out = other.loss(10_000 + step)
        for part in other.modules():
            if hasattr(part, "probabilities"):
                held_out = held_out + 0.5 * part.gates(torch.softmax(part.alpha.squeeze(1), 0)).mean()
            elif isinstance(getattr(part, "gates", None), nn.Parameter):
                held_out = held_out + 0.05 * part.gates.abs().sum()
        held_out.backward()
        turns.step()
        for parameter in theirs.values() if name == "gates" else ():
            parameter.data.clamp_(0, 1)
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(parameter, other.get_parameter(key), rtol=1e-5, atol=1e-7)
    assert asked == list(range(5))


@pytest.mark.parametrize("name", ["widths", "gates"])
def test_gradients_of_the_loop_stay(name):
    model, _, schedule, _ = training(METHODS[name])
    model.loss(0).backward()
    before = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    values = {key: p.detach().clone() for key, p in model.named_parameters()}
    assert before.keys() == dict(model.named_parameters()).keys() - searched(model).keys()
    schedule.step()
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, values[key]) == (key not in searched(model))
        assert (parameter.grad is None) == (key not in before)
    assert all(torch.equal(model.get_parameter(key).grad, grad) for key, grad in before.items())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("killed", [1, 3])
def test_a_continued_training_ends_like_another(name, killed):
    whole = training(METHODS[name])
    train(*whole[:3], 0, 4)
    assert whole[3] == ([] if name == "thresholds" else list(range(2 * STEPS)))  # of the search alone
    assert all(parameter.requires_grad for parameter in whole[0].parameters())
    parted = training(METHODS[name])
    train(*parted[:3], 0, killed)
    states = [copy.deepcopy(part.state_dict()) for part in parted[:3]]
    continued = training(METHODS[name])
    for part, state in zip(continued[:3], states, strict=True):
        part.load_state_dict(state)
    train(*continued[:3], killed, 4)
    for key, value in whole[0].state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(continued[0].state_dict()[key], value), key


@pytest.mark.parametrize("held", [False, True])
def test_optimizers_without_what_is_searched_are_refused(held):
    model = Model(METHODS["widths"])
    others = [parameter for name, parameter in model.named_parameters() if not name.endswith("alpha")]
    optimizer = torch.optim.Adam(others) if held else None
    with pytest.raises(ValueError, match=r"table 'item': validate= trains what it searches on held-out data, but the"):
        Schedule(model, epochs=4, steps=STEPS, optimizer=optimizer, validate=model.loss)
