import numpy as np
import polars as pl
import pytest

import data
from data import DataError
from data.readers import ml_1m

USERS = "1::F::1::10::48067\n2::M::56::16::70072\n"
USER_FIELDS = [line.split("::") for line in USERS.splitlines()]
# user::item::rating::time; user 1 rated 7 first.
RATINGS = "2::9::5::50\n1::8::4::30\n1::7::2::10\n1::6::3::20\n1::5::1::40\n2::5::4::60\n"


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    (folder / "users.dat").write_text(USERS)
    (folder / "ratings.dat").write_text(RATINGS)
    return folder


@pytest.mark.dataset("ml-1m")
def test_known_figures(dataset, tmp_path):
    clicks = data.load("ml-1m", folder=dataset, cache=tmp_path)
    assert sum(clicks.num_rows(split) for split in clicks.splits) == 739_012
    sizes = [feature.num_embeddings for feature in clicks.schema.features]
    assert sizes == [6040, 3668, 2, 7, 21, 3439]
    assert sum(sizes) == 13_177
    assert clicks.schema.feature_names == ["user", "item", "gender", "age", "occupation", "zip"]
    assert clicks.schema.group == "user"
    ratings = pl.read_parquet(dataset / "ratings.parquet")
    positive = sum(clicks.split(split).select(pl.col("label").sum()).collect().item() for split in clicks.splits)
    assert positive == ratings.filter(pl.col("rating") >= 4).height
    # Ids mean what the vocabulary says: compare every row with a join of the source.
    users = pl.read_parquet(dataset / "users.parquet").with_columns(pl.col("age", "occupation").cast(pl.String))
    rows = pl.concat([clicks.split(split) for split in clicks.splits]).collect()
    for name in clicks.schema.feature_names:
        vocabulary = clicks.vocabulary(name)
        assert vocabulary.n_unique() == len(vocabulary)
        rows = rows.with_columns(vocabulary.gather(rows[name]).alias(name))
    rows = rows.with_columns(pl.col("user", "item").cast(pl.Int32))
    truth = ratings.filter(pl.col("rating") != 3).join(users, on="user_id")
    truth = truth.select(pl.col("rating").gt(3).cast(pl.Float32), "user_id", "item_id", pl.col(*users.columns[1:]))
    truth.columns = rows.columns
    assert rows.sort("user", "item").equals(truth.sort("user", "item"))


@pytest.mark.dataset("ml-1m")
def test_published_format_equals_parquet(dataset):
    lines = (dataset / "ratings_head.dat").read_text().splitlines()
    from_text = ml_1m.read_ratings(dataset / "ratings_head.dat").drop("position").collect()
    assert len(from_text) == len(lines) == 2_000
    assert from_text.rows() == [tuple(int(field) for field in line.split("::")[:3]) for line in lines]
    from_parquet = ml_1m.read_ratings(dataset / "ratings.parquet").drop("position").collect()
    assert from_text.join(from_parquet, on=["user_id", "item_id", "rating"], how="anti").is_empty()


def test_published_files_make_the_same_clicks_as_parquet(published, tmp_path):
    rng = np.random.default_rng(0)
    ratings = []  # user, item, rating, time, position
    for user in (1, 2):
        times = np.sort(rng.permutation(100)[:30]).tolist()
        items = (rng.permutation(30) + 1).tolist()
        ratings += [(user, items[i], int(rng.integers(1, 6)), times[i], i) for i in range(30)]
    rng.shuffle(ratings)
    (published / "ratings.dat").write_text("".join("::".join(map(str, rating[:4])) + "\n" for rating in ratings))
    parquet = tmp_path / "parquet"
    parquet.mkdir()
    columns = ["user_id", "item_id", "rating", "timestamp", "position"]
    pl.DataFrame(ratings, schema=columns, orient="row").write_parquet(parquet / "ratings.parquet")
    users = [(int(user), gender, int(age), int(job), zip_) for user, gender, age, job, zip_ in USER_FIELDS]
    columns = ["user_id", "gender", "age", "occupation", "zip"]
    pl.DataFrame(users, schema=columns, orient="row").write_parquet(parquet / "users.parquet")
    for options in ({"split": "time"}, {"seed": 7}, {"ids": "raw"}):
        a = data.load("ml-1m", folder=published, cache=tmp_path / "a", **options)
        b = data.load("ml-1m", folder=parquet, cache=tmp_path / "b", **options)
        for split in a.splits:
            assert a.split(split).collect().equals(b.split(split).collect())


def many(folder, number: int = 40) -> None:
    """One user with `number` ratings, the later the smaller the item."""
    (folder / "ratings.dat").write_text("".join(f"1::{number - i}::5::{i}\n" for i in range(number)))


def test_split_by_time_is_per_user(published, tmp_path):
    many(published)
    clicks = data.load("ml-1m", folder=published, cache=tmp_path / "cache", split="time")
    items = {s: [int(clicks.vocabulary("item")[i]) for i in clicks.split(s).collect()["item"]] for s in clicks.splits}
    assert items == {"train": list(range(9, 41)), "valid": [5, 6, 7, 8], "test": [1, 2, 3, 4]}


def test_the_last_two_are_valid_and_test(published, tmp_path):
    many(published)
    clicks = data.load("ml-1m", folder=published, cache=tmp_path / "cache", split="last", features="user,item")
    items = {s: [int(clicks.vocabulary("item")[i]) for i in clicks.split(s).collect()["item"]] for s in clicks.splits}
    assert items == {"train": list(range(3, 41)), "valid": [1, 2], "test": [1, 2]}
    assert clicks.same("valid", "test")
    assert not clicks.same("train", "test")
    assert clicks.schema.feature_names == ["user", "item"]
    with pytest.raises(DataError, match="features: there is no 'film'; there are user, item"):
        data.load("ml-1m", folder=published, cache=tmp_path / "cache", features="film")


def test_random_split_depends_on_the_seed_alone(published, tmp_path):
    many(published)
    a, b, c = (data.load("ml-1m", folder=published, cache=tmp_path / str(i), seed=s) for i, s in enumerate([1, 1, 2]))
    assert a.split("test").collect().equals(b.split("test").collect())
    assert not a.split("test").collect().equals(c.split("test").collect())
    # Nor on the order of the lines.
    lines = (published / "ratings.dat").read_text().splitlines()
    (published / "ratings.dat").write_text("\n".join(sorted(lines)) + "\n")
    again = data.load("ml-1m", folder=published, cache=tmp_path / "again", seed=1)
    assert a.split("test").collect().equals(again.split("test").collect())


def test_raw_ids_are_those_of_the_source(published, tmp_path):
    many(published)
    clicks = data.load("ml-1m", folder=published, cache=tmp_path / "cache", ids="raw", split="time")
    assert {feature.num_embeddings for feature in clicks.schema.features} == {None}
    train = clicks.split("train").collect()
    assert train["item"].to_list() == list(range(9, 41))
    assert train["zip"].dtype == pl.Int64
    with pytest.raises(DataError, match="open id space"):
        clicks.counts("item")


def test_errors(published, tmp_path):
    def load(**options):
        return data.load("ml-1m", folder=published, cache=tmp_path / "cache", **options)

    with pytest.raises(DataError, match="ids must be 'vocabulary' or 'raw', not 'hash'"):
        load(ids="hash")
    with pytest.raises(DataError, match="split must be 'random' or 'time', not 'day'"):
        load(split="day")
    (published / "ratings.dat").write_text("1::1::5::1\n2::1::5::1\n")
    with pytest.raises(DataError, match="split 'valid' is empty, of 2 rows"):
        load(split="time")
    (published / "ratings.dat").write_text(RATINGS + "3::1::5::1\n")
    with pytest.raises(DataError, match=r"user 3 has ratings but is not in .*users\.dat"):
        load()
    (published / "ratings.dat").write_text(RATINGS + "1::1\n")
    with pytest.raises(DataError, match=r"ratings\.dat:7: 2 fields, not 4"):
        load()
    (published / "users.dat").unlink()
    with pytest.raises(DataError, match=r"no file .*users\.dat; `python -m data fetch ml-1m`"):
        load()
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


@pytest.mark.dataset("ml-1m")
def test_held_out_items_leave_train_and_valid_and_are_of_all_popularities(dataset, tmp_path):
    whole = data.load("ml-1m", folder=dataset, cache=tmp_path)
    clicks = data.load("ml-1m", folder=dataset, cache=tmp_path, held_out=0.15)
    assert clicks.num_rows("test") == whole.num_rows("test")
    before, now = (
        dict(zip(loaded.vocabulary("item").to_list(), loaded.counts("item").tolist(), strict=True))
        for loaded in (whole, clicks)
    )
    trained = {item: count for item, count in before.items() if count}
    hidden = {item for item in trained if not now.get(item)}  # one without a test row is in no vocabulary
    assert 0.14 < len(hidden) / len(trained) < 0.16
    assert all(now[item] == count for item, count in trained.items() if item not in hidden)
    for low, high in ((1, 20), (20, 100), (100, 400), (400, 4000)):
        there = {item for item, count in trained.items() if low <= count < high}
        assert 0.1 < len(hidden & there) / len(there) < 0.2
    names = clicks.vocabulary("item").to_list()
    assert not hidden & {names[i] for i in clicks.split("valid").select("item").collect()["item"].unique()}


def test_a_share_of_items_to_hold_out_is_checked(published):
    for share in (-0.1, 1.0):
        with pytest.raises(DataError, match="held_out must be at least 0 and below 1"):
            ml_1m.read(published, held_out=share)
