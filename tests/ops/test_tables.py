"""Pooled look-ups and their gradients: compiled kernels and torch forms against loops in float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embcomp.ops import tables
from embcomp.ops.row_sums import add_rows, add_rows_reference
from embcomp.ops.tables import Bags
from tests.ops.table_requests import WIDTHS, looks, make, requests, summed_gradient


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


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    ids=st.integers(0, 40),
    lookups=st.integers(1, 4),
    width=st.sampled_from([1, 3, 16]),
    weighted=st.booleans(),
)
def test_values_are_added_to_the_rows_of_each_id(seed: int, ids: int, lookups: int, width: int, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(7, width, generator=generator)
    rows = torch.randint(0, 7, (lookups, ids), generator=generator).t()
    values = torch.randn(ids, 2 * width, generator=generator)[:, width:]
    weights = torch.randn(ids, lookups, generator=generator) if weighted else None
    expected = table.double()
    for i in range(ids):
        for j in range(lookups):
            expected[rows[i, j]] += values[i].double() * (1.0 if weights is None else weights[i, j].double())
    for add in (add_rows, add_rows_reference):
        added = table.clone()
        add(added, rows, values, weights)
        torch.testing.assert_close(added, expected.float(), rtol=1e-4, atol=1e-4)


def test_a_row_outside_of_the_table_is_refused() -> None:
    with pytest.raises(IndexError, match="row 3 is out of range"):
        add_rows(torch.zeros(3, 2), torch.tensor([[0], [3]]), torch.zeros(2, 2))


def _refused(bags: Bags, shape: tuple[int, int], width: int) -> tuple[str, str]:
    try:
        bags.check(shape, width)
    except (IndexError, ValueError) as error:
        return type(error).__name__, str(error)
    return "", ""


@settings(max_examples=200)
@given(data=st.data())
def test_wrong_bags_are_refused_alike_with_and_without_the_compiled_pass(data) -> None:
    """Rows, offsets and columns in and out of range; what is refused is what a loop in Python finds."""
    rows = data.draw(st.lists(st.integers(-1, 4), max_size=6))
    offsets = data.draw(st.lists(st.integers(-1, len(rows) + 1), min_size=1, max_size=5).map(sorted))
    if data.draw(st.booleans()):
        offsets = data.draw(st.permutations(offsets))
    columns, width = data.draw(st.lists(st.integers(-1, 3), min_size=1, max_size=2)), data.draw(st.integers(1, 5))
    bags = Bags(torch.tensor(rows, dtype=torch.int64), torch.tensor(offsets), None, torch.tensor(columns), "t")
    right = (
        (len(offsets) - 1) % len(columns) == 0
        and offsets[0] >= 0
        and offsets[-1] <= len(rows)
        and all(a <= b for a, b in itertools.pairwise(offsets))
        and all(0 <= row < 4 for row in rows[offsets[0] : offsets[-1]])
        and all(0 <= column <= width - 2 for column in columns)
    )
    refused = _refused(bags, (4, 2), width)
    assert (refused == ("", "")) == right
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables.native, "library", lambda: None)
        assert _refused(bags, (4, 2), width) == refused
