"""`python -m experiments bench gpu`: every method's look-up and training step on one GPU, as a share of its bandwidth.

Training is measured in two ways: the plain torch drop-ins with sparse gradients ("torch"), and FBGEMM's table-batched
embedding over the encoded ids ("FBGEMM"), if it is installed and the method pools its rows without weights. The time of
both includes the update by SGD. For each it reports:

- bytes per second of forward, and of forward, backward and update, as a share of those of a copy on the device.
  The bytes are those that the work must move: ids, each row looked up, each vector, its gradient, and each distinct row
  that the update reads and writes. Repeated rows come from a cache, so a share may exceed 1;
- encoding (hashing, maps) as a share of the step: feature by feature; of all features together, as torchrec's
  collections do it ("together"); and, on a GPU with Triton, in one launch for each kind ("in one launch");
- the bytes of the row numbers that lie between encoding and look-up, written once and read once, as a share of all
  bytes of forward and of the step: what a kernel that encodes and gathers in one could save at most.

Needs torch alone; `python -m experiments.bench.gpu device=cpu` needs no other package than that for its output either.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import embcomp
from embcomp.graph.cluster_map import ClusterMap
from embcomp.graph.mixtures import Mixture
from embcomp.methods.base import Concat, Method, Plan, Table
from embcomp.methods.together import Part, alike, batch_of, encode_together
from embcomp.nn.stores import PlainStore
from embcomp.nn.table import make_stores
from embcomp.ops.together import available
from embcomp.ops.together.batch import Constants
from experiments.bench import BenchRow
from experiments.bench.timing import seconds, spread
from experiments.bench.zipf import zipf_ids
from experiments.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

LEARNING_RATE = 0.01
Call = Callable[[], object]


def run(
    console: Console,
    *,
    device: str = "cuda",
    features: int = 26,
    batch: int = 65_536,
    ids: int = 1_000_000,
    dims: Sequence[int] = (16, 64, 128),
    share: float = 0.1,
    rounds: int = 20,
    only: str = "",
    compiled: bool = False,
) -> list[BenchRow]:
    """Measure all methods at all widths.

    `ids` is the size of each feature's id space, `share` the part of the rows that compressed tables keep, `only` one
    method's name; `compiled` times the encoding under torch.compile too.
    """
    chosen = _device(device)
    bench = _Bench(chosen, features, batch, rounds, compiled, console.log)
    console.log(f"{torch.cuda.get_device_name(chosen) if chosen.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    results: list[BenchRow] = []
    for dim in dims:
        tables = [Table(f"feature_{i}", ids, dim) for i in range(features)]
        methods = methods_of(tables, share)
        if only and only not in methods:
            raise InputError(f"only={only}: no such method; there are {', '.join(methods)}")
        for name, make in methods.items():
            if only in ("", name):
                results += bench.rows(f"{name}, D={dim}", make().plan(tables), dim)
    return results


def _device(name: str) -> torch.device:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise InputError(f"device={name}: no such device here; device=cpu tries the bench out on the CPU") from None
    return torch.device(name)


def methods_of(tables: Sequence[Table], share: float) -> dict[str, Callable[[], Method]]:
    """Return a configuration of each method; maps and codes are random, which does not change the cost of a look-up."""
    ids, dim = tables[0].ids_or_raise("the bench"), tables[0].embedding_dim
    rows = max(8, int(share * ids))
    random = torch.Generator().manual_seed(0)

    def clusters() -> ClusterMap:
        return ClusterMap.of(torch.randint(rows, (ids,), generator=random), rows)

    def soft() -> Method:
        cluster_map = clusters()
        near, weights = torch.randint(rows, (ids, 2), generator=random), torch.rand(ids, 2, generator=random)
        return embcomp.SoftGraphHash(cluster_map, weights=Mixture.of(near, weights, cluster_map), k=2)

    return {
        "Full": embcomp.Full,
        "HashingTrick": lambda: embcomp.HashingTrick(rows=rows),
        "MultiHash, 2 side by side": lambda: embcomp.MultiHash(rows=rows, combine="concat"),
        "DoubleHash": lambda: embcomp.DoubleHash(rows=rows),
        "HashEmbedding": lambda: embcomp.HashEmbedding(rows=rows),
        "QuotientRemainder": embcomp.QuotientRemainder,
        "FrequencyHash": lambda: embcomp.FrequencyHash(rows=rows, counts=torch.arange(ids)),
        "UnifiedEmbedding, 4 chunks": lambda: embcomp.UnifiedEmbedding(
            rows=min(2**31 - 1, rows * 4 * len(tables)), chunk_dim=dim // 4
        ),
        "LowRank": lambda: embcomp.LowRank(rank=max(1, dim // 4)),
        "MixedDimensions": lambda: embcomp.MixedDimensions(
            base=dim * ids * share, alpha=1.0, groups=3, counts=1 / torch.arange(1, ids + 1)
        ),
        "Nested": lambda: embcomp.Nested(width=max(1, dim // 4)),
        "Pruned": lambda: embcomp.Pruned(keep=share, vectors=torch.randn(ids, dim, generator=random), block=dim // 2),
        "LearnedMask": lambda: embcomp.LearnedMask(keep=share, block=dim // 4),
        "LearnedWidths": lambda: embcomp.LearnedWidths(width=max(1, int(share * dim))),
        "Dedup": lambda: embcomp.Dedup(rows=rows, vectors=torch.randn(ids, 1, generator=random).expand(ids, dim)),
        "ROBE": lambda: embcomp.ROBE(size=rows * dim // 4 * 4, block=dim // 2),
        "TensorTrain": lambda: embcomp.TensorTrain(rank=8),
        "DeepHash": lambda: embcomp.DeepHash(hashes=64, width=32),
        "ClusteredHash": lambda: embcomp.ClusteredHash(rows=rows),
        "HotRows": lambda: embcomp.HotRows(rows=rows),
        "BitCipher": lambda: embcomp.BitCipher(rows=rows, counts=torch.arange(ids)),
        "LowBit, 4 bits": lambda: embcomp.LowBit(bits=4, of=embcomp.HashingTrick(rows=rows)),
        "FrequencyBits": lambda: embcomp.FrequencyBits(
            counts=torch.arange(ids), mean_bits=3, of=embcomp.HashingTrick(rows=rows)
        ),
        "ProductCodes": lambda: embcomp.ProductCodes(parts=4, codes=16, of=embcomp.HashingTrick(rows=max(16, rows))),
        "GraphHash": lambda: embcomp.GraphHash(clusters()),
        "DoubleGraphHash": lambda: embcomp.DoubleGraphHash(clusters()),
        "SoftGraphHash": soft,
        "LSHash": lambda: embcomp.LSHash(rows=rows, features=torch.randn(ids, 4, generator=random)),
        "SemanticIds": lambda: embcomp.SemanticIds(
            torch.randint(64, (ids, 3), generator=random), embcomp.PrefixNgram(3), rows
        ),
    }


@dataclass(frozen=True)
class _Bench:
    device: torch.device
    features: int
    batch: int
    rounds: int
    compiled: bool
    log: Callable[[str], object]

    def rows(self, name: str, plan: Plan, dim: int) -> list[BenchRow]:
        """Return the rows of the method's measurements; its tables are freed afterwards."""
        generator = torch.Generator().manual_seed(1)
        size = plan.tables[0].table.ids_or_raise("the bench")
        ids = torch.stack([zipf_ids(generator, size, self.batch) for _ in range(self.features)]).to(self.device)
        grad = torch.full((self.features, self.batch, dim), 1e-3, device=self.device)
        stores = make_stores(plan, True, self.device, None)
        modules = [embcomp.nn.CompressedEmbedding.from_plan(plan, table, stores, sparse=True) for table in plan.tables]
        drop_ins = [(table.encoder, own) for table, own in zip(plan.tables, ids, strict=True)]
        forward_bytes, step_bytes = _bytes(plan, ids)
        between = _bytes_between(plan, ids)
        copied = torch.ones(max(1, step_bytes // 8), device=self.device)  # a copy reads and writes each byte
        target = torch.empty_like(copied)
        candidates: dict[str, Call] = {
            "copy": lambda: target.copy_(copied),
            "encoding": lambda: [encoder(own) for encoder, own in drop_ins],
        }
        ways = {"torch": _torch_steps(modules, ids, grad)}
        encodings = ["encoding"]
        for form, encode in _together(plan, ids).items():
            encodings.append(f"encoding, {form}")
            candidates[f"encoding, {form}"] = encode
        if self.compiled:
            encodings.append("encoding, compiled")
            candidates["encoding, compiled"] = torch.compile(candidates["encoding"], dynamic=False)
        if _has_fbgemm() and _pools(plan):
            ways["FBGEMM"] = _fbgemm_steps(plan, stores, ids, grad)
        for way, (forward, step) in ways.items():
            candidates |= {f"{way}: forward": forward, f"{way}: step": step}
        times = seconds(candidates, rounds=self.rounds, device=self.device)
        bandwidth = 2 * copied.nbytes / times["copy"]
        self.log(f"{name}: a copy moves {bandwidth.median() / 1e9:.1f} GB/s, encoding {_ms(times['encoding'])}")
        results = [
            spread(
                f"{name}: rows between encoding and look-up",
                torch.tensor([between / (total + between)]),
                f"the bytes of {of}",
            )
            for of, total in (("forward", forward_bytes), ("the step", step_bytes))
        ]
        for way in ways:
            forward, step = times[f"{way}: forward"], times[f"{way}: step"]
            self.log(f"{name}, {way}: forward {_ms(forward)}, forward + backward + update {_ms(step)}")
            full = f"{name}, {way}"
            results += [
                spread(f"{full}: forward", forward_bytes / forward / bandwidth, "copy bandwidth"),
                spread(f"{full}: forward + backward + update", step_bytes / step / bandwidth, "copy bandwidth"),
                *(spread(f"{full}: {kind}", times[kind] / step, "the step") for kind in encodings),
            ]
        return results


def _ms(times: Tensor) -> str:
    return f"{1000 * float(times.median()):.3g} ms"


def _torch_steps(modules: Sequence[torch.nn.Module], ids: Tensor, grad: Tensor) -> tuple[Call, Call]:
    """Return a look-up of all features without and with training: sparse gradients and SGD."""
    optimizer = torch.optim.SGD(torch.nn.ModuleList(modules).parameters(), lr=LEARNING_RATE)

    def look_up() -> list[Tensor]:
        return [module(own) for module, own in zip(modules, ids, strict=True)]

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(look_up(), list(grad))
        optimizer.step()

    return torch.no_grad()(look_up), step


def _has_fbgemm() -> bool:
    try:
        import fbgemm_gpu  # noqa: F401
    except ImportError:
        return False
    return True


def _pools(plan: Plan) -> bool:
    """Return whether the method's vectors are sums of plain rows, side by side."""
    if any(store.coding is not None for store in plan.stores.values()):
        return False
    return all(type(table.combiner) is Concat and not table.weighted for table in plan.tables)


def _fbgemm_steps(plan: Plan, stores: Mapping[str, PlainStore], ids: Tensor, grad: Tensor) -> tuple[Call, Call]:
    """Return the same steps with one table-batched embedding over copies of the stores."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    on_gpu = ids.device.type == "cuda"
    location = EmbeddingLocation.DEVICE if on_gpu else EmbeddingLocation.HOST
    compute = ComputeDevice.CUDA if on_gpu else ComputeDevice.CPU
    names, sizes = list(plan.stores), list(plan.stores.values())
    # What each chunk reads, in the order of the stores: (store, table, chunk, look-ups).
    reads = sorted(
        (names.index(chunk.store), t, c, chunk.lookups)
        for t, table in enumerate(plan.tables)
        for c, chunk in enumerate(table.chunks)
    )
    tbe = SplitTableBatchedEmbeddingBagsCodegen(
        [(store.rows, store.dim, location, compute) for store in sizes],
        feature_table_map=[store for store, *_ in reads],
        pooling_mode=PoolingMode.SUM,
        optimizer=EmbOptimType.EXACT_SGD,
        learning_rate=LEARNING_RATE,
        device=ids.device,
    )
    for weight, name in zip(tbe.split_embedding_weights(), names, strict=True):
        weight.detach().copy_(stores[name].weight.detach())
    batch = ids.shape[1]
    each = torch.tensor([lookups for *_, lookups in reads]).repeat_interleave(batch)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), each.cumsum(0)]).to(ids.device)
    all_grad = grad.transpose(0, 1).reshape(batch, -1)

    def look_up() -> Tensor:
        encoded = [table.encoder(own) for table, own in zip(plan.tables, ids, strict=True)]
        return tbe(torch.cat([encoded[t][c].rows.reshape(-1) for _, t, c, _ in reads]), offsets)

    return torch.no_grad()(look_up), lambda: look_up().backward(all_grad)


def _bytes(plan: Plan, ids: Tensor) -> tuple[int, int]:
    """Return the bytes that forward alone, and forward, backward and update, must move (see the module)."""
    dims = {name: store.dim for name, store in plan.stores.items()}
    forward = vectors = 0
    read: dict[str, list[Tensor]] = {name: [] for name in dims}
    for table, own in zip(plan.tables, ids, strict=True):
        vectors += own.numel() * plan.embedding_dim(table) * 4
        forward += own.nbytes
        for chunk, encoded in zip(table.chunks, table.encoder(own), strict=True):
            read[chunk.store].append(encoded.rows.reshape(-1))
            forward += encoded.rows.numel() * dims[chunk.store] * 4
    distinct = sum(4 * dims[name] * torch.cat(rows).unique().numel() for name, rows in read.items())
    return forward + vectors, forward + 2 * vectors + 2 * distinct


def _bytes_between(plan: Plan, ids: Tensor) -> int:
    """Return the bytes of row numbers, int64, which encoding writes and the look-up reads."""
    return 2 * 8 * ids.shape[1] * sum(chunk.lookups for table in plan.tables for chunk in table.chunks)


def _together(plan: Plan, ids: Tensor) -> dict[str, Call]:
    """Return the encoding of all features together, by form; there is none where an encoder is encoded alone."""
    parts: dict[Hashable, list[tuple[int, Part]]] = {}
    for t, table in enumerate(plan.tables):
        for chunk in range(len(table.chunks)):
            part = Part(table.encoder, chunk)
            parts.setdefault(alike(part), []).append((t, part))
    if None in parts:
        return {}
    values, counts, constants = ids.reshape(-1), torch.full((len(ids),), ids.shape[1], device=ids.device), Constants()

    def encode(in_one_launch: bool) -> None:
        for group in parts.values():
            read, own = zip(*group, strict=True)
            order = None if read == tuple(range(len(ids))) else read
            batch = batch_of(own, values, counts, order, [ids[t] for t in read], constants)
            batch.in_one_launch &= in_one_launch
            encode_together(own, batch)

    forms: dict[str, Call] = {"together": partial(encode, False)}
    if available.serves(values):
        forms["in one launch"] = partial(encode, True)
    return forms


def _arguments(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for word in words:
        key, _, value = word.partition("=")
        try:
            yield key, json.loads(value)
        except ValueError:
            yield key, value


if __name__ == "__main__":  # where typer and rich are missing: torch alone

    class _Plain:
        log = staticmethod(lambda text: print(text, file=sys.stderr, flush=True))

    print(json.dumps([asdict(row) for row in run(_Plain(), **dict(_arguments(sys.argv[1:])))], indent=1))  # pyright: ignore
