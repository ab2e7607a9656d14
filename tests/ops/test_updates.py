"""Fused updates: compiled kernels and torch forms against loops in float64, and against torch.optim row by row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchrec.optim import RowWiseAdagrad

from embcomp.ops.grid import RowGrid, snap_reference
from embcomp.ops.optimizers import RULES, FusedOptimizerSettings, rule_of
from embcomp.ops.tables import Bags, pool_bags, pool_bags_reference, table_gradient_reference
from embcomp.ops.updates import empty_states, update_rows, update_rows_reference
from tests.ops.table_requests import looks, make, requests, summed_gradient

WIDTHS = [1, 3, 8, 16, 30, 32, 64, 128]
FORMS = [update_rows, update_rows_reference]
TORCH = {
    "sgd": (torch.optim.SGD, {}, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.8, "nesterov": True}, {"momentum": 0.8, "nesterov": True}),
    "adagrad": (torch.optim.Adagrad, {"eps": 1e-3}, {"eps": 1e-3}),
    "rowwise_adagrad": (RowWiseAdagrad, {"eps": 1e-3}, {"eps": 1e-3}),
    "adam": (torch.optim.Adam, {"eps": 1e-3, "betas": (0.8, 0.9)}, {"eps": 1e-3, "betas": (0.8, 0.9)}),
    "adamw": (torch.optim.AdamW, {"eps": 1e-4}, {"eps": 1e-4, "decoupled": True}),
}
"""torch's optimizer and its settings, and ours."""


def constants_of(name: str, **more) -> FusedOptimizerSettings:
    rule = {"momentum": "sgd", "nesterov": "sgd", "adamw": "adam"}.get(name, name)
    return FusedOptimizerSettings(rule, 0.2, **TORCH[name][2], **more)


def slow_update(table: Tensor, states: dict[str, Tensor], total: Tensor, touched, c: FusedOptimizerSettings):
    """One step in float64, row by row, in place, from the formulas of the papers."""
    for row in touched:
        w, g = table[row], total[row].clamp(-c.clip_grad_value, c.clip_grad_value)
        beside = c.decoupled or "lamb" in c.name or c.name == "partial_rowwise_adam"
        if not beside:
            g = g + c.weight_decay * w
        if c.name == "sgd":
            if c.momentum:
                states["momentum_buffer"][row] = c.momentum * states["momentum_buffer"][row] + g
                g = g + c.momentum * states["momentum_buffer"][row] if c.nesterov else states["momentum_buffer"][row]
            table[row] = w - c.lr * g
        elif "adagrad" in c.name:
            states["sum"][row] += g**2 if c.name == "adagrad" else (g**2).mean()
            table[row] = w - c.lr * g / (states["sum"][row].sqrt() + c.eps)
        else:
            b1, b2 = c.betas
            states["row_counter"][row] += 1
            t = states["row_counter"][row].item()
            square = (g**2).mean() if c.name.startswith("partial") else g**2
            states["exp_avg"][row] = b1 * states["exp_avg"][row] + (1 - b1) * g
            states["exp_avg_sq"][row] = b2 * states["exp_avg_sq"][row] + (1 - b2) * square
            m, v = states["exp_avg"][row] / (1 - b1**t), states["exp_avg_sq"][row] / (1 - b2**t)
            move = m / (v.sqrt() + c.eps) + (c.weight_decay * w if beside else 0)
            ratio = 1.0
            if "lamb" in c.name and w.norm() > 0 and move.norm() > 0:
                ratio = w.norm() / move.norm()
            table[row] = w - c.lr * ratio * move


def zeros(constants: FusedOptimizerSettings, rows: int, dim: int) -> dict[str, Tensor]:
    return {name: state.double() for name, state in empty_states(constants, rows, dim).items()}


def assert_close(mine: dict[str, Tensor], theirs: dict[str, Tensor], **tolerance: float) -> None:
    assert list(mine) == list(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value.float(), **tolerance)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=25)
@given(
    request=requests(),
    dim=st.sampled_from(WIDTHS),
    weight_decay=st.sampled_from([0.0, 0.3]),
    more=st.sampled_from([{}, {"clip_grad_value": 0.5}, {"momentum": 0.9}, {"momentum": 0.5, "nesterov": True}]),
    decoupled=st.booleans(),
    lazy=st.booleans(),
)
def test_update(name, request, dim, weight_decay, more, decoupled, lazy):
    start, bags, width = make(dim, request)
    constants = FusedOptimizerSettings(
        name, lr=0.1, eps=1e-3, weight_decay=weight_decay, decoupled=decoupled and name == "adam", lazy=lazy, **more
    )
    touched = {row for _, _, row, _ in looks(bags)} if lazy else range(len(start))
    grads = [torch.randn(bags.batch, width) for _ in range(2)]
    slow, slow_states = start.double(), zeros(constants, *start.shape)
    for grad in grads:
        slow_update(slow, slow_states, summed_gradient(start, bags, grad), touched, constants)
    for update in FORMS:
        table, states = start.clone(), empty_states(constants, *start.shape)
        for grad in grads:
            update(table, states, bags, grad, constants)
        torch.testing.assert_close(table, slow.float(), rtol=1e-3, atol=1e-4)
        assert_close(states, slow_states, rtol=1e-3, atol=1e-4)
        others = [row for row in range(len(start)) if row not in touched]
        assert torch.equal(table[others], start[others])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", TORCH)
def test_a_row_moves_as_under_torch_optim_in_the_steps_that_read_it(form, name, weight_decay):
    """Each row is a parameter of its own to torch, without a gradient in steps that did not read it."""
    dim, rows, steps = 5, 6, 12
    kind, theirs, _ = TORCH[name]
    constants = constants_of(name, weight_decay=weight_decay)
    alone = [torch.nn.Parameter(torch.randn(1, dim)) for _ in range(rows)]
    table, states = torch.cat([row.detach() for row in alone]), empty_states(constants, rows, dim)
    outside = [kind([row], lr=0.2, weight_decay=weight_decay, **theirs) for row in alone]
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        read = torch.randint(0, rows - 1, (4,), generator=draw)  # the last row is never read
        bags, grad = Bags(read, torch.tensor([0, 1, 3, 4]), None, torch.tensor([0])), torch.randn(3, dim)
        gradient = table_gradient_reference(table.shape, bags, grad)
        for number in read.unique().tolist():
            alone[number].grad = gradient[number : number + 1]
            outside[number].step()
        update_rows(table, states, bags, grad, constants)
    torch.testing.assert_close(table, torch.cat([row.detach() for row in alone]))
    for state, mine in states.items():
        for number in range(rows - 1):
            theirs_here = outside[number].state[alone[number]]["step" if state == "row_counter" else state]
            torch.testing.assert_close(mine[number].reshape(-1), theirs_here.reshape(-1).float())


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", TORCH)
def test_the_dense_form_moves_all_rows_as_torch_optim(form, name, weight_decay):
    dim, rows = 5, 6
    kind, theirs, _ = TORCH[name]
    constants = constants_of(name, weight_decay=weight_decay, lazy=False)
    weight = torch.nn.Parameter(torch.randn(rows, dim))
    table, states = weight.detach().clone(), empty_states(constants, rows, dim)
    outside = kind([weight], lr=0.2, weight_decay=weight_decay, **theirs)
    draw = torch.Generator().manual_seed(0)
    for _ in range(12):
        read = torch.randint(0, rows - 1, (2,), generator=draw)
        bags, grad = Bags(read, torch.arange(3), None, torch.tensor([0])), torch.randn(2, dim)
        weight.grad = table_gradient_reference(table.shape, bags, grad)
        outside.step()
        update_rows(table, states, bags, grad, constants)
    torch.testing.assert_close(table, weight.detach())
    for state, mine in states.items():
        found = outside.state[weight]["step" if state == "row_counter" else state]
        torch.testing.assert_close(mine, found.float().expand(rows) if found.numel() == 1 else found.view(mine.shape))


@pytest.mark.parametrize("how", ["clip_grad_value", "clip_grad_norm"])
@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("most", [0.5, 1e6])
def test_gradients_are_clipped_as_torch_clips_them(form, name, how, most):
    dim, rows = 4, 6
    kind, theirs, _ = TORCH[name]
    constants = constants_of(name, lazy=False, **{how: most})
    weight = torch.nn.Parameter(torch.randn(rows, dim))
    table, states = weight.detach().clone(), empty_states(constants, rows, dim)
    outside = kind([weight], lr=0.2, **theirs)
    clip = {"clip_grad_value": torch.nn.utils.clip_grad_value_, "clip_grad_norm": torch.nn.utils.clip_grad_norm_}[how]
    for _ in range(4):
        bags, grad = (
            Bags(torch.tensor([1, 3, 3]), torch.arange(4), torch.rand(3), torch.tensor([0])),
            torch.randn(3, dim),
        )
        weight.grad = table_gradient_reference(table.shape, bags, grad)
        clip([weight], most)
        outside.step()
        update_rows(table, states, bags, grad, constants)
    torch.testing.assert_close(table, weight.detach())


@pytest.mark.parametrize("rows", [2**12, 2**12 + 1, 2**16, 2**20])
def test_many_rows_are_sorted_by_all_their_bits(form, rows):
    """Rows that agree in their low or high bits stay apart."""
    step = max(1, rows // 512)
    ids = torch.cat([torch.arange(0, rows, step), torch.arange(min(rows, 512)), torch.tensor([rows - 1, 0, rows - 1])])
    ids = ids[torch.randperm(ids.numel(), generator=torch.Generator().manual_seed(0))]
    bags = Bags(ids, torch.arange(ids.numel() + 1), None, torch.tensor([0]))
    table, grad = torch.zeros(rows, 1), torch.ones(ids.numel(), 1)
    update_rows(table, {}, bags, grad, FusedOptimizerSettings("sgd", 1.0))
    torch.testing.assert_close(table.squeeze(1), -torch.bincount(ids, minlength=rows).float())


def test_updates_do_not_depend_on_what_came_before(form):
    """Memory that kernels keep between calls holds nothing of an earlier, larger call."""
    small = Bags(torch.tensor([1]), torch.tensor([0, 1]), None, torch.tensor([0]))
    sgd = FusedOptimizerSettings("sgd", 1.0)
    for ids in (torch.arange(1000) % 50, torch.tensor([3])):
        large = Bags(ids, torch.arange(ids.numel() + 1), None, torch.tensor([0]))
        update_rows(torch.zeros(50, 16), {}, large, torch.randn(ids.numel(), 16), sgd)
        table = torch.zeros(4, 3)
        update_rows(table, {}, small, torch.tensor([[1.0, 2.0, 3.0]]), sgd)
        assert table.tolist() == [[0, 0, 0], [-1, -2, -3], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("kept", [{}, {"sum": torch.zeros(3, 4)}, {"sum": torch.zeros(2)}])
def test_states_of_another_optimizer_or_table_are_refused(kept):
    bags = Bags(torch.tensor([1]), torch.tensor([0, 1]), None, torch.tensor([0]))
    with pytest.raises(ValueError, match="sum"):
        update_rows(torch.zeros(3, 4), kept, bags, torch.ones(1, 4), FusedOptimizerSettings("rowwise_adagrad", 1.0))


@settings(max_examples=15)
@given(
    request=requests(),
    dim=st.sampled_from([1, 3, 16, 30]),
    bits=st.integers(1, 8),
    shared=st.sampled_from([0, 1, 3]),
    name=st.sampled_from(["rowwise_adagrad", "adam"]),
    clip=st.sampled_from([math.inf, 1.0]),
)
def test_rows_that_are_rounded_while_they_are_read(request, dim, bits, shared, name, clip):
    """Against autograd through the plain rounding; both the compiled and the torch form."""
    start, bags, width = make(dim, request)
    steps = torch.rand(-(-len(start) // shared) if shared else 1) * 4 / 2**bits + 0.01
    constants = FusedOptimizerSettings(name, lr=0.1, eps=1e-3, clip_grad_norm=clip)
    grad = torch.randn(bags.batch, width)
    table, step = start.double().requires_grad_(), steps.double().requires_grad_()
    each = step[torch.arange(len(start)) // shared] if shared else step.expand(len(start))
    rounded = snap_reference(table, each.unsqueeze(-1), bits, scale=0.3)
    expected = torch.zeros(bags.batch, width, dtype=torch.float64)
    for b, column, row, weight in looks(bags):
        expected[b, column : column + dim] += weight * rounded[row]
    of_rows, of_steps = (
        torch.autograd.grad(expected, (table, step), grad.double(), materialize_grads=True)
        if (expected.requires_grad)
        else (torch.zeros_like(table), torch.zeros_like(step))
    )
    touched = {row for _, _, row, _ in looks(bags)}
    slow, slow_states = start.double(), zeros(constants, *start.shape)
    clipped = of_rows * min(1.0, clip / (float(of_rows.norm()) + 1e-6))
    slow_update(slow, slow_states, clipped, touched, constants)
    grid = RowGrid(steps, shared, bits, scale=0.3)
    for pool, update in ((pool_bags, update_rows), (pool_bags_reference, update_rows_reference)):
        out, mine, states = torch.zeros(bags.batch, width), start.clone(), empty_states(constants, *start.shape)
        pool(mine, bags, out, grid)
        torch.testing.assert_close(out, expected.detach().float(), rtol=1e-4, atol=1e-5)
        got = update(mine, states, bags, grad, constants, grid)
        torch.testing.assert_close(got, of_steps.float(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(mine, slow.float(), rtol=1e-3, atol=1e-4)
        assert_close(states, slow_states, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lr", -1.0), ("lr", math.nan), ("eps", -1e-8), ("weight_decay", math.nan), ("weight_decay", math.inf),
        ("betas", (0.9, 1.0)), ("betas", (-0.1, 0.9)), ("betas", (0.9, math.nan)), ("betas", (0.9,)),
        ("momentum", -0.1), ("nesterov", True), ("clip_grad_value", 0.0), ("clip_grad_norm", math.nan),
    ],
)  # fmt: skip
def test_what_is_impossible_is_named(setting, value):
    problem = FusedOptimizerSettings(**{"name": "sgd", "lr": 0.1, setting: value}).problem()
    assert problem is not None
    assert problem.startswith(f"{setting}={value}")


@pytest.mark.parametrize("name", RULES)
def test_moves_alone_says_whether_a_gradient_of_zero_changes_anything(form, name):
    bags = Bags(torch.tensor([1]), torch.tensor([0, 1]), None, torch.tensor([0]))
    for more in ({}, {"weight_decay": 0.1}, {"momentum": 0.9}):
        constants = FusedOptimizerSettings(name, 0.1, **more)
        table, states = torch.randn(3, 4), empty_states(constants, 3, 4)
        update_rows(table, states, bags, torch.ones(1, 4), constants)
        before = [table.clone(), *(state.clone() for state in states.values())]
        update_rows(table, states, bags, torch.zeros(1, 4), constants)
        same = all(torch.equal(a, b) for a, b in zip(before, [table, *states.values()], strict=True))
        assert same or rule_of(constants).moves_alone(constants)
