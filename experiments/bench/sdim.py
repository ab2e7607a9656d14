"""`python -m experiments bench sdim`: SDIM against attention, in serving and in training, and the store that serves it.

Ratios against another candidate are measured in one process and one thread. Rows against "1 ms" or "1 per second" are
times or rates on this machine; so are those of the store, whose clients are processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from embcomp.ops.signatures import unpack
from embcomp.sdim import SDIM
from experiments.bench import BenchRow
from experiments.bench.published import PublishedDIN, PublishedSDIM
from experiments.bench.store import store_rows
from experiments.bench.timing import paired, seconds
from recsys_models import BehaviorModel
from recsys_models.attention import DINAttention, DotProductAttention

ITEMS = 10_000


def run(
    console: Console,
    *,
    length: int = 1024,
    dim: int = 128,
    candidates: int = 1000,
    rounds: int = 20,
    published: bool = True,
    operations: int = 300,
    clients: int = 8,
) -> list[BenchRow]:
    """Run all comparisons.

    Args:
        length: the number of events of a history.
        dim: the width of the vectors.
        candidates: the number of candidates of one user.
        rounds: the number of timings of each pair.
        published: True to time a published package's operations too, which take seconds and gigabytes.
        operations: the number of operations of each client of a store; 0 skips the stores.
        clients: the number of concurrent clients of a store.
    """
    torch.manual_seed(0)
    results = _approximation() + _collisions()
    results += _serving(length, dim, candidates, rounds, published)
    results += _lengths(length, dim, candidates, rounds)
    results += _encoding(console, length, dim, rounds)
    results += _training(length, dim, max(rounds // 2, 2))
    if operations:
        results += store_rows(console, length=length, dim=dim, operations=operations, clients=clients)
    return results


@torch.no_grad()
def _approximation() -> list[BenchRow]:
    """Compare pooled histories with their expectation on clustered data: 8 of 256 events, 16 candidates each."""
    generator = torch.Generator().manual_seed(0)
    dim = 32
    centres = torch.randn(8, 4, dim, generator=generator)
    which = torch.randint(4, (8, 256, 1), generator=generator).expand(-1, -1, dim)
    events = centres.gather(1, which) + 0.5 * torch.randn(8, 256, dim, generator=generator)
    asked = centres[:, :1] + 0.5 * torch.randn(8, 16, dim, generator=generator)
    rows = []
    for rule in ("l2", "mean"):
        for num_hashes in (12, 24, 48, 96, 192):
            sdim = SDIM(dim, num_hashes, rule=rule)  # pyright: ignore[reportArgumentType]
            limit = sdim(asked, events, expected=True)
            cosine = nn.functional.cosine_similarity(sdim(asked, events), limit, dim=-1).flatten()
            spread = torch.tensor([0.1, 0.9]).to(cosine)
            low, high = cosine.quantile(spread).tolist()
            name = f"cosine to the expectation, rule {rule!r}, {num_hashes} hashes"
            rows.append(BenchRow(name, cosine.mean().item(), low, high, "the same direction"))
    return rows


@torch.no_grad()
def _collisions() -> list[BenchRow]:
    """Count how often two vectors of a given cosine share a bucket, in 20 times 480 groups, against the formula."""
    dim, groups, rows = 32, 480, []
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0)))[0]
    for cosine in (-0.5, 0.0, 0.6, 0.95):
        pair = torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]]) @ turn[:2]
        each = [SDIM(dim, 3 * groups, 3, seed) for seed in range(20)]
        codes = torch.stack([unpack(sdim.signatures(pair), groups, 3) for sdim in each])
        shares = (codes[:, 0] == codes[:, 1]).double().mean(1)
        formula = each[0].collision_probability(torch.tensor(cosine, dtype=torch.float64)).item()
        low, high = (shares / formula).quantile(torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
        against = f"{formula:.4f}, (1 - arccos(cosine) / pi)^3"
        rows.append(BenchRow(f"collisions at cosine {cosine}", shares.mean().item() / formula, low, high, against))
    return rows


@torch.no_grad()
def _serving(length: int, dim: int, candidates: int, rounds: int, published: bool) -> list[BenchRow]:
    """Time the candidates of one user whose history is encoded, or is given as vectors."""
    asked, events = torch.randn(1, candidates, dim), torch.randn(1, length, dim)
    mask = torch.ones(1, length, dtype=torch.bool)
    name = f"SDIM query of {candidates} candidates, D = {dim}"
    calls = {name: _query(SDIM(dim), asked, events)}
    for rule in ("mean", "kernel"):
        calls[f"SDIM query, rule {rule!r}"] = _query(SDIM(dim, rule=rule), asked, events)
    calls["SDIM query, projection 'hadamard'"] = _query(SDIM(dim, projection="hadamard"), asked, events)
    calls["SDIM query, signatures of the candidates known"] = _query(SDIM(dim), asked, events, known=True)
    dot = DotProductAttention(dim)
    calls[f"dot-product attention over {length} events"] = lambda: dot(asked, events, mask)
    rows = paired(calls, against=name, rounds=rounds)
    some = max(candidates // 20, 1)  # DIN is measured on fewer: its cost grows with them
    fewer = f"SDIM query of {some} candidates, D = {dim}"
    din = DINAttention(dim)
    slow: dict[str, Callable[[], object]] = {
        fewer: _query(SDIM(dim), asked[:, :some], events),
        f"DIN's attention (80, 40) over {length} events": lambda: din(asked[:, :some], events, mask),
    }
    rows += paired(slow, against=fewer, rounds=max(rounds // 4, 2), warmup=1)
    if published:
        theirs = PublishedSDIM(dim)
        each, masks = events.expand(candidates, -1, -1), mask.expand(candidates, -1)  # a history for each candidate
        slow = {name: calls[name], "FuxiCTR's SDIM operations": lambda: theirs(asked[0], each, masks)}
        rows += paired(slow, against=name, rounds=max(rounds // 4, 1), warmup=1)
    return rows


@torch.no_grad()
def _lengths(length: int, dim: int, candidates: int, rounds: int) -> list[BenchRow]:
    """Time the same query after histories of other lengths."""
    asked, sdim = torch.randn(1, candidates, dim), SDIM(dim)
    names = {size: f"SDIM query after {size} events" for size in (length, length // 16, length * 16)}
    calls = {name: _query(sdim, asked, torch.randn(1, size, dim)) for size, name in names.items()}
    return paired(calls, against=names[length], rounds=rounds)


def _query(sdim: SDIM, asked: Tensor, events: Tensor, known: bool = False) -> Callable[[], object]:
    buckets = sdim.encode(events)
    signatures = sdim.signatures(asked) if known else None

    def call() -> object:
        with torch.no_grad():
            return sdim.query(asked, buckets, signatures)

    return call


@torch.no_grad()
def _encoding(console: Console, length: int, dim: int, rounds: int) -> list[BenchRow]:
    sdim, events = SDIM(dim), torch.randn(1, length, dim)
    name = f"encode {length} events, D = {dim}"
    times = seconds({name: lambda: sdim.encode(events)}, rounds=rounds)[name] * 1e3
    console.log(f"{name}: {float(times.min()):.2f} ms at best")
    return [against_unit(name, times.tolist(), "1 ms")]


def _training(length: int, dim: int, rounds: int) -> list[BenchRow]:
    """Time steps of whole models, forward, backward and SGD: candidates by request, then one for each history."""
    rows = []
    for said, batch, candidates in (("by request, 4 x 16 candidates", 4, 16), ("ungrouped, 16 x 1", 16, 1)):
        history = torch.randint(ITEMS, (batch, length))
        asked = torch.randint(ITEMS, (batch, candidates))
        label = torch.randint(2, (batch, candidates)).float()
        calls = {
            f"training step, {pooling}, {said}": _step(name, options, dim, asked, history, label)
            for pooling, name, options in (
                ("SDIM", "sdim", {}),
                ("SDIM rule 'kernel'", "sdim", {"rule": "kernel"}),
                ("average pooling", "average", {}),
                ("DIN", "din", {}),
                ("DIN as usually written", "published", {}),
            )
        }
        rows += paired(calls, against=next(iter(calls)), rounds=rounds, warmup=1)
    return rows


def _step(
    pooling: str, options: dict[str, Any], dim: int, asked: Tensor, history: Tensor, label: Tensor
) -> Callable[[], object]:
    own = "din" if pooling == "published" else pooling
    model = BehaviorModel(nn.Embedding(ITEMS, dim), pooling=own, **options)
    if pooling == "published":
        model.pooling = PublishedDIN(dim)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step() -> None:
        nn.functional.binary_cross_entropy_with_logits(model(asked, history), label).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def against_unit(name: str, values: list[float], unit: str) -> BenchRow:
    """Make a row of values in a unit: their median, 10th and 90th percentile."""
    low, middle, high = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    ).tolist()  # fmt: skip
    return BenchRow(name, middle, low, high, unit)
