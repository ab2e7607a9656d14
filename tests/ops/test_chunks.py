"""Chunks of ids that repeat: kernels may sum what they have in common, the torch form does not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embcomp.ops import tables
from embcomp.ops.optimizers import RULES, FusedOptimizerSettings
from embcomp.ops.tables import Bags
from embcomp.ops.updates import empty_states, update_rows, update_rows_reference


@st.composite
def chunked(draw: st.DrawFn) -> dict:
    """Features whose ids repeat, each read in several chunks side by side, as a Unified Embedding asks for them."""
    return {
        "chunks": draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)),
        "batch": draw(st.sampled_from([1, 2, 8, 33, 64, 200])),
        "ids": draw(st.sampled_from([1, 2, 5, 30, 1000])),
        "rows": draw(st.sampled_from([1, 3, 40, 5000])),
        "astray": draw(st.sampled_from([0, 0, 1, 3, 40])),
        "multi_hot": draw(st.sampled_from([False, False, True])),
        "gap": draw(st.sampled_from([0, 0, 3])),
        "weighted": draw(st.sampled_from([False, False, True])),
        "seed": draw(st.integers(0, 999)),
    }


def make_chunked(dim: int, request: dict) -> tuple[Tensor, Bags, int]:
    random = torch.Generator().manual_seed(request["seed"])
    batch, rows, offsets, columns = request["batch"], [], [torch.zeros(1, dtype=torch.int64)], []
    for chunks in request["chunks"]:
        lengths = torch.ones(batch, dtype=torch.int64)
        if request["multi_hot"]:
            lengths = torch.randint(0, 3, (batch,), generator=random)
        ids = torch.randint(0, request["ids"], (int(lengths.sum()),), generator=random)
        for _ in range(chunks):
            of_id = torch.randint(0, request["rows"], (request["ids"],), generator=random)[ids]
            places = torch.randint(0, max(1, ids.numel()), (min(request["astray"], ids.numel()),), generator=random)
            of_id[places] = torch.randint(0, request["rows"], (places.numel(),), generator=random)
            rows.append(of_id)
            offsets.append(offsets[-1][-1] + lengths.cumsum(0))
            columns.append(len(columns) * dim + request["gap"] * (len(columns) // 2))
    width = columns[-1] + dim
    flat = torch.cat(rows)
    weights = torch.randn(flat.numel(), generator=random) if request["weighted"] else None
    table = torch.randn(request["rows"], dim, generator=random)
    return table, Bags(flat, torch.cat(offsets), weights, torch.tensor(columns)), width


@pytest.mark.parametrize("dim", [1, 3, 8, 16])
@settings(max_examples=40)
@given(request=chunked())
def test_chunks_of_ids_that_repeat(dim, request):
    """Kernels may sum what an id's chunks have in common; the torch form, tested above, does not."""
    start, bags, width = make_chunked(dim, request)
    grad = torch.randn(request["batch"], width)
    for optimizer in RULES:
        constants = FusedOptimizerSettings(optimizer, lr=0.1, eps=1e-2, weight_decay=0.05)
        expected, states = start.clone(), empty_states(constants, *start.shape)
        update_rows_reference(expected, states, bags, grad, constants)
        table, mine = start.clone(), empty_states(constants, *start.shape)
        update_rows(table, mine, bags, grad, constants)
        torch.testing.assert_close(table, expected, rtol=1e-3, atol=1e-3)
        for name, state in states.items():
            torch.testing.assert_close(mine[name], state, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        tables.table_gradient(start.shape, bags, grad),
        tables.table_gradient_reference(start.shape, bags, grad),
        rtol=1e-3,
        atol=1e-4,
    )
    outs = [torch.zeros(request["batch"], width) for _ in range(2)]
    tables.pool_bags(start, bags, outs[0])
    tables.pool_bags_reference(start, bags, outs[1])
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-5)
