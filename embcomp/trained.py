"""Trained vectors that the rows of a plan are fitted to, read a block of ids at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.methods.base import Concat, Product, Rows, Sum, TablePlan, WeightedSum
from embcomp.ops.row_sums import add_rows

BLOCK = 1 << 14  # ids at a time: their vectors stay in the second-level cache

Unknowns = dict[str, Tensor]
"""The unknowns of the fit: float32 [rows, dim] by store, and parameters of combiners under "<table>.<name>"."""


class Read(NamedTuple):
    """The reads of a block of ids: the rows of each chunk, and the numbers that the encoder hands to the combiner."""

    rows: list[Rows]
    handed: list[Tensor]


@dataclass(frozen=True)
class Trained:
    """A table's trained vectors [num_embeddings, embedding_dim] and the weight of each id, [num_embeddings]."""

    plan: TablePlan
    vectors: Tensor
    counts: Tensor

    @property
    def learned(self) -> list[tuple[int, str]]:
        """The chunks that are fitted, as (number, store); the other chunks stay at their neutral value."""
        return [(i, c.store) for i, c in enumerate(self.plan.chunks) if i not in self.plan.combiner.neutral]

    @property
    def is_linear(self) -> bool:
        """True if the vectors depend on the unknowns linearly."""
        combiner = self.plan.combiner
        linear = combiner.linear or combiner.linear_in_rows or bool(combiner.neutral)
        return linear and not any(True for _ in combiner.parameters())

    @property
    def is_mean(self) -> bool:
        """True if each value of a vector is one value of one row, so that the best row is a mean."""
        plan = self.plan
        side_by_side = type(plan.combiner) is Concat and not plan.encoder.hands
        return side_by_side and all(chunk.lookups == 1 for chunk in plan.chunks)

    def first_columns(self, widths: Mapping[str, int]) -> list[int] | None:
        """Find where each learned chunk begins in the vector, if the vector is the sum of the chunks at these places.

        Then no value of a vector depends on two columns of a row. None for other combiners.

        Args:
            widths: the width of each store.
        """
        kind = type(self.plan.combiner)
        if self.plan.encoder.hands or kind not in (Concat, Sum, Product, WeightedSum):
            return None
        if kind is not Concat:
            return [0] * len(self.learned)
        own = [widths[store] for _, store in self.learned]
        return [sum(own[:i]) for i in range(len(own))]

    def blocks(self) -> Iterator[tuple[Read, Tensor, Tensor]]:
        """Yield the reads, the vectors [n, embedding_dim] and the counts [n, 1] of a block of ids at a time."""
        for start in range(0, self.vectors.shape[0], BLOCK):
            stop = min(start + BLOCK, self.vectors.shape[0])
            ids = torch.arange(start, stop, device=self.vectors.device)
            read = Read(self.plan.encoder(ids), self.plan.encoder.hand(ids))
            yield read, self.vectors[start:stop].float(), self.counts[start:stop].float().unsqueeze(-1)


def usage(trained: Sequence[Trained], targets: Mapping[str, Tensor]) -> Unknowns:
    """The weight of each row, [rows, 1]: the sum over its reads of the id's count times the squared read weight."""
    used = {name: torch.zeros(len(target), 1, device=target.device) for name, target in targets.items()}
    for table in trained:
        total = 0.0
        learned, parameters = table.learned, dict(table.plan.combiner.named_parameters())
        for (rows, _), _, counts in table.blocks():
            total += float(counts.sum()) if parameters else 0.0
            for i, store in learned:
                weights = rows[i].weights
                add_rows(used[store], rows[i].rows, counts, None if weights is None else weights.square())
        for name, parameter in parameters.items():
            used[f"{table.plan.table.name}.{name}"] = torch.full_like(parameter, max(total, 1e-30), dtype=torch.float32)
    return used


def pooled_rows(store: Tensor, rows: Rows) -> Tensor:
    """The sum of the rows of a store that each id reads, each times its weight, float32 [N, dim]."""
    weights = None if rows.weights is None else rows.weights.float()
    if store.dtype == torch.float32:
        return F.embedding_bag(rows.rows, store, mode="sum", per_sample_weights=weights)
    each = store[rows.rows].float()
    return (each if weights is None else each * weights.unsqueeze(-1)).sum(1)
