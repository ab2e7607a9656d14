"""Pooled look-ups, their gradients and fused updates: compiled kernels and torch forms against loops in float64."""

import pytest
import torch
from hypothesis import given, settings
from torchrec.optim import RowWiseAdagrad

from embcomp.ops import tables
from embcomp.ops.tables import Bags, FusedOptimizerSettings
from tests.ops.table_requests import OPTIMIZERS, WIDTHS, looks, make, requests, slow_update, summed_gradient


@pytest.mark.parametrize("dim", WIDTHS)
@settings(max_examples=6)
@given(request=requests())
def test_pooling(dim, request):
    table, bags, width = make(dim, request)
    expected = torch.full((bags.batch, width), 7.0, dtype=torch.float64)
    for column in bags.columns.tolist():
        expected[:, column : column + dim] = 0.0
    for b, column, row, weight in looks(bags):
        expected[b, column : column + dim] += weight * table[row].double()
    for pool in (tables.pool_bags, tables.pool_bags_reference):
        out = torch.full((bags.batch, width), 7.0)  # columns of other tables keep what they hold
        pool(table, bags, out)
        torch.testing.assert_close(out, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", WIDTHS)
@settings(max_examples=6)
@given(request=requests())
def test_table_gradient(dim, request):
    table, bags, width = make(dim, request)
    grad = torch.randn(bags.batch, width)
    expected = summed_gradient(table, bags, grad).float()
    for gradient in (tables.table_gradient, tables.table_gradient_reference):
        torch.testing.assert_close(gradient(table.shape, bags, grad), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dim", WIDTHS)
@settings(max_examples=6)
@given(request=requests())
def test_weight_gradient(dim, request):
    table, bags, width = make(dim, request)
    grad = torch.randn(bags.batch, width)
    expected = [
        (grad[b, column : column + dim].double() @ table[row].double()).item() for b, column, row, _ in looks(bags)
    ]
    torch.testing.assert_close(
        tables.weight_gradient(table, bags, grad), torch.tensor(expected).float().reshape(-1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dim", WIDTHS)
@settings(max_examples=4)
@given(request=requests())
def test_update(dim, optimizer, weight_decay, request):
    start, bags, width = make(dim, request)
    constants = FusedOptimizerSettings(optimizer, lr=0.1, eps=1e-3, weight_decay=weight_decay)
    shape = tables.state_shape(optimizer, *start.shape)
    touched = {row for _, _, row, _ in looks(bags)}
    grads = [torch.randn(bags.batch, width) for _ in range(2)]
    slow, slow_state = start.double(), torch.zeros(shape, dtype=torch.float64)
    for grad in grads:
        slow_update(slow, slow_state, summed_gradient(start, bags, grad), touched, constants)
    for update in (tables.update_rows, tables.update_rows_reference):
        table, state = start.clone(), torch.zeros(shape)
        for grad in grads:
            update(table, state, bags, grad, constants)
        torch.testing.assert_close(table, slow.float(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(state, slow_state.float(), rtol=1e-3, atol=1e-4)
        others = [row for row in range(request["rows"]) if row not in touched]
        assert torch.equal(table[others], start[others])


@pytest.mark.parametrize("shift", [0, 1])
def test_outputs_too_large_for_a_cache(form, shift):
    """They may be written another way, where their columns stand on whole vectors."""
    dim, batch = 512, 8200
    table, rows = torch.randn(50, dim), torch.randint(0, 50, (2 * batch,))
    out = torch.zeros(batch, 2 * dim + 4)
    assert out.nbytes > 32 << 20
    columns = torch.tensor([shift, dim + shift])
    tables.pool_bags(table, Bags(rows, torch.arange(2 * batch + 1), None, columns), out)
    expected = torch.zeros_like(out)
    expected[:, shift : shift + 2 * dim] = torch.cat([table[rows[:batch]], table[rows[batch:]]], dim=1)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_update_is_that_of_the_torch_optimizer(form, optimizer):
    """Every row is read, so that weight decay means the same to both."""
    dim, rows = 5, 6
    weight = torch.nn.Parameter(torch.randn(rows, dim))
    table, state = weight.detach().clone(), torch.zeros(tables.state_shape(optimizer, rows, dim))
    kind = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rowwise_adagrad": RowWiseAdagrad}[optimizer]
    eps = {} if optimizer == "sgd" else {"eps": 1e-3}
    outside = kind([weight], lr=0.2, weight_decay=0.1, **eps)
    bags = Bags(torch.arange(12) % rows, torch.arange(0, 13, 2), None, torch.tensor([0, dim]))
    for _ in range(3):
        grad = torch.randn(3, 2 * dim)
        weight.grad = tables.table_gradient_reference(table.shape, bags, grad)
        outside.step()
        tables.update_rows(table, state, bags, grad, FusedOptimizerSettings(optimizer, 0.2, 1e-3, 0.1))
    torch.testing.assert_close(table, weight.detach())
    if optimizer != "sgd":
        torch.testing.assert_close(state, outside.state[weight]["sum"].reshape(state.shape))


@pytest.mark.parametrize("rows", [2**12, 2**12 + 1, 2**16, 2**20])
def test_many_rows_are_sorted_by_all_their_bits(form, rows):
    """Rows that agree in their low or high bits stay apart."""
    step = max(1, rows // 512)
    ids = torch.cat([torch.arange(0, rows, step), torch.arange(min(rows, 512)), torch.tensor([rows - 1, 0, rows - 1])])
    ids = ids[torch.randperm(ids.numel(), generator=torch.Generator().manual_seed(0))]
    bags = Bags(ids, torch.arange(ids.numel() + 1), None, torch.tensor([0]))
    table, grad = torch.zeros(rows, 1), torch.ones(ids.numel(), 1)
    tables.update_rows(table, torch.zeros(0), bags, grad, FusedOptimizerSettings("sgd", 1.0))
    torch.testing.assert_close(table.squeeze(1), -torch.bincount(ids, minlength=rows).float())


def test_updates_do_not_depend_on_what_came_before(form):
    """Memory that kernels keep between calls holds nothing of an earlier, larger call."""
    small = Bags(torch.tensor([1]), torch.tensor([0, 1]), None, torch.tensor([0]))
    settings_of = FusedOptimizerSettings("sgd", 1.0)
    for ids in (torch.arange(1000) % 50, torch.tensor([3])):
        large = Bags(ids, torch.arange(ids.numel() + 1), None, torch.tensor([0]))
        tables.update_rows(torch.zeros(50, 16), torch.zeros(0), large, torch.randn(ids.numel(), 16), settings_of)
        table = torch.zeros(4, 3)
        tables.update_rows(table, torch.zeros(0), small, torch.tensor([[1.0, 2.0, 3.0]]), settings_of)
        assert table.tolist() == [[0, 0, 0], [-1, -2, -3], [0, 0, 0], [0, 0, 0]]
