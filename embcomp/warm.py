"""Warm starts: compressed rows that stay as close as they can to trained vectors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embcomp.methods.base import Concat, TablePlan

BLOCK = 1 << 16  # ids at a time


@dataclass(frozen=True)
class Trained:
    """A table's trained vectors [num_embeddings, embedding_dim] and how much each id counts, [num_embeddings]."""

    plan: TablePlan
    vectors: Tensor
    counts: Tensor


@torch.no_grad()
def warm_start(trained: Sequence[Trained], stores: Mapping[str, Tensor], steps: int = 20) -> None:
    """Fills the stores so that the compressed tables come close to the trained ones.

    Each row starts at the count-weighted mean of the vectors (or their chunks) that map to it, divided by how many
    rows are added up. With one row per id that is the least-squares solution; with several, `steps` steps of
    conjugate gradients go on towards it. Weights and factors that a combiner multiplies with start at their neutral
    value, 1. Rows that no id maps to keep what they hold.

    Args:
        trained: all tables that read these stores.
        stores: [rows, dim] by name, filled in place.
        steps: conjugate-gradient steps at most.
    """
    groups: list[tuple[set[str], list[Trained]]] = []
    for table in trained:  # tables that have a store in common, directly or through others, are fitted together
        names, members, apart = {chunk.store for chunk in table.plan.chunks}, [table], []
        for group in groups:
            if names & group[0]:
                names, members = names | group[0], group[1] + members
            else:
                apart.append(group)
        groups = [*apart, (names, members)]
    for _, group in groups:
        _fit(group, stores, steps)


def _fit(trained: Sequence[Trained], stores: Mapping[str, Tensor], steps: int) -> None:
    """`warm_start` for tables that read stores in common."""
    for table in trained:
        for chunk, value in table.plan.combiner.neutral.items():
            stores[table.plan.chunks[chunk].store].fill_(value)
    learned = {
        chunk.store: stores[chunk.store]
        for table in trained
        for i, chunk in enumerate(table.plan.chunks)
        if i not in table.plan.combiner.neutral
    }
    target = {name: torch.zeros_like(store, dtype=torch.float32) for name, store in learned.items()}
    weight = {name: torch.zeros(store.shape[0], device=store.device) for name, store in learned.items()}
    summands = 1
    for table in trained:
        summands = max(summands, _summands(table.plan))
        for rows, vectors, counts in _blocks(table):
            _scatter(table.plan, rows, vectors * counts.unsqueeze(-1), target)
            for chunk, rows_of_chunk in _learned(table.plan, rows):
                share = counts.unsqueeze(-1) * _weights(rows_of_chunk).square()  # least squares, one row at a time
                weight[chunk.store].index_add_(0, rows_of_chunk[0].reshape(-1), share.reshape(-1))
    for name, store in learned.items():
        used = weight[name] > 0
        mean = target[name][used] / weight[name][used].unsqueeze(-1) / summands
        store[used] = mean.to(store.dtype)
    if summands > 1:
        _refine(trained, learned, weight, steps)


def _refine(trained: Sequence[Trained], stores: dict[str, Tensor], weight: dict[str, Tensor], steps: int) -> None:
    """Conjugate gradients on the normal equations of  min sum_id counts[id] |vectors[id] - combined rows|^2."""
    x = {name: store.float().clone() for name, store in stores.items()}
    residual = _normal(trained, x, subtract_from_target=True)
    direction = {name: value.clone() for name, value in residual.items()}
    size = start = _dot(residual, residual)
    for _ in range(steps):
        if size <= 1e-12 * start:
            break
        image = _normal(trained, direction, subtract_from_target=False)
        step = size / _dot(direction, image)
        for name in x:
            x[name] += step * direction[name]
            residual[name] -= step * image[name]
        new_size = _dot(residual, residual)
        for name in x:
            direction[name] = residual[name] + (new_size / size) * direction[name]
        size = new_size
    for name, store in stores.items():
        used = weight[name] > 0
        store[used] = x[name][used].to(store.dtype)


def _normal(trained: Sequence[Trained], x: dict[str, Tensor], subtract_from_target: bool) -> dict[str, Tensor]:
    """A^T C A x, or A^T C (vectors - A x), for the linear map A from rows to vectors and counts C."""
    result = {name: torch.zeros_like(value) for name, value in x.items()}
    for table in trained:
        for rows, vectors, counts in _blocks(table):
            combined = _combine(table.plan, rows, x, vectors.shape[1])
            value = vectors - combined if subtract_from_target else combined
            _scatter(table.plan, rows, value * counts.unsqueeze(-1), result)
    return result


def _blocks(table: Trained) -> Iterator[tuple[list, Tensor, Tensor]]:
    for start in range(0, table.vectors.shape[0], BLOCK):
        ids = torch.arange(start, min(start + BLOCK, table.vectors.shape[0]), device=table.vectors.device)
        yield table.plan.encoder(ids), table.vectors[ids].float(), table.counts[ids].float()


def _learned(plan: TablePlan, rows: list):
    """The chunks that are fitted, with their rows."""
    return [(c, r) for i, (c, r) in enumerate(zip(plan.chunks, rows, strict=True)) if i not in plan.combiner.neutral]


def _weights(rows) -> Tensor:
    return torch.ones_like(rows[0], dtype=torch.float32) if rows[1] is None else rows[1]


def _summands(plan: TablePlan) -> int:
    """How many rows are added up into one coordinate."""
    learned = [chunk for i, chunk in enumerate(plan.chunks) if i not in plan.combiner.neutral]
    return max(c.lookups for c in learned) if isinstance(plan.combiner, Concat) else sum(c.lookups for c in learned)


def _parts(plan: TablePlan, vectors: Tensor, dims: Sequence[int]) -> Sequence[Tensor]:
    """What each fitted chunk contributes to: its columns where chunks stand side by side, else all of them."""
    return vectors.split(list(dims), dim=1) if isinstance(plan.combiner, Concat) else [vectors] * len(dims)


def _scatter(plan: TablePlan, rows: list, vectors: Tensor, into: dict[str, Tensor]) -> None:
    learned = _learned(plan, rows)
    parts = _parts(plan, vectors, [into[chunk.store].shape[1] for chunk, _ in learned])
    for (chunk, own), part in zip(learned, parts, strict=True):
        each = part.unsqueeze(1) * _weights(own).unsqueeze(-1)
        into[chunk.store].index_add_(0, own[0].reshape(-1), each.reshape(-1, part.shape[1]))


def _combine(plan: TablePlan, rows: list, x: dict[str, Tensor], width: int) -> Tensor:
    learned = _learned(plan, rows)
    values = [(x[chunk.store][own[0]] * _weights(own).unsqueeze(-1)).sum(1) for chunk, own in learned]
    return torch.cat(values, 1) if isinstance(plan.combiner, Concat) else torch.stack(values).sum(0)


def _dot(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[name].double() * b[name]).sum()) for name in a)  # float32 loses products of small numbers
