"""The behavior store under several clients, LMDB and Redis, for `python -m experiments bench sdim`."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from embcomp.sdim import SDIM, BehaviorEncoder, BehaviorStore
from embcomp.sdim.history import DTYPES, History
from experiments.bench import BenchRow
from experiments.errors import InputError

USERS = 64
ITEMS = 10_000


def store_rows(console: Console, *, length: int, dim: int, operations: int, clients: int) -> list[BenchRow]:
    """Time appends of one event and fetches of one user by independent processes; count the bytes of a user."""
    rows = _sizes(length, dim)
    with tempfile.TemporaryDirectory() as folder:
        rows += _clients(f"LMDB, {clients} clients", folder, length, dim, operations, clients)
    try:
        with _redis() as url:
            rows += _clients(f"Redis, {clients} clients", url, length, dim, operations, clients)
    except InputError as error:
        console.log(str(error))
    return rows


def _encoder(dim: int) -> BehaviorEncoder:
    return BehaviorEncoder(SDIM(dim), torch.randn(ITEMS, dim, generator=torch.Generator().manual_seed(0)), "bench")


def _sizes(length: int, dim: int) -> list[BenchRow]:
    """Compare the bytes of a user's record with those of the vectors of the user's events."""
    history = History.encode(_encoder(dim), np.random.default_rng(0).integers(ITEMS, size=length))
    vectors = 4 * length * dim
    shares = {dtype: len(history.to_bytes(dtype, "user")) / vectors for dtype in DTYPES}
    against = f"{vectors} bytes, the vectors of {length} events"
    return [BenchRow(f"bytes of a user, {dtype}", share, share, share, against) for dtype, share in shares.items()]


def _clients(name: str, location: str, length: int, dim: int, operations: int, clients: int) -> list[BenchRow]:
    with BehaviorStore(location, _encoder(dim), max_events=length) as store:
        draw = np.random.default_rng(1)
        for user in range(USERS):
            store.append(str(user), draw.integers(ITEMS, size=length))
    context = multiprocessing.get_context("fork")  # the store is closed, and a fork needs no second import of torch
    barrier, answers = context.Barrier(clients), context.Queue()
    arguments = (location, length, dim, operations, barrier, answers)
    processes = [context.Process(target=_client, args=(number, *arguments)) for number in range(clients)]
    for process in processes:
        process.start()
    received = [answers.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    rows = []
    for kind in ("append", "fetch"):
        times = np.concatenate([answer[kind][0] for answer in received]) * 1e3
        rate = clients * operations / max(answer[kind][1] for answer in received)
        rows.append(BenchRow(f"{kind}, {name}", rate, rate, rate, "1 per second"))
        p50, p99 = np.percentile(times, [50, 99]).tolist()
        rows += [BenchRow(f"{kind}, {name}, {p}", v, v, v, "1 ms") for p, v in (("p50", p50), ("p99", p99))]
    return rows


def _client(number: int, location: str, length: int, dim: int, operations: int, barrier: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    draw = np.random.default_rng([2, number])
    users, items = draw.integers(USERS, size=operations).astype(str), draw.integers(ITEMS, size=operations)
    timings = {}
    with BehaviorStore(location, _encoder(dim), max_events=length) as store:
        for kind in ("append", "fetch"):
            barrier.wait()
            times, begin = np.empty(operations), time.perf_counter()
            for index, (user, item) in enumerate(zip(users.tolist(), items.tolist(), strict=True)):
                start = time.perf_counter()
                if kind == "append":
                    store.append(user, [item])
                else:
                    store.fetch([user])
                times[index] = time.perf_counter() - start
            timings[kind] = times, time.perf_counter() - begin
    answers.put(timings)


@contextmanager
def _redis() -> Iterator[str]:
    """Start a Redis server that writes every change to the disk before it acknowledges it."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        raise InputError("no redis-server or valkey-server on PATH: Redis is left out")
    from redis import Redis
    from redis.exceptions import ConnectionError as NoConnection

    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        socket = Path(folder, "redis.sock")
        options = {"port": 0, "unixsocket": socket, "dir": folder, "save": "", "appendonly": "yes"}
        words = [
            word for key, value in {**options, "appendfsync": "always"}.items() for word in (f"--{key}", str(value))
        ]
        server = subprocess.Popen([binary, *words], stdout=subprocess.DEVNULL)
        try:
            for _ in range(200):
                try:
                    Redis.from_url(f"unix://{socket}").ping()
                    break
                except NoConnection:
                    time.sleep(0.05)
            yield f"unix://{socket}"
        finally:
            server.terminate()
            server.wait()
