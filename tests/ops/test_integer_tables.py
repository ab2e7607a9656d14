"""Rows of integers: look-ups and updates against float64, the compiled form against the plain one bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embcomp.ops.integer_tables import (
    draw_seed,
    empty_states,
    pool_integers,
    pool_integers_reference,
    read_rows,
    row_nbytes,
    update_integers,
    update_integers_reference,
    write_rows,
)
from embcomp.ops.optimizers import FusedOptimizerSettings
from embcomp.ops.tables import Bags

FORMS = [update_integers, update_integers_reference]


def fresh(values: Tensor, bits: int) -> Tensor:
    return write_rows(torch.zeros(len(values), row_nbytes(values.shape[1], bits), dtype=torch.uint8), values, bits)


def by_hand(packed: Tensor, dim: int, bits: int) -> tuple[Tensor, Tensor]:
    """Values [rows, dim] and steps [rows, 1], byte by byte, float64."""
    rows, steps = [], []
    for *row, last in packed.tolist():
        codes = row if bits == 8 else [half for byte in row for half in (byte % 16, byte // 16)]
        steps.append([2 ** ((last - 192) / 8)])
        rows.append([(code + 0.5 - 2 ** (bits - 1)) * steps[-1][0] for code in codes[:dim]])
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(steps, dtype=torch.float64)


def one_each(rows: int) -> Bags:
    return Bags(torch.arange(rows), torch.arange(rows + 1), None, torch.tensor([0]))


@settings(max_examples=25)
@given(
    bits=st.sampled_from([8, 4]),
    dim=st.sampled_from([1, 5, 8, 10, 16]),
    batch=st.integers(1, 12),
    weighted=st.booleans(),
    name=st.sampled_from(["sgd", "rowwise_adagrad"]),
    decay=st.sampled_from([0.0, 0.1]),
    lr=st.sampled_from([0.01, 1.0]),
    seed=st.integers(0, 999),
)
def test_bags_and_updates(bits, dim, batch, weighted, name, decay, lr, seed) -> None:
    rows, draw = 9, torch.Generator().manual_seed(seed)
    packed = fresh(torch.randn(rows, dim, generator=draw) * torch.rand(rows, 1, generator=draw), bits)
    offsets = torch.cat([torch.zeros(1), torch.randint(0, 4, (2 * batch,), generator=draw).cumsum(0)]).long()
    total = int(offsets[-1])
    weights = torch.randn(total, generator=draw) if weighted else None
    bags = Bags(torch.randint(rows, (total,), generator=draw), offsets, weights, torch.tensor([dim, 0]))
    (held, _), read = by_hand(packed, dim, bits), torch.zeros(rows, dtype=torch.bool)
    expected, summed = torch.zeros(batch, 2 * dim).double(), torch.zeros(rows, dim).double()
    grad = torch.randn(batch, 2 * dim, generator=draw)
    for f, column in enumerate((dim, 0)):
        for b in range(batch):
            for j in range(int(offsets[f * batch + b]), int(offsets[f * batch + b + 1])):
                row, weight = int(bags.rows[j]), 1.0 if weights is None else float(weights[j])
                read[row] = True
                expected[b, column : column + dim] += weight * held[row]
                summed[row] += weight * grad[b, column : column + dim].double()
    for pool in (pool_integers, pool_integers_reference):
        out = torch.zeros(batch, 2 * dim)
        pool(packed, dim, bits, bags, out)
        torch.testing.assert_close(out, expected.float(), rtol=1e-4, atol=1e-5)
    constants = FusedOptimizerSettings(name, lr=lr, eps=1e-3, weight_decay=decay)
    gradient = summed + decay * held
    square = gradient.square().mean(1, keepdim=True)
    moved = held - lr * gradient / (1.0 if name == "sgd" else square.sqrt() + 1e-3)
    for update in FORMS:
        mine, state = packed.clone(), empty_states(constants, rows)
        update(mine, dim, bits, state, bags, grad, constants, 2**32 - 1 - seed)
        values, steps = by_hand(mine, dim, bits)
        distance, step = (values - moved).abs()[read], steps[read]
        assert (distance <= step * 1.001).all()  # one of the two levels beside the value, or the last
        largest = moved[read].abs().amax(1, keepdim=True)
        assert (largest < step * 2 ** (bits - 1) * 1.001).all()
        assert (step * 2 ** (bits - 1) < largest * 2.0 ** (18 / 8)).all()
        assert torch.equal(mine[~read], packed[~read])
        if name != "sgd":  # bfloat16 has 8 significant bits
            torch.testing.assert_close(state["sum"][read].double(), square[read, 0], rtol=2.0**-7, atol=1e-12)


def test_both_forms_agree_bit_for_bit_and_are_right_on_average() -> None:
    dim, rows, times = 6, 4, 400
    torch.manual_seed(0)
    start, grad = fresh(torch.randn(rows, dim), 8), torch.randn(rows, dim) * 0.01
    constants = FusedOptimizerSettings("rowwise_adagrad", lr=0.01)
    total, sums = torch.zeros(rows, dim), torch.zeros(rows)
    for _ in range(times):
        seed, found = draw_seed(), []
        for update in FORMS:
            mine, state = start.clone(), torch.full((rows,), 1.0, dtype=torch.bfloat16)
            update(mine, dim, 8, {"sum": state}, one_each(rows), grad, constants, seed)
            found.append((mine, state))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])
        total += read_rows(found[0][0], dim, 8)
        sums += found[0][1].float()
    square = grad.square().mean(1)
    exact = read_rows(start, dim, 8) - 0.01 * grad / (1 + square).sqrt().unsqueeze(1)
    _, steps = by_hand(start, dim, 8)
    assert ((total / times - exact).abs() < 4 * steps.float() / 2 / times**0.5).all()  # four deviations of the mean
    assert (
        sums / times - 1 - square
    ).abs().max() < 4 * 2.0**-7 / 2 / times**0.5  # each alone is less than bfloat16 sees


@pytest.mark.parametrize("update", FORMS)
def test_what_is_not_finite_changes_nothing(update) -> None:
    packed = fresh(torch.randn(4, 4), 8)
    mine, state, grad = packed.clone(), torch.ones(4, dtype=torch.bfloat16), torch.ones(3, 4)
    grad[0, 2], grad[2] = float("nan"), 1e38
    bags = Bags(torch.arange(3), torch.arange(4), None, torch.tensor([0]))
    update(mine, 4, 8, {"sum": state}, bags, grad, FusedOptimizerSettings("rowwise_adagrad", lr=1.0), 5)
    assert torch.equal(mine[[0, 3]], packed[[0, 3]])
    assert state[[0, 1, 3]].tolist() == [1.0, 2.0, 1.0]
    assert not torch.equal(mine[1], packed[1])
    assert read_rows(mine, 4, 8).isfinite().all()


def test_a_step_stays_while_the_row_fits() -> None:
    packed, sgd = fresh(torch.tensor([[1.0, -0.5]]), 8), FusedOptimizerSettings("sgd", lr=1.0)
    for move, changes in ((0.01, False), (-3.0, True), (0.01, False), (3.9, True)):
        before = packed[:, -1].clone()
        grad = torch.tensor([[move, 0.0]])
        update_integers(packed, 2, 8, {}, one_each(1), grad, sgd, 1)
        assert torch.equal(packed[:, -1], before) is not changes


@pytest.mark.parametrize("form", [pool_integers, update_integers])
def test_rows_that_the_table_does_not_have(form) -> None:
    packed, bags = (
        fresh(torch.randn(3, 4), 4),
        Bags(torch.tensor([3]), torch.tensor([0, 1]), None, torch.tensor([0]), "item"),
    )
    rest = (bags, torch.zeros(1, 4))
    if form is update_integers:
        rest = ({}, *rest, FusedOptimizerSettings("sgd", lr=1.0), 0)
    with pytest.raises(IndexError, match="table 'item'"):
        form(packed, 4, 4, *rest)
