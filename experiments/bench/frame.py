"""`python -m experiments bench frame`: every method's look-up and training step at a tenth of the bytes of a table.

A method serves at most 10 % of the bytes of one full table of width 64, maps included; the few that no budget sizes
keep a tenth of its rows or the like. The look-up is that of the torch module for a batch of ids of power-law
popularity. The training step is the look-up, the backward pass and SGD, which for `HotRows` includes its tracker;
gradients of stores with more rows than the batch has ids are sparse. Each method takes turns with the full table, and
its processor seconds are divided by those of the full table. `TensorTrain` and `DeepHash` are also compared with plain
torch forms written for speed, the faster of one that computes every id and one that computes different ids once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import embcomp
from embcomp.graph.cluster_map import ClusterMap
from embcomp.methods.base import FLOAT_BYTES, Method, Table
from embcomp.ops.packing import bits_for, packed_words
from experiments.bench import BenchRow
from experiments.bench.gpu import methods_of
from experiments.bench.plain_tables import Distinct, PlainDeepHash, PlainTensorTrain
from experiments.bench.timing import seconds, spread
from experiments.bench.zipf import zipf_ids

if TYPE_CHECKING:
    from rich.console import Console

SHARE, DIM = 0.1, 64
LEARNING_RATE = 0.01
FULL = "Full"
LOOK_UP, STEP = "look-up", "training step"
PLAIN: dict[str, Callable[[Any], nn.Module]] = {"TensorTrain": PlainTensorTrain, "DeepHash": PlainDeepHash}

Step = Callable[[], object]


def run(console: Console, *, ids: int = 100_000, batch: int = 8192, rounds: int = 9, only: str = "") -> list[BenchRow]:
    """Measure all methods, or the one named `only`; `ids` is the number of ids of the table."""
    table = Table("embedding", ids, DIM)
    drawn = zipf_ids(torch.Generator().manual_seed(1), ids, batch)
    full = module_of(embcomp.Full(), table, batch)
    results = []
    for name, make in methods(table).items():
        if name == FULL or only not in ("", name):
            continue
        module = module_of(make(), table, batch)
        share = embcomp.served_nbytes(module) / embcomp.served_nbytes(full)
        console.log(f"{name}: {share:.1%} of the bytes")
        calls = {FULL: _calls(full, drawn), name: _calls(module, drawn)}
        if name in PLAIN:
            plain = PLAIN[name](module)
            calls |= {"plain": _calls(plain, drawn), "distinct": _calls(Distinct(plain), drawn)}
        # A step of the slow ones takes a hundred times that of the others, and varies less.
        results += _rows(name, calls, -(-rounds // 2) if name in PLAIN else rounds)
    return results


def methods(table: Table) -> dict[str, Callable[[], Method]]:
    """Return a configuration of each method at a tenth of the served bytes, by the name of its class."""
    ids = table.ids_or_raise("the bench")
    random = torch.Generator().manual_seed(0)
    counts = 1 / torch.arange(1, ids + 1)
    shared, narrow = {"of": embcomp.UnifiedEmbedding, "balanced": True}, {"of": embcomp.LowRank}
    sized: dict[str, tuple[type[Method], dict[str, Any]]] = {
        "HashingTrick": (embcomp.HashingTrick, {}),
        "MultiHash": (embcomp.MultiHash, {"combine": "concat"}),
        "DoubleHash": (embcomp.DoubleHash, {}),
        "HashEmbedding": (embcomp.HashEmbedding, {}),
        "QuotientRemainder": (embcomp.QuotientRemainder, {}),
        "FrequencyHash": (embcomp.FrequencyHash, {"counts": counts, "tail": "double"}),
        "UnifiedEmbedding": (embcomp.UnifiedEmbedding, {"balanced": True}),
        "LowRank": (embcomp.LowRank, {}),
        "MixedDimensions": (embcomp.MixedDimensions, {"alpha": 0.5, "groups": 3, "counts": counts}),
        "Pruned": (embcomp.Pruned, {"vectors": torch.randn(ids, DIM, generator=random), "block": 4}),
        "Dedup": (embcomp.Dedup, {"vectors": torch.randn(ids, 1, generator=random).expand(ids, DIM)}),
        "ROBE": (embcomp.ROBE, {"block": 8}),
        "TensorTrain": (embcomp.TensorTrain, {}),
        "DeepHash": (embcomp.DeepHash, {}),
        "ClusteredHash": (embcomp.ClusteredHash, {"chunks": 2}),
        "HotRows": (embcomp.HotRows, {}),
        "BitCipher": (embcomp.BitCipher, {"counts": counts}),
        "FrequencyBits": (embcomp.FrequencyBits, {"counts": counts}),
        "LowBit(UnifiedEmbedding)": (embcomp.LowBit, {"bits": 4, **shared}),
        "LowBit(LowRank)": (embcomp.LowBit, {"bits": 4, **narrow}),
    }
    fixed: dict[str, Callable[[], Method]] = {
        FULL: embcomp.Full,
        "LowBit": lambda: embcomp.LowBit(bits=3),
        "ProductCodes": lambda: embcomp.ProductCodes(parts=16, codes=256),
        "Nested": lambda: embcomp.Nested(width=int(SHARE * DIM)),
        "GraphHash": lambda: embcomp.GraphHash(_clusters(ids, random)),
        "DoubleGraphHash": lambda: embcomp.DoubleGraphHash(_clusters(ids, random)),
    }
    budgeted = {name: lambda cls=cls, own=own: cls.for_budget([table], f"{SHARE:.0%}", **own)
                for name, (cls, own) in sized.items()}  # fmt: skip
    others = {name.partition(",")[0]: make for name, make in methods_of([table], SHARE).items()}
    return {**others, **budgeted, **fixed}


def _clusters(ids: int, random: torch.Generator) -> ClusterMap:
    """Return a random map to as many clusters as leave room for the map itself."""
    most = int(SHARE * ids)
    rows = most - packed_words(ids, bits_for(most)) * 4 // (DIM * FLOAT_BYTES) - 1
    return ClusterMap.of(torch.randint(rows, (ids,), generator=random), rows)


def module_of(method: Method, table: Table, batch: int) -> embcomp.nn.CompressedEmbedding:
    """Return the table as a torch module, with sparse gradients of stores that have more rows than a batch has ids."""
    largest = max(store.rows for store in method.sizes([table]).stores.values())
    ids, width = table.ids_or_raise("the bench"), table.embedding_dim
    return embcomp.nn.CompressedEmbedding(ids, width, method, sparse=largest > batch)


def _calls(module: nn.Module, ids: Tensor) -> dict[str, Step]:
    """Return a look-up and a training step."""
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    tracked = [embcomp.HotTracker(module, optimizer=optimizer)] if _moves(module) else []

    def step() -> None:
        optimizer.zero_grad()
        vectors = module(ids)
        vectors.backward(torch.full_like(vectors, 1e-3))
        optimizer.step()
        for tracker in tracked:
            tracker.step()

    @torch.no_grad()
    def look_up() -> Tensor:
        return module(ids)

    return {LOOK_UP: look_up, STEP: step}


def _moves(module: nn.Module) -> bool:
    return isinstance(module, embcomp.nn.CompressedEmbedding) and module.encoder.config["method"] == "HotRows"


def _rows(name: str, calls: Mapping[str, Mapping[str, Step]], rounds: int) -> list[BenchRow]:
    """Time all calls in turns, and return the ratios to the full table, and to the faster plain form."""
    named = {f"{who}: {what}": call for who, both in calls.items() for what, call in both.items()}
    timed = seconds(named, rounds=rounds, warmup=2, clock=time.process_time)
    kinds = (LOOK_UP, STEP)
    rows = [spread(f"{name}: {what}", timed[f"{name}: {what}"] / timed[f"{FULL}: {what}"], FULL) for what in kinds]
    if name in PLAIN:
        for what in kinds:
            forms = [timed[f"{form}: {what}"] for form in ("plain", "distinct")]
            plain = min(forms, key=lambda times: float(times.median()))
            rows.append(spread(f"{name}: {what}", timed[f"{name}: {what}"] / plain, "plain torch"))
    return rows
