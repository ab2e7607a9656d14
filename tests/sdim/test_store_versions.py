"""Stores of another model and of earlier releases are taken over."""

import copy
from pathlib import Path

import lmdb
import numpy as np
import pytest

from embcomp.sdim import (
    BehaviorStore,
    CorruptRecord,
    StampMismatch,
)
from embcomp.sdim.history import History
from tests.sdim.stores import check, put, raw
from tests.sdim.writers import make_encoder


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
