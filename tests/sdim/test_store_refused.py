"""What a behavior store refuses, and that it leaves all as it was."""

import resource

import numpy as np
import pytest
import torch

from embcomp.sdim import (
    SDIM,
    BehaviorEncoder,
    BehaviorStore,
    CorruptRecord,
    StoreDamaged,
    StoreError,
    StoreFull,
)
from embcomp.sdim.history import History
from tests.sdim.stores import check, put, raw
from tests.sdim.writers import DIM


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
