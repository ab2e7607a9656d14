"""Several tables in one call: against the torch forms of each alone, and alike with any number of threads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embcomp.ops import native
from embcomp.ops.grid import RowGrid
from embcomp.ops.optimizers import FusedOptimizerSettings
from embcomp.ops.requests import Bags, bags_of_tables
from embcomp.ops.tables import pool_bags_reference, pool_tables
from embcomp.ops.updates import empty_states, update_rows_reference, update_tables


@st.composite
def batches(draw: st.DrawFn) -> dict:
    """Tables of several widths; ids that repeat read the same rows, one or several in each bag."""
    tables = draw(st.integers(1, 4))
    return {
        "batch": draw(st.sampled_from([1, 5, 64, 150])),
        "dims": draw(st.lists(st.sampled_from([1, 3, 8, 16, 64]), min_size=tables, max_size=tables)),
        "features": draw(st.lists(st.sampled_from([1, 2, 3, 20]), min_size=tables, max_size=tables)),
        "each": draw(st.lists(st.sampled_from([0, 1, 1, 2, 3]), min_size=tables, max_size=tables)),
        "ids": draw(st.sampled_from([1, 6, 50, 10_000])),
        "rows": draw(st.sampled_from([1, 7, 300, 70_000])),
        "bits": draw(st.sampled_from([0, 0, 4])),
        "weighted": draw(st.sampled_from([False, False, True])),
        "seed": draw(st.integers(0, 999)),
    }


def make(request: dict) -> tuple[list[Tensor], list[Bags], list[RowGrid | None], int]:
    """Tables, their bags and grids, and the width of the output; `each` of 0 draws the length of every bag."""
    random, batch, number = torch.Generator().manual_seed(request["seed"]), request["batch"], request["rows"]
    rows, lengths, columns, width = [], [], [], 0
    for dim, features, each in zip(request["dims"], request["features"], request["each"], strict=True):
        columns.append(width + dim * torch.arange(features))
        width += dim * features
        for _ in range(features):
            ids = torch.randint(request["ids"], (batch,), generator=random)
            own = torch.randint(number, (request["ids"], 3), generator=random)[ids]
            length = torch.full((batch,), each) if each else torch.randint(4, (batch,), generator=random)
            rows.append(own[torch.arange(3) < length.unsqueeze(1)])
            lengths.append(length)
    flat, offsets = torch.cat(rows), torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(lengths).cumsum(0)])
    weights = torch.randn(flat.numel(), generator=random) if request["weighted"] else None
    tables = [torch.randn(number, dim, generator=random) for dim in request["dims"]]
    grids = [RowGrid(torch.rand(number) + 0.1, 1, request["bits"]) if request["bits"] else None for _ in tables]
    return tables, bags_of_tables(flat, offsets, weights, columns), grids, width


@settings(max_examples=60)
@given(
    request=batches(),
    name=st.sampled_from(["sgd", "rowwise_adagrad", "adam"]),
    lazy=st.booleans(),
    decay=st.sampled_from([0.0, 0.05]),
)
def test_several_tables_as_each_alone(request, name, lazy, decay):
    start, parts, grids, width = make(request)
    expected = torch.full((request["batch"], width), 7.0)
    for table, bags, grid in zip(start, parts, grids, strict=True):
        pool_bags_reference(table, bags, expected, grid)
    out = torch.full_like(expected, 7.0)
    pool_tables(start, parts, out, grids)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    constants = FusedOptimizerSettings(name, lr=0.1, eps=1e-2, weight_decay=decay, lazy=lazy)
    grad = torch.randn(request["batch"], width)
    slow, tables = [[table.clone() for table in start] for _ in range(2)]
    slow_states, states = [[empty_states(constants, *table.shape) for table in start] for _ in range(2)]
    of_slow = [
        update_rows_reference(table, held, bags, grad, constants, grid)
        for table, held, bags, grid in zip(slow, slow_states, parts, grids, strict=True)
    ]
    of_steps = update_tables(tables, states, parts, grad, constants, grids)
    for mine, theirs in zip([tables, states, of_steps], [slow, slow_states, of_slow], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


@settings(max_examples=30)
@given(request=batches(), optimizer=st.sampled_from(["sgd", "rowwise_adagrad"]))
def test_threads_change_nothing(request, optimizer):
    if native.library() is None:
        pytest.skip("no compiler here")
    start, parts, grids, width = make(request)
    constants, grad = FusedOptimizerSettings(optimizer, lr=0.1), torch.randn(request["batch"], width)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        try:
            out, tables = torch.zeros(request["batch"], width), [table.clone() for table in start]
            pool_tables(tables, parts, out, grids)
            states = [empty_states(constants, *table.shape) for table in start]
            update_tables(tables, states, parts, grad, constants, grids)
            found.append([out, *tables, *(state for held in states for state in held.values())])
        finally:
            torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found[0], others, strict=True))


def test_an_empty_batch_changes_nothing():
    tables = [torch.randn(3, 4), torch.randn(5, 16)]
    before = [table.clone() for table in tables]
    none, one = torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    parts = bags_of_tables(none, one, None, [torch.tensor([0, 4]), torch.tensor([8])])
    pool_tables(tables, parts, torch.zeros(0, 24))
    update_tables(tables, [{}, {}], parts, torch.zeros(0, 24), FusedOptimizerSettings("sgd", 1.0))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(tables, before, strict=True))


def test_tables_of_different_batches_are_refused():
    parts = [
        Bags(torch.zeros(n, dtype=torch.int64), torch.arange(n + 1), None, torch.tensor([i]))
        for i, n in enumerate((2, 3))
    ]
    if native.library() is None:
        pytest.skip("no compiler here")
    with pytest.raises(ValueError, match=r"batches of \[2, 3\] bags"):
        pool_tables([torch.zeros(1, 1)] * 2, parts, torch.zeros(2, 2))
