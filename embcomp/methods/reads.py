"""The number of times that the rows of stores are read, by the frequencies of ids."""

from collections.abc import Mapping

import torch
from torch import Tensor

from embcomp.methods.plan import Store, TablePlan

_BLOCK = 1 << 16  # ids at a time


def vector_stores(stores: Mapping[str, Store]) -> dict[str, Store]:
    """Return the stores of vectors, which wrappers code; stores of row weights are not among them."""
    return {name: store for name, store in stores.items() if store.init != "ones"}


@torch.no_grad()
def reads_of(plan: TablePlan, counts: Tensor, stores: Mapping[str, Store]) -> dict[str, Tensor]:
    """Count how often a table's ids read the rows of these stores, float64 [rows] each, of those it reads."""
    home = next((buffer.device for buffer in plan.encoder.buffers()), torch.device("cpu"))
    kind = {"dtype": torch.float64, "device": home}
    names = {chunk.store for chunk in plan.chunks} & stores.keys()
    reads = {name: torch.zeros(stores[name].rows, **kind) for name in names}
    for block in torch.arange(len(counts), device=home).split(_BLOCK):
        for chunk, (rows, weights) in zip(plan.chunks, plan.encoder(block), strict=True):
            if chunk.store in reads:
                each = counts.to(home)[block].double().unsqueeze(1) * (1.0 if weights is None else weights.double())
                reads[chunk.store].index_add_(0, rows.reshape(-1), each.expand_as(rows).reshape(-1))
    return reads
