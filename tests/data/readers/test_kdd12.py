"""KDD Cup 2012, track 2, from generated files and from a sample of the published ones."""

import numpy as np
import polars as pl
import pytest

import data
from data import DataError
from data.readers.kdd12 import COLUMNS, FEATURES


@pytest.fixture
def lines(tmp_path):
    """Write a file of 1,000 lines, and profiles of some of its users; return its rows as lists of texts."""
    rng = np.random.default_rng(0)
    sizes = dict.fromkeys(FEATURES, 30) | {"Depth": 3, "Position": 3, "UserID": 50}
    columns = {name: (rng.integers(size, size=1000) + 1).astype(str) for name, size in sizes.items()}
    columns["DisplayURL"] = (rng.integers(1, 30, 1000).astype(np.uint64) + np.uint64(2**64 - 100)).astype(str)
    impressions = rng.integers(1, 4, 1000)
    clicks = rng.integers(0, 2, 1000) * rng.integers(0, impressions + 1)
    rows = list(zip(clicks.astype(str), impressions.astype(str), *(columns[name] for name in FEATURES), strict=True))
    (tmp_path / "training.txt").write_text("".join("\t".join(row) + "\n" for row in rows))
    profiles = [f"{user}\t{user % 3}\t{user % 6 + 1}\n" for user in range(1, 41)]
    (tmp_path / "userid_profile.txt").write_text("".join(profiles))
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def test_rows_labels_and_ids_are_those_of_the_file(lines, tmp_path):
    clicks = data.load("kdd12", folder=tmp_path, cache=tmp_path / "cache", min_count=1)
    assert set(clicks.schema.feature_names) == set(FEATURES)
    assert [clicks.num_rows(split) for split in ("train", "valid", "test")] == [800, 100, 100]
    seen = pl.concat([clicks.split(split).collect() for split in ("train", "valid", "test")])
    assert seen["label"].sum() == sum(int(row["Click"]) > 0 for row in lines)
    train = clicks.split("train").collect()
    of_train = {name: clicks.vocabulary(name).gather(train[name]).to_list() for name in clicks.schema.feature_names}
    expected = {(*(row[name] for name in FEATURES), int(int(row["Click"]) > 0)) for row in lines}
    found = list(zip(*(of_train[name] for name in FEATURES), train["label"].to_list(), strict=True))
    assert set(found) <= expected
    assert max(int(value) for value in of_train["DisplayURL"]) > 2**63  # beyond int64


def test_users_have_a_gender_and_an_age_if_asked_for(lines, tmp_path):
    clicks = data.load("kdd12", folder=tmp_path, cache=tmp_path / "cache", min_count=1, profile=True)
    assert clicks.schema.feature_names[-2:] == ["Gender", "Age"]
    train = clicks.split("train").collect()
    values = {name: clicks.vocabulary(name).gather(train[name]).to_list() for name in ("UserID", "Gender", "Age")}
    for user, gender, age in zip(*values.values(), strict=True):
        known = int(user) <= 40
        assert (gender, age) == ((str(int(user) % 3), str(int(user) % 6 + 1)) if known else ("", ""))
    (tmp_path / "userid_profile.txt").unlink()
    with pytest.raises(DataError, match=r"no file .*userid_profile\.txt; leave out profile=True"):
        data.load("kdd12", folder=tmp_path, cache=tmp_path / "cache", profile=True)


def test_rare_values_share_an_id(lines, tmp_path):
    clicks = data.load("kdd12", folder=tmp_path, cache=tmp_path / "cache", min_count=17)
    counts = clicks.counts("UserID")
    assert 1 < len(counts) < 50
    assert int(counts[1:].min()) >= 17
    assert int(counts.sum()) == 800


def test_raw_ids_and_wrong_lines(lines, tmp_path):
    clicks = data.load("kdd12", folder=tmp_path, cache=tmp_path / "cache", ids="raw")
    sizes = {feature.name: feature.num_embeddings for feature in clicks.schema.features}
    assert (sizes.pop("Depth"), sizes.pop("Position")) == (3, 3)
    assert set(sizes.values()) == {None}
    with pytest.raises(DataError, match="ids must be 'vocabulary' or 'raw', not 'hashed'"):
        data.load("kdd12", folder=tmp_path, cache=tmp_path / "cache", ids="hashed")
    with (tmp_path / "training.txt").open("a") as file:
        file.write("1\t1\t2\n")
    with pytest.raises(DataError, match=r"training\.txt:1001: 3 fields, not 12"):
        data.load("kdd12", folder=tmp_path, cache=tmp_path / "cache")


@pytest.mark.dataset("kdd12_sample")
def test_a_sample_of_the_published_rows(dataset, tmp_path):
    frame = pl.read_parquet(dataset / "train.parquet")
    assert len(frame.columns) == len(COLUMNS)
    frame.write_csv(tmp_path / "training.txt", separator="\t", include_header=False)
    clicks = data.load("kdd12", folder=tmp_path, cache=tmp_path / "cache")
    assert sum(clicks.num_rows(split) for split in ("train", "valid", "test")) == len(frame) == 39_948
    labels = [clicks.split(split).collect()["label"].sum() for split in ("train", "valid", "test")]
    assert sum(labels) == (frame["click"].cast(pl.Int64) > 0).sum()
    assert int(clicks.counts("Depth").sum()) == clicks.num_rows("train")
