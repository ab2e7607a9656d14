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
        ({}, {"columns": ["when"]}, "column 'when' is Date, not numbers or strings"),
        ({}, {"features": {"price": {}}}, "feature 'price' with ids='train' is Float64"),
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
    with pytest.raises(DataError, match=r"no file .*rows\.parquet"):
        data.load("parquet", folder=tmp_path / "rows.parquet", cache=tmp_path / "cache", schema=SCHEMA)
    with pytest.raises(DataError, match=r"holds no \*\.parquet file"):
        data.load("parquet", folder=tmp_path, cache=tmp_path / "cache", schema=SCHEMA)
    with pytest.raises(DataError, match="which folder"):
        data.load("parquet", cache=tmp_path / "cache", schema=SCHEMA)


def test_a_file_that_is_not_parquet(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"parquet: the files in .* cannot be read: "):
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
