import datetime
import math

import numpy as np
import polars as pl
import pytest

import data
from data import DataError

ROWS = pl.DataFrame(
    {
        "clicked": [True, False] * 10,
        "user": [f"u{i % 4}" for i in range(20)],
        "item": [i % 3 for i in range(20)],
        "tags": [["a", None, "b"], None, [], ["c"]] * 5,
        "price": [float(i) for i in range(20)],
        "place": ["x", "y"] * 10,
        "when": [datetime.date(2026, 1, 1)] * 20,
    }
)
SCHEMA = {"label": "clicked", "features": {"user": {}, "item": {"ids": 3}}, "split": "time"}


@pytest.fixture
def load(tmp_path):
    def load(rows: pl.DataFrame = ROWS, **changes):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        rows.write_parquet(path)
        return data.load("parquet", folder=path, cache=tmp_path / "cache", schema=SCHEMA | changes)

    return load


def test_vocabulary_of_train_with_an_id_for_the_rest(load):
    rows = ROWS.with_columns(user=pl.Series(["b", "a", "b", None, "c", "a", "a", "b"] + ["b"] * 8 + list("cdbx")))
    clicks = load(rows, features={"user": {"min_count": 2}})
    # Train holds the first 16: "b" 11 times, "a" 3, "c" once, one missing.
    assert clicks.vocabulary("user").to_list() == [None, "a", "b"]
    assert clicks.schema.feature("user").num_embeddings == 3
    assert clicks.split("train").collect()["user"].to_list() == [2, 1, 2, 0, 0, 1, 1, 2] + [2] * 8
    assert clicks.split("valid").collect()["user"].to_list() == [0, 0]
    assert clicks.counts("user").tolist() == [2, 3, 11]


def test_numbers_are_sorted_as_numbers_and_a_missing_one_is_a_value(load):
    clicks = load(ROWS.with_columns(item=pl.Series([10, 9, None, -1] * 5)), features={"item": {"ids": "all"}})
    assert clicks.vocabulary("item").to_list() == ["", "-1", "9", "10"]
    assert clicks.split("valid").collect()["item"].to_list() == [3, 2]


def test_lists(load):
    clicks = load(features={"tags": {"multi_hot": True}})
    assert clicks.vocabulary("tags").to_list() == [None, "a", "b", "c"]
    assert clicks.split("train").collect()["tags"].to_list() == [[1, 2], [], [], [3]] * 4
    assert clicks.counts("tags").tolist() == [0, 4, 4, 4]
    raw = load(features={"tags": {"multi_hot": True, "ids": "raw"}}).split("train").collect()["tags"].to_list()
    assert [len(bag) for bag in raw] == [2, 0, 0, 1] * 4
    assert len({code for bag in raw for code in bag}) == 3


def test_group_dense_and_carried_columns(load):
    clicks = load(group="place", dense=["price"], columns=["item", "place"])
    batch = next(iter(clicks.loader("train", 16)))
    assert batch.dense.tolist() == [[float(i)] for i in range(16)]
    assert batch.columns.keys() == {"place", "item"}
    assert batch.columns["item"].tolist() == [i % 3 for i in range(16)]
    place = batch.columns["place"]
    assert len(place.unique()) == 2
    assert (place[::2] == place[0]).all()
    assert batch.label.tolist() == [1, 0] * 8


def test_toml_file(load, tmp_path):
    path = tmp_path / "rows.parquet"
    ROWS.write_parquet(path)
    schema = tmp_path / "schema.toml"
    schema.write_text('label = "clicked"\nsplit = "time"\n[features.user]\n[features.item]\nids = 3\n')
    clicks = data.load("parquet", folder=path, cache=tmp_path / "cache", schema=schema)
    assert clicks.split("train").collect().equals(load().split("train").collect())
    # The content counts, not the name of the file.
    schema.write_text('label = "clicked"\nsplit = "time"\n[features.item]\nids = 3\n')
    assert data.load("parquet", folder=path, cache=tmp_path / "cache", schema=schema).schema.feature_names == ["item"]
    schema.write_text("label = ")
    with pytest.raises(DataError, match=r"schema file .*schema\.toml: Invalid value"):
        data.load("parquet", folder=path, cache=tmp_path / "cache", schema=schema)
    schema.write_text('label = "clicked"')
    with pytest.raises(DataError, match=r"schema file .*schema\.toml: the schema has no 'features'"):
        data.load("parquet", folder=path, cache=tmp_path / "cache", schema=schema)
    schema.write_bytes(b'label = "\xff"')
    with pytest.raises(DataError, match=r"schema file .*schema\.toml: 'utf-8' codec can't decode byte 0xff"):
        data.load("parquet", folder=path, cache=tmp_path / "cache", schema=schema)
    with pytest.raises(DataError, match=rf"schema file {tmp_path}: Is a directory"):
        data.load("parquet", folder=path, cache=tmp_path / "cache", schema=tmp_path)
    with pytest.raises(DataError, match=r"no schema file .*none\.toml"):
        data.load("parquet", folder=path, cache=tmp_path / "cache", schema=tmp_path / "none.toml")


def test_parts_of_dates_fill_values_and_fixed_size_lists(load):
    rows = ROWS.with_columns(
        at=pl.datetime(2026, 11, 28, 23, 59) + pl.duration(days=pl.int_range(20)),
        price=pl.Series([None, math.nan, *range(2, 20)], dtype=pl.Float64),
        item=pl.Series([None] + [1] * 19),
        pair=pl.Series([[i, i + 1] for i in range(20)], dtype=pl.Array(pl.Int64, 2)),
        point=pl.Series([[0.5, None]] * 19 + [None], dtype=pl.Array(pl.Float64, 2)),
    )
    parts = ("minute", "hour", "weekday", "is_weekend", "day", "month", "year")
    features = {part: {"of": "at", "part": part} for part in parts}
    features |= {"item": {"ids": 3, "fill": 2}, "pair": {"multi_hot": True, "ids": 30}}
    dense = {"price": {"fill": -1}, "month_too": {"of": "at", "part": "month"}, "point": {"fill": 9}}
    clicks = load(rows, features=features, dense=dense, group="at", columns=["when"])
    sizes = {f.name: f.num_embeddings for f in clicks.schema.features}
    assert [sizes[part] for part in parts] == [60, 24, 7, 2, 31, 12, 2]  # of years a vocabulary
    first = clicks.split("train").collect().row(0, named=True)
    assert [first[part] for part in parts[:6]] == [59, 23, 5, 1, 27, 10]  # a Saturday
    assert (first["item"], first["pair"], first["price"], first["month_too"]) == (2, [0, 1], -1.0, 10.0)
    assert clicks.schema.dense == ("price", "month_too", "point[0]", "point[1]")
    batch = next(iter(clicks.loader("train", 16)))
    assert batch.dense[:3].tolist() == [[-1, 10, 0.5, 9], [-1, 10, 0.5, 9], [2, 10, 0.5, 9]]
    assert batch.columns["at"][0] == datetime.datetime(2026, 11, 28, 23, 59, tzinfo=datetime.UTC).timestamp() * 1e6
    assert clicks.split("test").collect()["point[0]"].to_list() == [0.5, 9]


def test_a_group_of_floats_is_exact(load):
    users = [2.0**53 - i for i in range(20)]
    clicks = load(ROWS.with_columns(place=pl.Series(users)), group="place")
    assert next(iter(clicks.loader("train", 16))).columns["place"].tolist() == [int(user) for user in users[:16]]


def test_a_group_of_integers_is_exact(load):
    users = [2**62 + i for i in range(20)]
    clicks = load(ROWS.with_columns(place=pl.Series(users)), group="place")
    assert next(iter(clicks.loader("train", 16))).columns["place"].tolist() == users[:16]


def test_names_of_columns_are_no_names_of_files(load, tmp_path):
    names = ["../../evil", "item/cat", "item.cat", ".", "type", "a" * 300]
    rows = ROWS.with_columns(pl.col("item").alias(name) for name in names)
    clicks = load(rows, features={name: {} for name in names})
    assert [clicks.vocabulary(name).to_list() for name in names] == [[None, "0", "1", "2"]] * 6
    assert next(iter(clicks.loader("train", 4))).sparse.keys() == names
    assert not list(tmp_path.rglob("*evil*"))


def test_splits_that_are_folders(tmp_path):
    """As Spark writes them, in types of several widths."""
    for split, part in {"train": ROWS[:12], "valid": ROWS[12:16], "test": ROWS[16:]}.items():
        folder = tmp_path / f"{split}.parquet"
        folder.mkdir()
        (folder / "_SUCCESS").touch()
        (folder / ".part-0.parquet.crc").touch()
        part.with_columns(pl.col("item").cast(pl.Int32 if split == "test" else pl.Int64)).write_parquet(
            folder / "part-0.parquet"
        )
    clicks = data.load("parquet", folder=tmp_path, cache=tmp_path / "cache", schema=SCHEMA)
    assert [clicks.num_rows(split) for split in clicks.splits] == [12, 4, 4]
    assert clicks.split("test").collect()["item"].to_list() == ROWS["item"][16:].to_list()


def test_days_of_a_log_of_which_one_is_cut(tmp_path, capsys):
    for day in range(3):
        ROWS.write_parquet(tmp_path / f"day-{day}.parquet")
    path = tmp_path / "day-1.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"^parquet: .*day-1\.parquet is cut short or damaged: .*; write it again"):
        data.load("parquet", folder=tmp_path, cache=tmp_path / "cache", schema=SCHEMA)


def test_folder_of_parts(tmp_path):
    for i in range(4):
        ROWS[i * 5 : i * 5 + 5].write_parquet(tmp_path / f"part-{i}.parquet")
    clicks = data.load("parquet", folder=tmp_path, cache=tmp_path / "cache", schema=SCHEMA)
    assert clicks.split("train").collect()["clicked"].to_list() == [1, 0] * 8


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ({}, {"label": "click"}, "unknown column 'click': did you mean 'clicked'"),
        ({}, {"features": {"itm": {}}}, "unknown column 'itm': did you mean 'item'"),
        ({}, {"dense": ["place"]}, "column 'place' is String, not numbers"),
        ({}, {"dense": ["price", "price"]}, "column 'price' has more than one use"),
        ({}, {"columns": ["tags"]}, "column 'tags' is List.*, not numbers, strings or dates"),
        ({}, {"dense": ["when"]}, "column 'when' is Date, not numbers; name a part of it in the schema: of ="),
        ({}, {"dense": {"d": {"of": "tags"}}}, "column 'd' is List.*, not numbers; make it a fixed-size list"),
        ({}, {"features": {"when": {}}}, "feature 'when' with ids='train' is Date, .*; name a part of it"),
        (
            {},
            {"features": {"h": {"of": "when", "part": "hour"}}},
            "column 'when' holds dates alone, which have no hour",
        ),
        ({}, {"features": {"h": {"of": "item", "part": "day"}}}, "column 'item' is Int64; 'day' is a part of dates"),
        (
            {},
            {"features": {"h": {"of": "when", "part": "days"}}},
            "unknown part in features.h 'days': did you mean 'day",
        ),
        ({}, {"dense": {"price": {"fill": True}}}, "dense.price: fill must be a finite number or a string, not True"),
        ({}, {"dense": {"price": {"fill": "x"}}}, "column 'price' is Float64; fill='x' is of another type"),
        ({}, {"dense": {"price": {"fil": 0}}}, "unknown key in dense.price 'fil': did you mean 'fill'"),
        ({}, {"dense": [3]}, "'dense' in the schema must hold names of columns, not 3"),
        ({}, {"features": {"price": {}}}, "feature 'price' with ids='train' is Float64, .*; write it as integers"),
        (
            {"place": pl.Series([2.0**24 + 2] * 20, dtype=pl.Float32)},
            {"group": "place"},
            "whole numbers up to 16777216",
        ),
        ({"place": [None] + [1] * 19}, {"group": "place"}, "column 'place' is None in row 0 .* must not be missing"),
        ({"place": [0.5] * 20}, {"group": "place"}, "column 'place' is 0.5 in row 0 .*, but a group of floats holds"),
        ({"place": [math.nan] * 20}, {"group": "place"}, "column 'place' is nan in row 0 .*, but a group of floats"),
        ({"place": pl.Series([2**63] * 20, dtype=pl.UInt64)}, {"columns": ["place"]}, "must be there and below 2.63"),
        ({}, {"features": {"user": {"ids": 5}}}, "feature 'user' with ids=5 is String"),
        ({}, {"features": {"tags": {}}}, "feature 'tags' is List.String.: set multi_hot"),
        ({}, {"features": {"user": {"multi_hot": True}}}, "feature 'user' is String: multi_hot is for lists"),
        ({}, {"features": {"tags": {"multi_hot": True}}, "group": "tags"}, "feature 'tags' is multi-hot: neither"),
        ({}, {"features": {"user": {"count": 2}}}, "unknown key in features.user 'count': did you mean 'min_count'"),
        ({}, {"features": {"user": 3}}, "features.user must be a table of settings, not 3"),
        ({}, {"features": {}}, "the schema has no 'features'"),
        ({}, {"seed": "x"}, "'seed' in the schema must be of type int, not 'x'"),
        ({}, {"dense": "price"}, "'dense' in the schema must be of type list, not 'price'"),
        ({}, {"lable": "x"}, "unknown key in schema 'lable': did you mean 'label'"),
        ({}, {"split": "day"}, "split must be 'random' or 'time', not 'day'"),
        ({"clicked": [math.nan] + [1.0] * 19}, {}, "column 'clicked' is nan in row 0 .*, but a label is 0 or 1"),
        ({"clicked": [1] * 19 + [None]}, {}, "column 'clicked' is None in row 19 .*, but a label is 0 or 1"),
        ({"clicked": [1] * 19 + [2]}, {}, "column 'clicked' is 2 in row 19"),
        ({"price": [0.0] * 5 + [math.nan] * 15}, {"dense": ["price"]}, "column 'price' is nan in row 5 .* finite"),
        ({"price": [0.0] * 5 + [None] * 15}, {"dense": ["price"]}, "column 'price' is None in row 5 .* finite"),
        ({"place": [None] + ["x"] * 19}, {"group": "place"}, "column 'place' is None in row 0 .* must not be missing"),
        ({"item": [0] * 7 + [3] * 13}, {}, "column 'item' is 3 in row 7 .*, but ids are 0 <= id < 3"),
        ({"item": [0] * 7 + [-1] * 13}, {}, "column 'item' is -1 in row 7 .*, but ids are 0 <= id < 3"),
        ({"item": [0] * 7 + [None] * 13}, {}, "column 'item' is None in row 7"),
        ({"item": [0] * 7 + [-1] * 13}, {"features": {"item": {"ids": "raw"}}}, "'item' is -1 in row 7"),
        (
            {"item": pl.Series([0] * 7 + [2**63] * 13, dtype=pl.UInt64)},
            {"features": {"item": {"ids": "raw"}}},
            "'item' is 9223372036854775808 in row 7",
        ),
        (
            {"item": [[0, 1]] * 7 + [[0, 3]] * 13},
            {"features": {"item": {"ids": 3, "multi_hot": True}}},
            r"column 'item' is \[0, 3\] in row 7",
        ),
    ],
)
def test_bad_input_leaves_nothing_behind(load, tmp_path, rows, changes, message):
    bad = ROWS.with_columns(**{name: pl.Series(values) for name, values in rows.items()})
    with pytest.raises(DataError, match=message):
        load(bad, **changes)
    cache = tmp_path / "cache"
    assert not cache.exists() or not [path for path in cache.iterdir() if path.is_dir()]


def test_errors_name_the_file_or_the_folder_of_several(tmp_path, monkeypatch):
    def load(folder, **changes):
        data.load("parquet", root=".", folder=folder, cache="cache", schema=SCHEMA | changes)

    monkeypatch.chdir(tmp_path)
    ROWS.write_parquet("a.parquet")
    for folder in ("a.parquet", "."):
        with pytest.raises(DataError, match=rf"^parquet in {tmp_path}/a\.parquet: unknown column 'q'"):
            load(folder, dense=["q"])
    ROWS.with_columns(clicked=pl.lit(2)).write_parquet("b.parquet")
    message = "column 'clicked' is 2 in row 0 .*, but a label is 0 or 1; fill or correct it, or drop the row"
    with pytest.raises(DataError, match=rf"^parquet in {tmp_path}/b\.parquet: {message}"):
        load("b.parquet")
    ROWS.with_columns(clicked=pl.lit(None)).write_parquet("b.parquet")
    with pytest.raises(DataError, match=rf"^parquet in {tmp_path}: "):
        load(".")


def test_empty_split(load, tmp_path):
    with pytest.raises(DataError, match="split 'train' is empty, of 0 rows"):
        load(ROWS.clear())
    for split in ("train", "valid", "test"):
        (ROWS.clear() if split == "valid" else ROWS).write_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(DataError, match="split 'valid' is empty, of 40 rows"):
        data.load("parquet", folder=tmp_path, cache=tmp_path / "cache", schema=SCHEMA)


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match=r"rows\.parquet: no such file"):
        data.load("parquet", folder=tmp_path / "rows.parquet", cache=tmp_path / "cache", schema=SCHEMA)
    with pytest.raises(DataError, match=r"holds no \*\.parquet file"):
        data.load("parquet", folder=tmp_path, cache=tmp_path / "cache", schema=SCHEMA)
    with pytest.raises(DataError, match="which folder"):
        data.load("parquet", cache=tmp_path / "cache", schema=SCHEMA)


def test_a_file_that_is_not_parquet(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"parquet: .*rows\.parquet is not a parquet file; "):
        data.load("parquet", folder=tmp_path, cache=tmp_path / "cache", schema=SCHEMA)


def test_more_rows_than_any_buffer(load):
    """Row order and values survive many chunks, groups and threads."""
    number = 300_000
    rng = np.random.default_rng(0)
    rows = pl.DataFrame({"clicked": rng.integers(2, size=number), "item": rng.integers(3, size=number)})
    rows = rows.with_columns(user=pl.Series(rng.integers(90_000, size=number)), row=pl.int_range(number))
    clicks = load(rows, columns=["row"])
    train = clicks.split("train").collect()
    assert train["row"].to_list() == list(range(240_000))
    values = clicks.vocabulary("user").gather(train["user"]).cast(pl.Int64)
    assert (values == rows["user"].head(240_000)).all()
    batches = clicks.loader("train", 4096, shuffle=True, window_rows=50_000)
    seen = np.concatenate([batch.columns["row"].numpy() for batch in batches])
    assert (np.sort(seen) == np.arange(240_000)).all()
