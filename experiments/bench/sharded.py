"""`python -m experiments bench sharded`: DLRM on several processes, against one process and against full tables.

All candidates see the same batches and take turns in the same processes, one thread each. A step is forward, backward
and update; with several processes each has its share of the batch. The console prints samples per second, and the bytes
that a process sends in a step: those of torchrec's collectives, counted as they are called, and those of the dense
gradients, which a ring sends 2 (n - 1) / n times.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.optimizers import in_backward_optimizer_filter

import embcomp
from embcomp.torchrec import CompressedEmbeddingBagCollection, fuse_, shard
from experiments.bench import BenchRow
from experiments.bench.zipf import zipf_ids
from experiments.processes.processes import Processes
from recsys_models import DLRM

FEATURES, DENSE, DIM, HIDDEN, LEARNING_RATE = 26, 13, 16, (64, 32), 0.01
FULL = "full tables"


@dataclass(frozen=True)
class Size:
    """The size of a measurement: ids of each feature, rows of a whole batch, turns of each candidate."""

    ids: int
    batch: int
    rounds: int


@dataclass(frozen=True)
class ShardedRow(BenchRow):
    """A comparison, and the measurements of `name` that it is made of."""

    samples_per_second: float
    sent_bytes_per_step: int


@dataclass(frozen=True)
class Measured:
    """The seconds of a step, [rounds], and the bytes that this process sends in a step."""

    seconds: np.ndarray
    sent: int


def run(
    console: Console, *, processes: int = 2, ids: int = 100_000, batch: int = 4096, rounds: int = 30
) -> list[BenchRow]:
    """Compare each method with full tables on the same number of processes, and with one process."""
    size = Size(ids, batch, rounds)
    with Processes(processes) as group:
        measurements: dict[str, Measured] = group.run(measure, size)[0]
    for name, measured in measurements.items():
        rate = batch / np.median(measured.seconds)
        console.log(f"{name}: {rate:,.0f} samples/s, {measured.sent:,} bytes sent per step by each process")
    many, alone = f"{processes} processes", "1 process"
    pairs = [(f"{method}, {many}", f"{FULL}, {many}") for method in methods(ids) if method != FULL]
    pairs += [(f"{method}, {many}", f"{method}, {alone}") for method in methods(ids)]
    return [_row(name, against, measurements, batch) for name, against in pairs]


def methods(ids: int) -> dict[str, embcomp.Method]:
    """Return full tables, and three methods at a tenth of the rows."""
    rows = max(ids // 10, 1)
    return {
        FULL: embcomp.Full(),
        "HashingTrick at 10 %": embcomp.HashingTrick(rows=rows),
        "DoubleHash at 10 %": embcomp.DoubleHash(rows=rows),
        "UnifiedEmbedding 2 x 8 at 10 %": embcomp.UnifiedEmbedding(rows=FEATURES * rows * 2, chunk_dim=8),
    }


def measure(size: Size) -> dict[str, Measured]:
    """Measure the steps of all candidates, in turns, in every process of a group. The slowest process counts."""
    number, rank = dist.get_world_size(), dist.get_rank()
    share = slice(size.batch * rank // number, size.batch * (rank + 1) // number)
    steps: dict[str, Callable[[int], None]] = {}
    dense: dict[str, int] = {}
    for name, method in methods(size.ids).items():
        steps[f"{name}, 1 process"] = _alone(method, size)
        steps[f"{name}, {number} processes"], gradients = _spread(method, size, share)
        dense[f"{name}, {number} processes"] = gradients * 2 * (number - 1) // number
    sent = {}
    for name, step in steps.items():
        with counted() as counter:
            for turn in range(3):  # the first ones make what later ones reuse
                counter.clear()
                step(turn)
        sent[name] = sum(counter) + dense.get(name, 0)
    seconds = {name: np.empty(size.rounds) for name in steps}
    for turn in range(size.rounds):
        for name, step in steps.items():
            dist.barrier()
            begin = time.perf_counter()
            step(turn)
            dist.barrier()
            seconds[name][turn] = time.perf_counter() - begin
    return {name: Measured(seconds[name], sent[name]) for name in steps}


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the bytes that each collective of torchrec, called inside the block, sends to other processes."""
    number, rank = dist.get_world_size(), dist.get_rank()
    sent: list[int] = []

    def to_all(given: Tensor, splits: list[int] | None) -> int:
        own = given.shape[0] // number if splits is None else splits[rank]
        return _nbytes(given) - own * (_nbytes(given) // max(given.shape[0], 1))

    rules: dict[str, Callable[[dict[str, Any]], int]] = {
        "all_to_all_single": lambda given: to_all(given["input"], given.get("input_split_sizes")),
        "reduce_scatter_tensor": lambda given: _nbytes(given["input"]) * (number - 1) // number,
        "reduce_scatter": lambda given: sum(map(_nbytes, given["input_list"])) * (number - 1) // number,
        "all_gather_into_tensor": lambda given: _nbytes(given["input_tensor"]) * (number - 1),
        "all_gather": lambda given: _nbytes(given["tensor"]) * (number - 1),
    }

    def counting(name: str) -> Callable[..., Any]:
        call = getattr(dist, name)
        signature = inspect.signature(call)

        def counts(*args: Any, **kwargs: Any) -> Any:
            sent.append(rules[name](signature.bind(*args, **kwargs).arguments))
            return call(*args, **kwargs)

        return counts

    patched: dict[str, Any] = {name: counting(name) for name in rules}
    with mock.patch.multiple(dist, **patched):
        yield sent


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _row(name: str, against: str, found: dict[str, Measured], batch: int) -> ShardedRow:
    ratios = found[name].seconds / found[against].seconds
    low, ratio, high = np.percentile(ratios, [10, 50, 90]).tolist()
    rate = batch / float(np.median(found[name].seconds))
    return ShardedRow(name, ratio, low, high, against, round(rate, 1), found[name].sent)


def _alone(method: embcomp.Method, size: Size) -> Callable[[int], None]:
    """Return a step on whole batches in the first process, the tables fused; the others wait."""
    if dist.get_rank() > 0:
        return lambda turn: None
    model = fuse_(_model(method, size), optimizer=RowWiseAdagrad, optimizer_kwargs={"lr": LEARNING_RATE})
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], fused=True)
    return _step(model, optimizer, size, slice(size.batch))


def _spread(method: embcomp.Method, size: Size, share: slice) -> tuple[Callable[[int], None], int]:
    """Return the step on a share over all processes, and the bytes of its dense gradients."""
    settings = {"lr": LEARNING_RATE}
    model = shard(_model(method, size), optimizer=RowWiseAdagrad, optimizer_kwargs=settings, device="cpu")
    dense = list(dict(in_backward_optimizer_filter(model.named_parameters())).values())
    optimizer = torch.optim.Adam(dense, fused=True)
    return _step(model, optimizer, size, share), sum(_nbytes(weight) for weight in dense)


def _model(method: embcomp.Method, size: Size) -> nn.Module:
    torch.manual_seed(0)
    names = [f"feature_{i}" for i in range(FEATURES)]
    tables = [
        EmbeddingBagConfig(name=name, num_embeddings=size.ids, embedding_dim=DIM, feature_names=[name])
        for name in names
    ]
    collection = CompressedEmbeddingBagCollection(tables, {"*": method})
    return DLRM(collection, feature_names=names, dims=DIM, num_dense=DENSE, bottom_hidden=HIDDEN[:1], hidden=HIDDEN)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, size: Size, rows: slice) -> Callable[[int], None]:
    batches = [_batch(size, seed, rows) for seed in range(4)]

    def step(turn: int) -> None:
        dense, sparse, label = batches[turn % len(batches)]
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(dense, sparse), label).backward()
        optimizer.step()

    return step


def _batch(size: Size, seed: int, rows: slice) -> tuple[Tensor, KeyedJaggedTensor, Tensor]:
    """Return some rows of a batch, one id for each feature."""
    random = torch.Generator().manual_seed(seed)
    dense = torch.rand(size.batch, DENSE, generator=random)
    label = torch.randint(0, 2, (size.batch,), generator=random).float()
    ids = zipf_ids(random, size.ids, FEATURES * size.batch).view(FEATURES, size.batch)
    mine = ids[:, rows]
    sparse = KeyedJaggedTensor(
        keys=[f"feature_{i}" for i in range(FEATURES)],
        values=mine.reshape(-1),
        lengths=torch.ones(mine.numel(), dtype=torch.int64),
        stride=mine.shape[1],
        length_per_key=[mine.shape[1]] * FEATURES,
    )
    return dense[rows], sparse, label[rows]
