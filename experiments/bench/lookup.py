"""`python -m experiments bench lookup`: hashing, the training step of a collection, and the plain torch drop-in.

Each candidate and its reference take turns in one process and one thread, the steps also in two. The collection's step
is compared with FBGEMM's table-batched embedding over uncompressed tables, and each with the bandwidth floor of its own
work.
"""

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from rich.console import Console
from torch import Tensor
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.optim import RowWiseAdagrad

import embcomp
from embcomp.ops.balanced import balanced_key, balanced_rows
from embcomp.ops.hashing import hash_key, hash_rows
from embcomp.torchrec import CompressedEmbeddingBagCollection, fuse_
from experiments.bench import BenchRow
from experiments.bench.timing import paired
from experiments.bench.zipf import zipf_ids

FEATURES, BATCH, DIM = 26, 8192, 64
LEARNING_RATE = 0.01


def run(console: Console, *, ids: int = 1_000_000, rounds: int = 30) -> list[BenchRow]:
    """Run all comparisons. `ids` is the size of each feature's id space, `rounds` the timings of each pair."""
    # The small ones first: gigabytes of tables leave memory in pieces, and what comes after them in other pages.
    return [*_hashing(rounds), *_drop_in(ids, rounds), *_collection(console, ids, rounds)]


def _hashing(rounds: int) -> list[BenchRow]:
    ids = torch.randint(0, 2**62, (1_000_000,), generator=torch.Generator().manual_seed(0))
    key = torch.tensor([hash_key(0, "item", 0)])
    known, long_key = ids % 1_000_000, torch.tensor([balanced_key(0, "item", 0)])
    candidates: dict[str, Callable[[], object]] = {
        "copy of 1e6 ids": ids.clone,
        "hashing 1e6 ids": lambda: hash_rows(ids, key, 100_000),
        "balanced hashing 1e6 ids": lambda: balanced_rows(known, long_key, 1_000_000, 100_000),
    }
    return paired(candidates, against="copy of 1e6 ids", rounds=rounds * 5)


def _collection(console: Console, ids: int, rounds: int) -> list[BenchRow]:
    """Time training steps: forward, backward and row-wise Adagrad over 26 features of Zipf ids."""
    rng = torch.Generator().manual_seed(1)
    batches = [torch.cat([zipf_ids(rng, ids, BATCH) for _ in range(FEATURES)]) for _ in range(4)]
    grad = torch.randn(BATCH, FEATURES * DIM, generator=torch.Generator().manual_seed(2)) * 1e-3
    rows = ids // 10
    methods = {
        "HashingTrick at 10 %": embcomp.HashingTrick(rows=rows),
        "DoubleHash at 10 %": embcomp.DoubleHash(rows=rows),
        "UnifiedEmbedding 4 x 16 at 10 %": embcomp.UnifiedEmbedding(rows=FEATURES * rows * 4, chunk_dim=16),
        "the same, balanced": embcomp.UnifiedEmbedding(rows=FEATURES * rows * 4, chunk_dim=16, balanced=True),
    }
    candidates = {"uncompressed FBGEMM TBE": _tbe_step(ids, batches, grad)}
    for name, method in methods.items():
        console.log(f"building {name}")
        candidates[name] = _step(ids, method, batches, grad)
    results = paired(candidates, against="uncompressed FBGEMM TBE", rounds=rounds)
    shared = "UnifiedEmbedding 4 x 16 at 10 %"
    console.log("building LowBit around it")
    bits = _step(ids, embcomp.LowBit(bits=4, of=methods[shared]), batches, grad)
    results += paired({shared: candidates[shared], "LowBit(4) around it": bits}, against=shared, rounds=rounds)
    del bits
    console.log("the floor: the bytes of each step's own work, moved as fast as this machine copies")
    floors = {
        "uncompressed FBGEMM TBE": _floor(batches, 1, DIM),
        "HashingTrick at 10 %": _floor(batches, 1, DIM),
        "DoubleHash at 10 %": _floor(batches, 2, DIM),
        "UnifiedEmbedding 4 x 16 at 10 %": _floor(batches, 4, 16),
        "the same, balanced": _floor(batches, 4, 16),
    }
    beside = [row for name in candidates for row in _against_floor(name, candidates[name], floors[name], rounds // 3)]
    if (os.cpu_count() or 1) < 2:
        return results + beside
    console.log("all with two threads")
    again = {f"{name}, two threads": step for name, step in candidates.items()}
    results += paired(again, against="uncompressed FBGEMM TBE, two threads", rounds=rounds, threads=2)
    return (
        results
        + beside
        + [
            row
            for name in candidates
            for row in _against_floor(f"{name}, two threads", candidates[name], floors[name], rounds // 3, threads=2)
        ]
    )


def _against_floor(
    name: str, step: Callable[[], object], floor: Callable[[], object], rounds: int, threads: int = 1
) -> list[BenchRow]:
    both = {"floor": floor, f"{name}, against its floor": step}
    return paired(both, against="floor", rounds=rounds, threads=threads)


def _tbe_step(ids: int, batches: Sequence[Tensor], grad: Tensor) -> Callable[[], object]:
    tbe = SplitTableBatchedEmbeddingBagsCodegen(
        [(ids, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)] * FEATURES,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=LEARNING_RATE,
        pooling_mode=PoolingMode.SUM,
    )
    for weight in tbe.split_embedding_weights():
        weight.data.uniform_(-0.05, 0.05)
    offsets = torch.arange(FEATURES * BATCH + 1)
    turn = _turns(batches)
    return lambda: tbe(next(turn), offsets).backward(grad)


def _step(ids: int, method: embcomp.Method, batches: Sequence[Tensor], grad: Tensor) -> Callable[[], object]:
    names = [f"feature_{i}" for i in range(FEATURES)]
    tables = [
        EmbeddingBagConfig(name=name, num_embeddings=ids, embedding_dim=DIM, feature_names=[name]) for name in names
    ]
    collection = CompressedEmbeddingBagCollection(tables, {"*": method})
    fuse_(collection, optimizer=RowWiseAdagrad, optimizer_kwargs={"lr": LEARNING_RATE})
    lengths = torch.ones(FEATURES * BATCH, dtype=torch.int64)
    turn = _turns(batches)

    def step() -> None:
        features = KeyedJaggedTensor(
            keys=names, values=next(turn), lengths=lengths, stride=BATCH, length_per_key=[BATCH] * FEATURES
        )
        collection(features).values().backward(grad)

    return step


def _floor(batches: Sequence[Tensor], lookups: int, width: int) -> Callable[[], object]:
    """Return a copy of as many bytes as the step must move.

    Each look-up reads its row, each bag writes its sum and reads its gradient, and the update reads and writes each
    distinct row.
    """
    per_feature = [batch.view(FEATURES, BATCH) for batch in batches]
    distinct = int(np.mean([sum(ids.unique().numel() for ids in batch) for batch in per_feature])) * lookups
    floats = FEATURES * BATCH * lookups * width + 2 * FEATURES * BATCH * DIM + 2 * distinct * width
    source = torch.ones(floats // 2)  # a copy reads and writes each byte
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _drop_in(ids: int, rounds: int) -> list[BenchRow]:
    """Time `CompressedEmbedding` against `nn.Embedding` with as many rows: forward, backward, SGD on sparse rows."""
    rows = ids // 10
    batch = zipf_ids(torch.Generator().manual_seed(3), ids, FEATURES * BATCH)
    grad = torch.randn(batch.numel(), DIM, generator=torch.Generator().manual_seed(4)) * 1e-3
    compressed = embcomp.nn.CompressedEmbedding(ids, DIM, embcomp.HashingTrick(rows=rows), sparse=True)
    plain = torch.nn.Embedding(rows, DIM, sparse=True)
    hashed = compressed.encoder(batch)[0].rows.squeeze(-1)
    name = "nn.Embedding with as many rows"
    candidates = {
        name: _sparse_step(plain, hashed, grad),
        "CompressedEmbedding, HashingTrick": _sparse_step(compressed, batch, grad),
    }
    return paired(candidates, against=name, rounds=rounds)


def _sparse_step(module: torch.nn.Module, ids: Tensor, grad: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)

    def step() -> None:
        optimizer.zero_grad()
        module(ids).backward(grad)
        optimizer.step()

    return step


def _turns(batches: Sequence[Tensor]):
    while True:
        yield from batches
