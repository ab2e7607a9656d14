"""Random requests to a table, and what they read."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from embcomp.ops.tables import Bags

WIDTHS = [1, 3, 4, 8, 16, 30, 32, 64, 100, 128]


@st.composite
def requests(draw: st.DrawFn) -> dict:
    """What features ask of one table: rows of other tables stand before and after, columns of others between."""
    features, batch = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    rows = draw(st.sampled_from([1, 2, 5, 300]))
    return {
        "features": features,
        "batch": batch,
        "rows": rows,
        "before": draw(st.integers(0, 3)),
        "longest": draw(st.sampled_from([0, 1, 1, 3, 9])),
        "hot": draw(st.integers(1, rows)),
        "weighted": draw(st.booleans()),
        "seed": draw(st.integers(0, 999)),
    }


def make(dim: int, request: dict) -> tuple[Tensor, Bags, int]:
    """A table, bags over it, and the width of the output."""
    random = torch.Generator().manual_seed(request["seed"])
    features, batch = request["features"], request["batch"]
    lengths = torch.randint(0, request["longest"] + 1, (features * batch,), generator=random)
    if request["longest"] == 1 and request["seed"] % 2:
        lengths.fill_(1)  # the usual case, for which kernels have a path of their own
    offsets = request["before"] + torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    total = int(offsets[-1])
    ids = torch.randint(0, request["hot"], (total + 2,), generator=random)
    ids[: request["before"]] = ids[total:] = request["rows"] + 7  # of other tables: not to be touched
    weights = torch.randn(total + 2, generator=random) if request["weighted"] else None
    places = torch.randperm(features, generator=random)
    columns = places * (dim + 2) + 1
    table = torch.randn(request["rows"], dim, generator=random)
    return table, Bags(ids, offsets, weights, columns), features * (dim + 2) + 1


def looks(bags: Bags):
    """Each look-up: bag in the batch, first column, row, weight."""
    for f, column in enumerate(bags.columns.tolist()):
        for b in range(bags.batch):
            start, stop = bags.offsets[f * bags.batch + b : f * bags.batch + b + 2].tolist()
            for j in range(start, stop):
                yield b, column, int(bags.rows[j]), 1.0 if bags.weights is None else float(bags.weights[j])


def summed_gradient(table: Tensor, bags: Bags, grad: Tensor) -> Tensor:
    total = torch.zeros(table.shape, dtype=torch.float64)
    for b, column, row, weight in looks(bags):
        total[row] += weight * grad[b, column : column + table.shape[1]].double()
    return total
