"""`SumBags`: pooled look-ups with gradients, against torch's own."""

import math

import pytest
import torch
from torch import Tensor

from embcomp.ops import tables
from embcomp.ops.optimizers import FusedOptimizerSettings
from embcomp.ops.tables import Bags, SumBags
from embcomp.ops.updates import update_rows


def sum_bags(table: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor | None = None, features: int = 1) -> Tensor:
    columns = [torch.arange(features, device="cpu") * table.shape[1]]
    return SumBags.apply(rows, offsets, weights, columns, table)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("weighted", [False, True])
def test_sum_bags_differentiates_as_torch(form, weighted):
    table = torch.randn(9, 6, requires_grad=True)
    rows, offsets = torch.randint(0, 9, (10,)), torch.tensor([0, 3, 3, 4, 10])
    weights = torch.randn(10, dtype=torch.float64, requires_grad=True) if weighted else None
    each = table[rows] if weights is None else table[rows] * weights.float().unsqueeze(1)
    bags = torch.stack([each[a:b].sum(0) for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)])
    expected = torch.cat([bags[:2], bags[2:]], dim=1)
    out = sum_bags(table, rows, offsets, weights, features=2)
    torch.testing.assert_close(out, expected)
    signal = torch.randn_like(out)
    wanted = [table] if weights is None else [table, weights]
    for a, b in zip(
        torch.autograd.grad(out, wanted, signal), torch.autograd.grad(expected, wanted, signal), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_sum_bags_of_several_tables(form):
    """Each table's features side by side, the gradient of each its own; weights between them."""
    wide, narrow = torch.randn(9, 4, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    frozen = torch.randn(2, 1)
    # Four features, batch 2: the second bags of the first three are empty.
    rows, offsets = torch.tensor([8, 0, 1, 4, 4, 0, 1]), torch.tensor([0, 2, 2, 3, 3, 5, 5, 6, 7])
    weights = torch.randn(7, requires_grad=True)
    columns = [torch.tensor([0, 4]), torch.tensor([8]), torch.tensor([11])]
    out = SumBags.apply(rows, offsets, weights, columns, wide, narrow, frozen)
    w = weights.unsqueeze(1)
    first = torch.cat([wide[8] * w[0] + wide[0] * w[1], wide[1] * w[2], (narrow[4] * w[3:5]).sum(0), frozen[0] * w[5]])
    second = torch.cat([torch.zeros(11), frozen[1] * w[6]])
    expected = torch.stack([first, second])
    torch.testing.assert_close(out, expected)
    wanted, signal = [wide, narrow, weights], torch.randn(2, 12)
    for a, b in zip(
        torch.autograd.grad(out, wanted, signal), torch.autograd.grad(expected, wanted, signal), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_sum_bags_reads_tables_of_any_layout(form):
    table = torch.randn(6, 9).t().requires_grad_()
    strided = torch.randn(9, 12)[:, ::2].requires_grad_()
    for weight in (table, strided):
        out = sum_bags(weight, torch.tensor([1, 8, 3, 99])[:3], torch.tensor([0, 2, 3]))
        torch.testing.assert_close(out, torch.stack([weight[1] + weight[8], weight[3]]))
        (gradient,) = torch.autograd.grad(out.sum(), weight)
        assert gradient.sum(1).tolist() == [0, 6, 0, 6, 0, 0, 0, 0, 6]


def test_a_table_may_change_between_forward_and_backward(form):
    """As with torch's bags: the gradient of an unweighted sum does not depend on the rows."""
    table = torch.randn(4, 3, requires_grad=True)
    first, second = (sum_bags(table, torch.tensor([row]), torch.tensor([0, 1])).sum() for row in (0, 1))
    first.backward()
    with torch.no_grad():
        table -= 0.1 * table.grad
    second.backward()
    assert table.grad.tolist() == [[1] * 3, [1] * 3, [0] * 3, [0] * 3]


def test_weights_gradient_notices_a_changed_table(form):
    table, weights = torch.randn(4, 3, requires_grad=True), torch.ones(1, requires_grad=True)
    out = sum_bags(table, torch.tensor([2]), torch.tensor([0, 1]), weights).sum()
    with torch.no_grad():
        table += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_second_derivatives_are_those_of_plain_torch(form):
    rows, offsets = torch.tensor([2, 1, 1, 0]), torch.tensor([0, 1, 4])
    found = []
    for plain in (True, False):
        table = torch.arange(12.0).view(4, 3).requires_grad_()
        weights = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
        each = table[rows] * weights.unsqueeze(1)
        bags = torch.stack([each[:1].sum(0), each[1:].sum(0)]) if plain else sum_bags(table, rows, offsets, weights)
        first = torch.autograd.grad(bags.pow(3).sum(), (table, weights), create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), (table, weights)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("wrong", [-1, 4, 2**40])
def test_rows_out_of_range(form, wrong):
    with pytest.raises(IndexError, match=rf"{wrong}.*4 rows"):
        sum_bags(torch.zeros(4, 3), torch.tensor([0, wrong]), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("shape", [(1,), (3, 5), (300_000, 4), (2_000_000,)])
def test_empty_tables_are_writable(shape):
    table = tables.empty_table(*shape)
    assert table.shape == shape
    assert table.dtype == torch.float32
    table.fill_(3.0)
    assert table.sum().item() == 3.0 * math.prod(shape)


@pytest.mark.parametrize("setting", ["dtype", "device"])
def test_defaults_of_torch_do_not_reach_the_kernels(form, setting):
    """Under them, new tensors would be float64, or have no memory."""
    table, rows, offsets = torch.randn(9, 6, requires_grad=True), torch.arange(8), torch.tensor([0, 3, 3, 8, 8])
    weights = torch.rand(8, requires_grad=True)
    signal = torch.randn(2, 12)
    state = torch.zeros(9)

    def everything() -> list[Tensor]:
        out = sum_bags(table, rows, offsets, weights, features=2)
        gradients = torch.autograd.grad(out, [table, weights], signal)
        fresh, sums = tables.empty_table(9, 6).copy_(table.detach()), state.clone()
        bags = Bags(rows, offsets, weights.detach(), rows[:2] * 6)
        update_rows(fresh, {"sum": sums}, bags, signal, FusedOptimizerSettings("rowwise_adagrad", 0.1))
        return [out, *gradients, fresh, sums]

    expected = everything()
    before = torch.get_default_dtype()
    if setting == "dtype":
        try:
            torch.set_default_dtype(torch.float64)
            actual = everything()
        finally:
            torch.set_default_dtype(before)
    else:
        with torch.device("meta"):
            actual = everything()
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
