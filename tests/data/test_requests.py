"""Requests against a loop over the events."""

import numpy as np
import polars as pl
import pytest
import torch

import data
from data.readers.sequences import synthetic
from data.requests import Requests
from data.sequences import Sequences, examples

SIZES = (20, 1, 11, 5, 33)


@pytest.fixture
def sequences():
    draw = np.random.default_rng(0)
    items = np.concatenate([draw.permutation(60)[:size] for size in SIZES])
    offsets = np.concatenate(([0], np.cumsum(SIZES)))
    return Sequences(items, draw.integers(1, 6, len(items)).astype(np.int8), offsets, 60)


@pytest.mark.parametrize("task", ["like", "next"])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("split", ["train", "test"])
def test_events_that_follow_each_other_share_the_history_before_the_first(sequences, task, size, split):
    rows = examples(sequences, task, split)
    wanted: dict[tuple[int, int], list[int]] = {}
    for place in range(len(rows)):
        user = int(rows.users[place])
        block = int(rows.events[place] - sequences.offsets[user]) // size
        wanted.setdefault((user, block), []).append(place)
    requests = Requests.of(sequences, rows, size, length=6)
    assert len(requests) == len(wanted)
    found = [(batch, i) for batch in requests.batches(3) for i in range(len(batch.users))]
    for (batch, i), places in zip(found, wanted.values(), strict=True):
        user, first = rows.users[places[0]], rows.events[places[0]]
        before = sequences.items[sequences.offsets[user] : first]
        assert batch.users[i] == user
        assert batch.before[i] == len(before)
        assert batch.history[i][batch.mask[i]].tolist() == before[-6:].tolist()
        assert not batch.history[i][~batch.mask[i]].any()
        assert batch.candidates[i][batch.asked[i]].tolist() == rows.candidates[places].tolist()
        assert batch.label[i][batch.asked[i]].tolist() == rows.labels[places].tolist()
        assert not batch.label[i][~batch.asked[i]].any()


def test_shuffled_batches_hold_every_request_once_and_go_on_anywhere(sequences):
    requests = Requests.of(sequences, examples(sequences, "next", "train"), 2, length=50)
    shuffled = list(requests.batches(4, seed=3, epoch=1))

    def seen(batches):
        return sorted((int(u), int(b)) for batch in batches for u, b in zip(batch.users, batch.before, strict=True))

    assert seen(shuffled) == seen(requests.batches(100))
    assert [len(batch.users) for batch in shuffled].count(4) == len(requests) // 4
    rest = list(requests.batches(4, seed=3, epoch=1, start=2))
    assert all(torch.equal(a.history, b.history) for a, b in zip(shuffled[2:], rest, strict=True))
    other = next(iter(requests.batches(4, seed=3, epoch=2)))
    assert not torch.equal(other.candidates, shuffled[0].candidates)


def test_films_have_the_first_of_their_genres(tmp_path):
    (tmp_path / "ml-1m").mkdir()
    ratings = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [5, 9, 9], "rating": [5, 1, 4], "position": [1, 0, 0]})
    ratings.write_parquet(tmp_path / "ml-1m" / "ratings.parquet")
    pl.DataFrame({"user_id": [1, 2]}).write_parquet(tmp_path / "ml-1m" / "users.parquet")
    made = data.load_sequences("ml-1m", root=tmp_path)
    assert made.items.tolist() == [1, 0, 1]
    assert made.categories is None
    films = "5::Caf\xe9 (1990)::Drama|War\n7::Other (1991)::Comedy\n9::Third::Comedy|Drama\n"
    (tmp_path / "ml-1m" / "movies.dat").write_bytes(films.encode("latin-1"))
    published = data.load_sequences("ml-1m", root=tmp_path).categories
    assert published is not None
    assert published.tolist() == [1, 0]  # Drama, Comedy
    table = pl.DataFrame({"item_id": [9, 5], "genres": ["War", "War|Drama"]})
    table.write_parquet(tmp_path / "ml-1m" / "items.parquet")
    assert data.load_sequences("ml-1m", root=tmp_path).categories.tolist() == [0, 0]
    with pytest.raises(data.DataError, match="no file"):
        data.load_sequences("ml-1m", root=tmp_path / "elsewhere")


def test_synthetic_sequences_are_the_clicks_of_the_generator():
    made = synthetic(num_rows=500, num_users=20, num_items=40, num_communities=4)
    assert (len(made.items), made.offsets[-1], made.num_items) == (500, 500, 40)
    assert set(made.ratings.tolist()) == {1, 5}
    assert made.categories is not None
    assert set(made.categories.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("parts", [2, 5])
def test_shares_hold_each_batch_together(sequences, parts):
    requests = Requests.of(sequences, examples(sequences, "next", "train"), 2, length=50)
    draws = [list(requests.batches(4, seed=3, epoch=1, share=(part, parts))) for part in range(parts)]
    for number, batch in enumerate(requests.batches(4, seed=3, epoch=1)):
        shares = [draw[number] for draw in draws]
        assert torch.equal(torch.cat([s.candidates[s.asked] for s in shares]), batch.candidates[batch.asked])
        assert torch.equal(torch.cat([s.label[s.asked] for s in shares]), batch.label[batch.asked])
        held = [s.history[i][s.mask[i]] for s in shares for i in range(len(s.users)) if s.asked[i].any()]
        assert torch.equal(torch.cat(held), batch.history[batch.mask])
        assert {s.total for s in shares} == {int(batch.asked.sum())}
