"""The behavior store against encoding its events from nothing, and what it refuses."""

import copy
import random
import resource
import signal
import threading
from multiprocessing.connection import wait
from pathlib import Path

import lmdb
import numpy as np
import pytest
import redis
import torch

import embcomp
from embcomp.sdim import (
    SDIM,
    BehaviorEncoder,
    BehaviorStore,
    CorruptRecord,
    StampMismatch,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from embcomp.sdim.encoder import Events
from embcomp.sdim.history import History
from experiments.processes.processes import start_context
from tests.sdim import writers
from tests.sdim.writers import DIM, make_encoder

TOLERANCE = {"float32": 1e-4, "float16": 0.03, "int8": 0.3}


def from_nothing(encoder: BehaviorEncoder, events: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    vectors = encoder.items(torch.tensor(events, dtype=torch.int64))
    sums, counts = encoder.sdim.encode(vectors.view(1, -1, DIM))
    return sums[0], counts[0]


def check(store: BehaviorStore, user: str, events: list[int], tolerance: float = 1e-4) -> None:
    assert store.events(user) == events
    buckets = store.fetch([user])
    sums, counts = from_nothing(store.encoder, events)
    assert torch.equal(buckets.counts[0], counts)
    torch.testing.assert_close(buckets.sums[0], sums, atol=tolerance, rtol=0)
    assert not buckets.sums[0][counts == 0].any()


def raw(store: BehaviorStore, user: str) -> bytes:
    return store._backend.read([b"u:" + user.encode()])[0]


def put(store: BehaviorStore, user: str, record: bytes) -> None:
    key = b"u:" + user.encode()
    store._backend.update([key], lambda _: {key: record})


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_appends_add_up_and_old_events_expire(location, encoder, dtype):
    draw = random.Random(0)
    truth: dict[str, list[int]] = {"ann": [], "bob": [], "7": []}
    with BehaviorStore(location, encoder, max_events=20, dtype=dtype) as store:
        for _ in range(40):
            user = draw.choice(list(truth))
            items = [draw.randrange(50) for _ in range(draw.choice([0, 1, 1, 2, 5, 30]))]
            truth[user] = [*truth[user], *items][-20:]
            assert store.append(int(user) if user == "7" else user, items) == len(truth[user])
        for user, events in truth.items():
            check(store, user, events, TOLERANCE[dtype])
    with BehaviorStore(location, encoder, dtype=dtype) as again:
        for user, events in truth.items():
            check(again, user, events, TOLERANCE[dtype])


def test_many_users_at_once_and_the_unknown(store):
    assert store.append_many({"ann": [1, 2], "bob": torch.tensor([3])}) == {"ann": 2, "bob": 1}
    buckets = store.fetch(["bob", "nobody", "ann"])
    assert buckets.counts[:, 0].sum(-1).tolist() == [1, 0, 2]
    assert not buckets.sums[1].any()
    assert store.events("nobody") == []
    assert store.fetch([]).sums.shape == (0, 4, 8, DIM)
    for one in ("ann", b"ann", 7):  # "ann" is an iterable of the users "a", "n" and "n"
        with pytest.raises(ValueError, match=r"users must be a list of users, got .*: give"):
            store.fetch(one)
    with pytest.raises(ValueError, match="events must map users to their items, got str"):
        store.append_many("ann")
    candidates = torch.randn(3, 5, DIM)
    pooled = store.encoder.sdim.query(candidates, buckets)
    direct = store.encoder.sdim(candidates[2:], store.encoder.items(torch.tensor([[1, 2]])))
    torch.testing.assert_close(pooled[2:], direct)
    store.forget("ann")
    store.forget("nobody")
    assert store.events("ann") == []


def test_smaller_types_are_smaller(encoder):
    history = History.encode(encoder, np.arange(100))
    sizes = [len(history.to_bytes(dtype, "ann")) for dtype in ("float32", "float16", "int8")]
    occupied = int((history.counts > 0).sum())
    assert sizes[0] - sizes[1] == 2 * DIM * occupied
    assert sizes[1] - sizes[2] == (DIM - 4) * occupied  # less a scale for each bucket
    few = History.encode(encoder, np.arange(1))
    assert len(few.to_bytes("float32", "ann")) < 300  # empty buckets take no room but that of their counts


def test_rounding_does_not_add_up(tmp_path, encoder):
    """Three hundred events through a ring of twenty, in int8."""
    with BehaviorStore(tmp_path, encoder, max_events=20, dtype="int8") as store:
        for start in range(0, 300, 5):
            store.append("ann", range(start, start + 5))
        check(store, "ann", list(range(280, 300)), TOLERANCE["int8"])


def test_an_append_with_its_token_counts_once(store):
    for _ in range(2):
        assert store.append("ann", [1, 2], token="order 66") == 2
    assert store.append("ann", [1, 2]) == 4


# --- processes that die, servers that go away ---


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
    with pytest.warns(RuntimeWarning, match=r"throws users away .*allkeys-lru.*noeviction"):
        BehaviorStore(redis_server.url, encoder).close()


# --- versions ---


def test_another_model_is_refused_and_taken_over(location, encoder):
    new = make_encoder("2", seed=1, num_items=100)
    with BehaviorStore(location, encoder) as old:
        for user in range(40):
            old.append(user, [user, 1, 2_000])  # the new model has no item 2 000
    for other in (new, make_encoder("1", seed=1), make_encoder("2")):
        with pytest.raises(StampMismatch, match=r"holds '1, SDIM dense 8 x 12 in groups of 3.*reencode=True"):
            BehaviorStore(location, other)
    with BehaviorStore(location, new, reencode=True) as store:
        old = copy.copy(store)  # a server that goes on with the old model
        old.encoder, old._stamp = encoder, encoder.stamp.encode()
        for call in (lambda: old.append(1, [2]), lambda: old.fetch([1]), lambda: old.forget(1), old.check):
            with pytest.raises(StampMismatch, match="holds '2, SDIM"):
                call()
        check(store, "3", [3, 1])  # in memory, at the first read
        assert History.from_bytes(raw(store, "3"), "3").events.tolist() == [3, 1, 2_000]
        store.append(4, [5])  # for good, at the first write
        assert store.reencode_in_background().result(timeout=60) == 39
        assert store.reencode() == 0
        check(store, "4", [4, 1, 5])
        for user in range(40):
            assert History.from_bytes(raw(store, str(user)), str(user)).stamp == store._digest


def test_background_work_reports_its_error_and_ends_with_the_store(store):
    store.append("ann", [1])
    put(store, "bob", b"nonsense")
    with pytest.raises(CorruptRecord, match="bob"):
        store.reencode_in_background().result(timeout=60)


# --- what is refused leaves everything as it was ---


class Unfit(BehaviorEncoder):
    """Item 13 has no finite vector."""

    def __init__(self) -> None:
        items = torch.randn(100, DIM)
        items[13] = float("nan")
        super().__init__(SDIM(DIM, 12), items, "1")


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([1, 13], ValueError, "item 13 has a vector that is not finite"),
        ([1, 100], IndexError, "item 100 is out of range: the model has 100 items"),
        ([-1], IndexError, "item -1 is out of range"),
        ([1.5], ValueError, "integer ids, got float64"),
        ([[1]], ValueError, r"list of integer ids, got int64 \[1, 1\]"),
    ],
)
def test_bad_events_are_not_written(tmp_path, items, error, message):
    with BehaviorStore(tmp_path, Unfit()) as store:
        store.append("ann", [5])
        before = raw(store, "ann")
        with pytest.raises(error, match=message):
            store.append("ann", items)
        with pytest.raises(error, match=message):
            store.append_many({"bob": [1], "ann": items})
        assert raw(store, "ann") == before
        assert raw(store, "bob") is None


def test_bad_users_and_settings(tmp_path, encoder):
    with BehaviorStore(tmp_path, encoder) as store:
        for user in (True, 1.0, None, "", "x" * 401):
            with pytest.raises(ValueError, match="user"):
                store.append(user, [1])
        with pytest.raises(ValueError, match="named twice"):
            store.append_many({7: [1], "7": [2]})
        with pytest.raises(StoreError, match="cannot be opened"):
            BehaviorStore(tmp_path, encoder)
    for wrong in ({"max_events": 0}, {"max_events": 2**16}, {"dtype": "int4"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BehaviorStore(tmp_path, encoder, **wrong)
    with pytest.raises(ValueError, match="version is empty"):
        BehaviorEncoder(SDIM(8), torch.zeros(2, 8), "")
    with pytest.raises(ValueError, match="width 4"):
        BehaviorEncoder(SDIM(8), torch.nn.Embedding(2, 4), "1")


def test_a_damaged_record_is_named(store):
    store.append_many({"ann": [1], "bob": [2]})
    whole = raw(store, "ann")
    for damaged in (whole[:-1], whole[:20], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        put(store, "ann", damaged)
        with pytest.raises(CorruptRecord, match="'ann'"):
            store.fetch(["bob", "ann"])
        with pytest.raises(CorruptRecord, match="'ann'"):
            store.append("ann", [3])
    check(store, "bob", [2])
    store.forget("ann")
    assert store.append("ann", [3]) == 1


def test_every_bit_of_a_record_counts(encoder):
    whole = History.encode(encoder, np.arange(9), [b"12345678"]).to_bytes("int8", "ann")
    assert History.from_bytes(whole, "ann").events.tolist() == list(range(9))
    for bit in range(0, 8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptRecord, match="'ann'"):
            History.from_bytes(bytes(damaged), "ann")
    with pytest.raises(CorruptRecord, match=r"store here, user 'bob': .*belongs to another user"):
        History.from_bytes(whole, "bob", "store here, ")


def test_records_of_embcomp_0_1_are_read_and_checked(store):
    """Its header was outside of the checksum: what of it can be checked against the rest is."""
    whole = (Path(__file__).parents[1] / "fuzz" / "embcomp-0.1" / "record").read_bytes()
    history = History.from_bytes(whole, "anybody")
    assert history.events.tolist() == [3, 4, 5]
    put(store, "ann", whole)  # of another model: encoded anew
    check(store, "ann", [3, 4, 5])
    assert store.append("ann", [6]) == 4
    assert raw(store, "ann")[4] == 2
    for bit in range(8 * 24):  # all but the stamp, which a damaged record bears as one of another model
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = History.from_bytes(bytes(damaged), "ann")
        except CorruptRecord:
            continue
        assert found.events.tolist() == [3, 4, 5]
        np.testing.assert_array_equal(found.sums, history.sums)
        assert 20 <= bit // 8 < 24  # how many changes there were: when the sums are made anew


def test_an_open_id_space_goes_to_the_last_id(location):
    items = embcomp.nn.CompressedEmbedding(None, DIM, embcomp.HashingTrick(rows=9))
    with BehaviorStore(location, BehaviorEncoder(SDIM(DIM, 12), items, "1")) as store:
        assert store.append("ann", [2**63 - 1, 0]) == 2
        assert store.events("ann") == [2**63 - 1, 0]
        with pytest.raises(IndexError, match="item -1 is out of range"):
            store.append("ann", [-1])


def test_a_store_of_embcomp_0_1_is_taken_over(tmp_path, encoder):
    """It has no sum of its keys, which another writer of that version may leave behind at any time."""
    with BehaviorStore(tmp_path, encoder) as store:
        store.append_many({user: [user] for user in range(30)})

    def as_before(change) -> None:
        with lmdb.open(str(tmp_path)) as env, env.begin(write=True) as transaction:
            change(transaction)

    as_before(lambda transaction: transaction.delete(b"\0keys"))
    (tmp_path / "embcomp-store").unlink()
    for user in (3, 4):
        with BehaviorStore(tmp_path, encoder) as store:
            assert store.events(user) == [user]
            store.append(user, [user])
            assert store.events(29) == [29]
        as_before(lambda transaction: transaction.put(b"u:31", transaction.get(b"u:3")))
    with BehaviorStore(tmp_path, encoder) as store:
        assert store.events(4) == [4, 4]


def test_a_store_that_lost_its_file_or_a_user_is_no_new_store(tmp_path, encoder):
    with BehaviorStore(tmp_path, encoder) as store:
        store.append_many({user: [user] for user in range(30)})
    whole = (tmp_path / "data.mdb").read_bytes()
    at = whole.rindex(b"u:17")
    for damaged in (None, b"", whole[:9000], whole[: at + 2] + b"8" + whole[at + 3 :]):
        (tmp_path / "data.mdb").unlink()
        if damaged is not None:
            (tmp_path / "data.mdb").write_bytes(damaged)
        with pytest.raises(StoreDamaged, match=r"data\.mdb is damaged"):
            BehaviorStore(tmp_path, encoder)
    (tmp_path / "data.mdb").write_bytes(whole)
    with BehaviorStore(tmp_path, encoder) as store:
        assert store.events(17) == [17]


def test_sums_beyond_float16_are_refused(tmp_path):
    large = BehaviorEncoder(SDIM(DIM, 12), torch.full((4, DIM), 40_000.0), "1")
    with BehaviorStore(tmp_path, large, dtype="float16") as store:
        store.append("ann", [1])
        with pytest.raises(ValueError, match="beyond the range of float16"):
            store.append("ann", [2])
        assert store.events("ann") == [1]


def fill(store: BehaviorStore) -> dict[int, list[int]]:
    written = {}
    try:
        for user in range(5_000):
            store.append(user, range(300))
            written[user] = list(range(300))
    except StoreFull:
        return written
    raise AssertionError("it never was full")


def test_a_full_map_and_a_full_disk(tmp_path, encoder):
    with BehaviorStore(tmp_path / "map", encoder, max_bytes=2**17) as store:
        assert fill(store)
    with BehaviorStore(tmp_path / "map", encoder, max_bytes=2**20) as store:
        assert store.append("ann", [1]) == 1
        check(store, "0", list(range(300)))
    with BehaviorStore(tmp_path / "disk", encoder) as store:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, hard))
        try:
            written = fill(store)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        check(store, str(max(written)), list(range(300)))
        assert store.append(max(written) + 1, [1]) == 1


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


def test_events_arrive_while_all_are_encoded_anew(location, encoder):
    with BehaviorStore(location, encoder) as old:
        old.append_many({user: [user, 1] for user in range(60)})
    with BehaviorStore(location, make_encoder("2", seed=1), reencode=True) as store:
        future = store.reencode_in_background()
        for user in range(60):
            store.append(user, [2])
        assert 0 <= future.result(timeout=60) <= 60
        for user in range(60):
            check(store, str(user), [user, 1, 2])


def test_a_server_without_memory(redis_server, encoder):
    with BehaviorStore(redis_server.url, encoder) as store:
        store.append("ann", [1])
        redis_server.client.config_set("maxmemory", 1)
        with pytest.raises(StoreFull, match="takes no more"):
            store.append("ann", [2])
        redis_server.client.config_set("maxmemory", 0)
        check(store, "ann", [1])


def test_the_encoder_is_saved_whole_or_not_at_all(tmp_path, encoder):
    path = tmp_path / "encoder.pt"
    encoder.save(path)
    loaded = BehaviorEncoder.load(path)
    assert loaded.stamp == encoder.stamp
    ids = np.array([3, 1, 4999])
    for ours, theirs in zip(loaded(ids), encoder(ids), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.pt"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged, or no file of embcomp"):
        BehaviorEncoder.load(path)
    assert isinstance(encoder(ids), Events)
