"""Pooled look-ups whose weights are scattered in memory, against sums by hand."""

import pytest
import torch

from embcomp.ops.bags import pool_rows
from embcomp.serving.stores import serve


def weights(kind: str) -> torch.Tensor:
    return {"expanded": torch.tensor([2.0]).expand(12), "every other": torch.randn(24)[::2]}[kind]


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("kind", ["expanded", "every other"])
def test_weights_may_be_scattered_where_some_rows_are_in_no_bag(kind, learned):
    torch.manual_seed(0)
    table, rows, offsets, weigh = torch.randn(10, 8), torch.randint(10, (12,)), torch.tensor([0, 4, 9]), weights(kind)
    each = table[rows] * weigh.unsqueeze(1)
    expected = torch.stack([each[:4].sum(0), each[4:9].sum(0)])
    torch.testing.assert_close(pool_rows(table.requires_grad_(learned), rows, offsets, weigh), expected)
    for dtype in ("float32", "float16", "int8"):
        store = serve(table.detach(), dtype, torch.float32, "t")
        pooled = store.pool(rows.unsqueeze(1), offsets, weigh.unsqueeze(1))
        torch.testing.assert_close(pooled, expected, rtol=0.05, atol=0.05)
