"""Writers side by side, processes that die, servers that go away."""

import signal
import threading
from multiprocessing.connection import wait

import pytest
import redis

from embcomp.sdim import (
    BehaviorStore,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from experiments.processes.processes import start_context
from tests.sdim import writers
from tests.sdim.stores import check
from tests.sdim.writers import make_encoder


def test_killed_and_concurrent_writers_lose_nothing(location, encoder):
    """Three processes write the same user; one is killed between or within its writes."""
    context, ends, processes = start_context(), [], []
    for first, count in ((1000, 900), (2000, 25), (3000, 25)):
        end, said = context.Pipe(duplex=False)
        processes.append(context.Process(target=writers.write, args=(location, first, count, said)))
        processes[-1].start()
        said.close()  # so that the end of the process is the end of the pipe
        ends.append(end)
    acknowledged: list[int] = []
    while ends:
        for end in wait(ends):
            try:
                acknowledged.append(end.recv())
            except (EOFError, OSError):
                ends.remove(end)
                end.close()
                continue
            if acknowledged[-1] == 1008:
                processes[0].kill()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0, 0]
    with BehaviorStore(location, encoder) as store:
        events = store.events("shared")
        assert len(set(events)) == len(events)
        assert set(acknowledged) <= set(events)
        assert len(events) - len(acknowledged) <= 1  # what the killed one wrote and could not say
        assert [sum(1 for e in events if e // 1000 == w) for w in (2, 3)] == [25, 25]
        assert all(sorted(mine) == mine for w in (1, 2, 3) for mine in [[e for e in events if e // 1000 == w]])
        check(store, "shared", events)


def test_threads_share_a_store(store):
    def write(first: int) -> None:
        for item in range(first, first + 5):
            store.append("ann", [item])

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(store.events("ann")) == [first + i for first in (0, 100, 200) for i in range(5)]
    check(store, "ann", store.events("ann"))


def test_a_server_that_was_killed_has_everything_and_is_found_again(redis_server, encoder):
    with BehaviorStore(redis_server.url, encoder, timeout=0.2) as store:
        store.append("ann", [1, 2, 3])
        redis_server.kill()
        for call in (lambda: store.append("ann", [4]), lambda: store.fetch(["ann"]), store.check):
            with pytest.raises(StoreUnavailable, match="does not answer"):
                call()
        redis_server.start()
        check(store, "ann", [1, 2, 3])
        assert store.append("ann", [4]) == 4
    with pytest.raises(StoreUnavailable, match="does not answer"):
        BehaviorStore("redis://127.0.0.1:1", encoder, timeout=0.1)


def test_a_lost_reply_is_retried_and_counts_once(redis_server, encoder, monkeypatch):
    execute, lost = redis.client.Pipeline.execute, []

    def loses_the_first_reply(self, *args):
        result = execute(self, *args)
        if not lost:
            lost.append(result)
            raise redis.exceptions.ConnectionError("gone")
        return result

    with BehaviorStore(redis_server.url, encoder) as store:
        monkeypatch.setattr(redis.client.Pipeline, "execute", loses_the_first_reply)
        assert store.append("ann", [1, 2]) == 2
        assert lost
        check(store, "ann", [1, 2])


def test_a_server_that_may_lose_appends_is_warned_about(redis_server, encoder):
    redis_server.client.config_set("appendfsync", "everysec")
    with pytest.warns(RuntimeWarning, match="appendfsync always"):
        BehaviorStore(redis_server.url, encoder).close()
    redis_server.client.config_set("appendfsync", "always")
    redis_server.client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.warns(RuntimeWarning, match=r"deletes users .*allkeys-lru.*noeviction"):
        BehaviorStore(redis_server.url, encoder).close()


def test_a_store_that_another_process_let_grow_and_a_closed_one(tmp_path, encoder):
    with BehaviorStore(tmp_path / "store", encoder, max_bytes=2**17) as store:
        store.append("ann", [1])
        other = start_context().Process(target=writers.fill, args=(str(tmp_path / "store"),))
        other.start()
        other.join()
        assert other.exitcode == 0
        for call in (lambda: store.fetch(["ann"]), lambda: store.append("ann", [2]), store.reencode):
            with pytest.raises(StoreFull, match=f"grown beyond max_bytes={2**17} in another process"):
                call()
    for call in (lambda: store.fetch(["ann"]), lambda: store.append("ann", [2])):
        with pytest.raises(StoreError, match="closed"):
            call()
    with BehaviorStore(tmp_path / "store", encoder) as store:
        assert store.events("ann") == [1]
        assert store.append(99, [1]) == 301


def test_stores_of_one_server_are_told_apart_by_their_prefix(redis_server, encoder):
    with (
        BehaviorStore(redis_server.url, encoder, prefix="shop[1]*:") as one,
        BehaviorStore(redis_server.url, make_encoder("2"), prefix="shop1x:") as other,
    ):
        one.append_many({"ann": [1], "bob": [2]})
        other.append("ann", [7, 8])
    with BehaviorStore(redis_server.url, make_encoder("3"), prefix="shop[1]*:", reencode=True) as one:
        assert one.reencode() == 2
    with BehaviorStore(redis_server.url, make_encoder("2"), prefix="shop1x:") as other:
        check(other, "ann", [7, 8])


def test_a_server_without_memory(redis_server, encoder):
    with BehaviorStore(redis_server.url, encoder) as store:
        store.append("ann", [1])
        redis_server.client.config_set("maxmemory", 1)
        with pytest.raises(StoreFull, match="is full"):
            store.append("ann", [2])
        redis_server.client.config_set("maxmemory", 0)
        check(store, "ann", [1])
