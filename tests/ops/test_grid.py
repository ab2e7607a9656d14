"""Rounding to a grid against the formulas of the paper, entry by entry, and against brute force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embcomp.ops.grid import best_step, snap, snap_reference


def by_hand(value: float, step: float, bits: int) -> tuple[float, float, float]:
    """(level, d level / d value, d level / d step) of one value: the nearest of the 2^bits levels."""
    half = 2 ** (bits - 1)
    all_levels = [step * (k + 0.5) for k in range(-half, half)]
    if value >= step * half:
        return all_levels[-1], 0.0, half - 0.5
    if value < -step * half:
        return all_levels[0], 0.0, -half + 0.5
    nearest = min(all_levels, key=lambda level: abs(level - value))
    return nearest, 1.0, (nearest - value) / step


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_and_gradients_are_those_of_the_formula(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    values = torch.randn(200, generator=generator, dtype=torch.float64).requires_grad_()
    step = torch.tensor(3.0 / 2**bits, dtype=torch.float64, requires_grad=True)
    out = snap(values, step, bits, scale=0.25)
    grad = torch.randn(200, generator=generator, dtype=torch.float64)
    got = torch.autograd.grad(out, (values, step), grad)
    expected = [by_hand(v, step.item(), bits) for v in values.tolist()]
    torch.testing.assert_close(out.detach(), torch.tensor([e[0] for e in expected], dtype=torch.float64))
    torch.testing.assert_close(got[0], grad * torch.tensor([e[1] for e in expected]))
    torch.testing.assert_close(got[1], 0.25 * (grad * torch.tensor([e[2] for e in expected])).sum())


@settings(max_examples=20)
@given(st.integers(1, 8), st.integers(0, 10**6), st.booleans())
def test_the_faster_form_is_the_plain_one(bits: int, seed: int, rows: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(9, 4, generator=draw).requires_grad_()
    step = (torch.rand(9, 1, generator=draw) + 0.05 if rows else torch.tensor(0.3)).requires_grad_()
    grad = torch.randn(9, 4, generator=draw)
    outs = [form(values, step, bits, 0.5) for form in (snap, snap_reference)]
    assert torch.equal(outs[0], outs[1])
    for mine, plain in zip(*(torch.autograd.grad(out, (values, step), grad) for out in outs), strict=True):
        torch.testing.assert_close(mine, plain)


def test_a_step_for_each_row() -> None:
    values, steps = torch.randn(5, 3, requires_grad=True), (torch.rand(5, 1) + 0.1).requires_grad_()
    out = snap(values, steps, 2)
    rows = [snap(values[i], steps[i], 2) for i in range(5)]
    assert torch.equal(out, torch.stack(rows))
    whole = torch.autograd.grad(out.square().sum(), steps)[0]
    torch.testing.assert_close(whole, torch.autograd.grad(torch.stack(rows).square().sum(), steps)[0])


def test_derivatives_under_transforms() -> None:
    values, step = torch.randn(4, 3), torch.tensor(0.4)

    def loss(v: Tensor, s: Tensor) -> Tensor:
        return snap(v, s, 3).square().sum()

    plain = torch.func.grad(loss, argnums=(0, 1))(values, step)
    each = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(0, None))(values, step)
    torch.testing.assert_close(each[0], plain[0])
    torch.testing.assert_close(each[1].sum(), plain[1])
    along = torch.randn(4, 3)
    _, tangent = torch.func.jvp(lambda v: loss(v, step), (values,), (along,))
    torch.testing.assert_close(tangent, (plain[0] * along).sum())
    with torch.autograd.forward_ad.dual_level():
        dual = loss(torch.autograd.forward_ad.make_dual(values, along), step)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent)


def test_random_rounding_takes_the_next_levels_and_has_the_right_mean() -> None:
    torch.manual_seed(0)
    values, step = torch.linspace(-0.9, 0.9, 7), torch.tensor(0.5)
    drawn = torch.stack([snap(values, step, 3, stochastic=True) for _ in range(4000)])
    low = ((values / step - 0.5).floor() + 0.5) * step
    assert ((drawn - low).abs() < 1e-6).logical_or((drawn - low - step).abs() < 1e-6).all()
    torch.testing.assert_close(drawn.mean(0), values, atol=0.03, rtol=0.0)


@settings(max_examples=20)
@given(st.integers(1, 8), st.integers(100, 400), st.floats(1e-3, 1e3), st.integers(0, 10**6))
def test_the_best_step_is_as_good_as_a_fine_search(bits: int, n: int, spread: float, seed: int) -> None:
    values = torch.randn(1, n, generator=torch.Generator().manual_seed(seed)) * spread

    def lost(steps: Tensor) -> Tensor:
        return (snap(values, steps, bits) - values).square().sum(1)

    finest = lost(values.abs().max() / 2 ** (bits - 1) * torch.linspace(0.01, 2.0, 1500).unsqueeze(1)).min()
    assert float(lost(best_step(values, bits))) <= 1.2 * float(finest)


def test_steps_of_rows_without_anything_to_fit() -> None:
    assert best_step(torch.zeros(2, 4), 4).tolist() == [[1.0], [1.0]]
    assert best_step(torch.full((1, 4), float("nan")), 1).tolist() == [[1.0]]
