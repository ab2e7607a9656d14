"""Leave-one-out splits and windows of them against loops in plain Python."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from data.next_items import NextItems
from data.schema import DataError
from data.sequences import Sequences
from tests.globo_clicks import write_clicks


def sequences_of(users):
    """Sequences of lists of items."""
    items = np.array([item for events in users for item in events], np.int64)
    offsets = np.cumsum([0, *map(len, users)])
    return Sequences(items, np.full(len(items), 5, np.int8), offsets, 1 + int(items.max(initial=0)))


def core_of(users, core):
    """Users without what occurs too rarely, until nothing does."""
    while True:
        counts = {item: sum(events.count(item) for events in users) for events in users for item in events}
        kept = [[item for item in events if counts[item] >= core] for events in users if len(events) >= core]
        if kept == users:
            return users
        users = kept


def rows_of(batch):
    return [row[mask].tolist() for row, mask in zip(batch.history, batch.mask, strict=True)]


LISTS = st.lists(st.lists(st.integers(0, 9), max_size=14), min_size=1, max_size=8)


@settings(max_examples=60)
@given(users=LISTS, core=st.integers(3, 5))
def test_the_core_and_its_splits(users, core):
    kept = core_of(users, core)
    if not kept:
        with pytest.raises(DataError, match=f"no item occurs {core} times"):
            NextItems.of(sequences_of(users), core)
        return
    events = NextItems.of(sequences_of(users), core)
    assert [events.values[part].tolist() for part in np.split(events.items, events.offsets[1:-1])] == kept
    for split, back in (("valid", 2), ("test", 1)):
        assert events.values[events.targets(split).numpy()].tolist() == [part[-back] for part in kept]
        known = [(user, item) for user, part in enumerate(kept) for item in part[:-back]]
        assert [(user, events.values[item]) for user, item in events.known(split).T.tolist()] == known
        batch = events.histories(split, torch.arange(len(kept)), 4)
        assert [events.values[row].tolist() for row in rows_of(batch)] == [part[:-back][-4:] for part in kept]
        assert not batch.history[~batch.mask].any()
    train = [item for part in kept for item in part[:-2]]
    assert events.counts().tolist() == [train.count(item) for item in events.values]


@settings(max_examples=60)
@given(users=LISTS, length=st.integers(1, 9), size=st.integers(1, 5), seed=st.integers(0, 9))
def test_every_event_but_the_first_is_predicted_once(users, length, size, seed):
    try:
        events = NextItems.of(sequences_of(users), 3)
    except DataError:
        return
    batches = list(events.batches(length, size, seed, 1))
    assert len(batches) == events.num_batches(length, size)
    found = []
    for batch in batches:
        assert len(batch.history) <= size
        assert all(mask.tolist() == sorted(mask.tolist(), reverse=True) for mask in batch.mask)
        found += zip(batch.users.tolist(), rows_of(batch), strict=True)
    expected = []
    for user, part in enumerate(np.split(events.items, events.offsets[1:-1])):
        train = part[:-2].tolist()
        expected += [(user, train[max(end - length - 1, 0) : end]) for end in range(len(train), 1, -length)]
        expected += [(user, train)] * (len(train) == 1)
        predicted = sum(len(window) - 1 for owner, window in expected if owner == user)
        assert predicted == len(train) - 1
    assert sorted(found) == sorted(expected)
    again = list(events.batches(length, size, seed, 1, start=1))
    assert all(torch.equal(a.history, b.history) for a, b in zip(batches[1:], again, strict=True))


def test_shares_are_the_batch():
    events = NextItems.of(sequences_of([[0, 1, 2, 0, 1, 2]] * 5), 3)
    whole = list(events.batches(2, 3, 0, 0))
    parts = [list(events.batches(2, 3, 0, 0, share=(part, 4))) for part in range(4)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sorted(row for share in shares for row in rows_of(share) if row) == sorted(rows_of(batch))


def test_epochs_are_shuffled_anew():
    events = NextItems.of(sequences_of([[n % 7 for n in range(n, n + 9)] for n in range(30)]), 3)
    first, second = ([b.users.tolist() for b in events.batches(4, 8, 0, epoch)] for epoch in (0, 1))
    assert first != second


@pytest.mark.parametrize(
    ("core", "message"), [(2, "core must be 3 or more"), (99, "no user and no item occurs 99 times")]
)
def test_a_core_that_cannot_be_is_said(core, message):
    with pytest.raises(DataError, match=message):
        NextItems.of(sequences_of([[0, 1, 2, 0, 1, 2]] * 3), core)
    with pytest.raises(DataError, match="not of 'train'"):
        NextItems.of(sequences_of([[0, 1, 2, 0, 1, 2]] * 3), 3).targets("train")


def test_globo_is_the_first_clicks_in_their_order(tmp_path):
    (tmp_path / "globo").mkdir()
    write_clicks(tmp_path / "globo")
    sequences = data.load_sequences("globo", root=tmp_path)
    rows = pl.read_parquet(tmp_path / "globo" / "clicks.parquet").rows()
    clicks = sorted((user, time, article) for user, article, time, *_ in rows if article < 112)
    firsts = {}
    for user, _, article in clicks:
        firsts.setdefault(user, {}).setdefault(article)
    assert [sequences.values[part].tolist() for part in np.split(sequences.items, sequences.offsets[1:-1])] == [
        list(articles) for articles in firsts.values()
    ]
    events = NextItems.of(sequences, 3)
    assert events.content is not None
    assert np.array_equal(events.content[:, 0], events.values)


@pytest.mark.dataset("ml-1m")
def test_movielens_has_the_published_size(dataset):
    """3,416 items of 6,040 users (Kang and McAuley 2018, table II)."""
    events = NextItems.of(data.load_sequences("ml-1m", root=dataset.parent))
    assert (events.num_items, events.num_users) == (3416, 6040)
