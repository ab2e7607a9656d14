"""`python -m experiments bench retrieval`: search among item vectors in few bits, against faiss and usearch.

One thread searches the best 10 of 1,000,000 vectors for 1,000 queries; vectors have 64 values, whose directions differ
in spread. Recall is the share of the best 10 by float vectors that is found. Searches that take one query after the
other are timed on a part of the queries, and their time is multiplied.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from embcomp import retrieval
from embcomp.ops.code_search import search_blocks
from experiments.bench import BenchRow
from experiments.bench.timing import seconds, spread

Search = Callable[[Tensor], Tensor]
"""A function from queries to rows, int64 [Q, k]."""
MORE = 4  # candidates for each of the best, where they are rescored
PART = 20  # of the queries, for what takes one after the other


def run(
    console: Console, *, items: int = 1_000_000, queries: int = 1_000, width: int = 64, k: int = 10, rounds: int = 5
) -> list[BenchRow]:
    """Run both comparisons: at 4 bits, and at one."""
    import faiss

    faiss.omp_set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    falling = torch.linspace(1.5, 0.5, width)
    vectors = torch.randn(items, width, generator=random) * falling
    asked = torch.randn(queries, width, generator=random)
    few = asked[: max(1, queries // 10)]
    exact = search_blocks(vectors.__getitem__, items, few, k).rows
    results = []
    for candidates in (four_bits(vectors, k), signs(vectors, k)):
        names = {}
        for name, (search, _) in candidates.items():
            recall = (search(few).unsqueeze(2) == exact.unsqueeze(1)).any(2).float().mean()
            names[name] = f"{name}, recall {recall:.2f}"
            console.log(names[name])
        calls = {name: _call(search, asked[::stride]) for name, (search, stride) in candidates.items()}
        taken = seconds(calls, rounds=rounds, warmup=1, progress=lambda done, total: console.log(f"{done} of {total}"))
        parts = {name: len(asked) / len(asked[::stride]) for name, (_, stride) in candidates.items()}
        ours = next(iter(candidates))
        for name in list(candidates)[1:]:
            ratios = taken[name] * parts[name] / taken[ours]
            results.append(spread(names[name], ratios, names[ours]))
    return results


def four_bits(vectors: Tensor, k: int) -> dict[str, tuple[Search, int]]:
    """Return the searches at 4 bits, embcomp's first, with the stride of the queries that each is timed on."""
    import faiss

    rows = retrieval.compress(vectors, bits=4)
    table = retrieval.compress(vectors, bits=4, scale="table")
    scalar, flat = table.to_faiss(), faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors.numpy())

    def rescored(queries: Tensor) -> Tensor:
        return rows.rescore(queries, rows.search(queries, MORE * k).rows, vectors, k).rows

    searches: dict[str, tuple[Search, int]] = {
        "ours, 4 bits, a size for each row": (lambda queries: rows.search(queries, k).rows, 1),
        f"ours, 4 bits, {MORE} times as many rescored by float32": (rescored, 1),
        "ours, 4 bits, one step": (lambda queries: table.search(queries, k).rows, 1),
        "faiss IndexFlatIP, float32": (lambda queries: _of(flat.search(queries.numpy(), k)), 1),
        "faiss IndexScalarQuantizer, the same 4 bits": (lambda queries: _of(scalar.search(queries.numpy(), k)), PART),
    }
    if find_spec("usearch"):
        from usearch.index import search  # pyright: ignore[reportMissingImports]

        integers = (2 * table.form.packed.read(torch.arange(len(table))).short() - 15).to(torch.int8).numpy()

        def usearch(queries: Tensor) -> Tensor:
            largest = queries.abs().amax(1, keepdim=True)
            asked = (queries / largest * 127).round().to(torch.int8).numpy()
            return _keys(search(integers, asked, k, "ip", exact=True, threads=1), len(queries))

        searches["usearch i8 of the same 4 bits, exact"] = (usearch, PART)
    return searches


def signs(vectors: Tensor, k: int) -> dict[str, tuple[Search, int]]:
    """Return the searches among signs."""
    codes = retrieval.compress(vectors, bits=1)
    binary = codes.to_faiss()
    searches: dict[str, tuple[Search, int]] = {
        "ours, 1 bit, Hamming": (lambda queries: codes.search(queries, k, "hamming").rows, 1),
        "ours, 1 bit, float queries": (lambda queries: codes.search(queries, k).rows, 1),
        "faiss IndexBinaryFlat": (lambda queries: _of(binary.search(codes.signs(queries).numpy(), k)), 1),
    }
    if find_spec("usearch"):
        from usearch.index import search  # pyright: ignore[reportMissingImports]

        packed = codes.form.packed.data.view(len(codes), -1).numpy()

        def usearch(queries: Tensor) -> Tensor:
            asked = codes.signs(queries).numpy()
            return _keys(search(packed, asked, k, "hamming", exact=True, threads=1, dtype="b1"), len(queries))

        searches["usearch b1, exact"] = (usearch, PART)
    return searches


def _call(search: Search, queries: Tensor) -> Callable[[], Tensor]:
    return lambda: search(queries)


def _of(found: tuple[Any, Any]) -> Tensor:
    return torch.from_numpy(found[1])


def _keys(matches: Any, queries: int) -> Tensor:
    return torch.from_numpy(matches.keys.astype("int64")).view(queries, -1)
