"""Sequences of MovieLens-1M against a loop over the rows."""

import numpy as np
import polars as pl
import pytest

from data.readers.sequences import read
from data.schema import DataError
from data.sequences import Sequences, batches, examples


@pytest.fixture
def folder(tmp_path):
    """Five users of 1 to 20 films, rows in any order."""
    draw = np.random.default_rng(0)
    rows = [
        {"user_id": 10 * user, "item_id": int(7 * film), "rating": int(draw.integers(1, 6)), "position": place}
        for user, count in enumerate((20, 1, 11, 5, 10))
        for place, film in enumerate(draw.permutation(60)[:count])
    ]
    pl.DataFrame(rows).sample(fraction=1, shuffle=True, seed=1).write_parquet(tmp_path / "ratings.parquet")
    pl.DataFrame({"user_id": [0]}).write_parquet(tmp_path / "users.parquet")
    return tmp_path


def by_hand(folder):
    """user -> [(film, rating)] in the order of time, films and users numbered by their ids."""
    rows = pl.read_parquet(folder / "ratings.parquet").sort("user_id", "position").rows(named=True)
    films = {film: number for number, film in enumerate(sorted({row["item_id"] for row in rows}))}
    users: dict[int, list[tuple[int, int]]] = {}
    for row in rows:
        users.setdefault(row["user_id"] // 10, []).append((films[row["item_id"]], row["rating"]))
    return users


def split_of(place: int, count: int) -> str:
    return "train" if 10 * place < 8 * count else "valid" if 10 * place < 9 * count else "test"


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_likes_and_their_histories(folder, split):
    sequences = read(folder)
    expected = [
        (user, film, float(rating > 3), [f for f, _ in events[max(0, place - 4) : place]])
        for user, events in by_hand(folder).items()
        for place, (film, rating) in enumerate(events)
        if rating != 3 and split_of(place, len(events)) == split
    ]
    found = []
    for batch in batches(sequences, examples(sequences, "like", split), batch_size=3, length=4):
        assert batch.history.shape[1] == 4
        assert not batch.history[~batch.mask].any()
        for i in range(len(batch.label)):
            history = batch.history[i][batch.mask[i]].tolist()
            found.append((int(batch.users[i]), int(batch.candidates[i]), float(batch.label[i]), history))
    assert found == expected


def test_next_films_and_their_negatives(folder):
    sequences, users = read(folder), by_hand(folder)
    in_train = {
        f for events in users.values() for p, (f, _) in enumerate(events) if split_of(p, len(events)) == "train"
    }
    rows = examples(sequences, "next", "train", seed=1)
    assert len(rows) == 2 * sum(split_of(p, len(e)) == "train" for e in users.values() for p in range(len(e)))
    for i in range(0, len(rows), 2):
        own = [film for film, _ in users[int(rows.users[i])]]
        assert rows.labels[i : i + 2].tolist() == [1, 0]
        assert rows.candidates[i] == own[rows.events[i] - sequences.offsets[rows.users[i]]]
        assert rows.candidates[i + 1] not in own
        assert rows.candidates[i + 1] in in_train
    again, other = examples(sequences, "next", "train", seed=1), examples(sequences, "next", "train", seed=2)
    np.testing.assert_array_equal(rows.candidates, again.candidates)
    assert (rows.candidates != other.candidates).any()


def test_shuffled_batches_hold_every_row_once(folder):
    sequences = read(folder)
    rows = examples(sequences, "next", "test")
    shuffled = list(batches(sequences, rows, 4, 8, seed=3))
    assert sorted(c for b in shuffled for c in b.candidates.tolist()) == sorted(rows.candidates.tolist())
    same = list(batches(sequences, rows, 4, 8, seed=3))
    assert all(a.history.equal(b.history) for a, b in zip(shuffled, same, strict=True))


def test_bad_input(folder):
    sequences = read(folder)
    for task, split in (("buy", "train"), ("like", "all")):
        with pytest.raises(DataError, match="like, next"):
            examples(sequences, task, split)
    every = Sequences(np.array([0, 1]), np.array([5, 5]), np.array([0, 2]), 2)
    with pytest.raises(DataError, match="user 0 has rated nearly every film"):
        examples(every, "next", "train")


@pytest.mark.dataset("ml-1m")
def test_the_published_data(dataset):
    sequences = read(dataset)
    assert (len(sequences.items), len(sequences.offsets) - 1, sequences.num_items) == (1_000_209, 6_040, 3_706)
    rows = sum(len(examples(sequences, "like", split)) for split in ("train", "valid", "test"))
    assert rows == 739_012  # as data.ml_1m counts them
    assert np.diff(sequences.offsets).max() == 2_314
