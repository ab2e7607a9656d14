import csv
import gzip
import os
from datetime import datetime

import pytest

import data
from data import DataError
from data.readers.avazu import COLUMNS


@pytest.mark.dataset("avazu_sample")
def test_equals_a_plain_reading(dataset, tmp_path):
    clicks = data.load("avazu", folder=dataset, cache=tmp_path, split="time", min_count=1)
    assert len(clicks.schema.features) == 24
    with (dataset / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    train, encoded = rows[: int(0.8 * 8087)], clicks.split("train").collect()
    assert clicks.num_rows("train") == len(train)
    assert encoded["click"].to_list() == [int(row["click"]) for row in train]
    times = [datetime.strptime("20" + row["hour"], "%Y%m%d%H") for row in train]
    assert encoded["hour"].to_list() == [time.hour for time in times]
    assert encoded["weekday"].to_list() == [time.weekday() for time in times]
    assert encoded["is_weekend"].to_list() == [int(time.weekday() >= 5) for time in times]
    for name in clicks.schema.feature_names[3:]:
        vocabulary = clicks.vocabulary(name)
        assert vocabulary.gather(encoded[name]).to_list() == [row[name] for row in train]
        seen = {row[name] for row in train}
        late = clicks.split("test").collect()[name].to_list()
        new = [row[name] not in seen for row in rows[int(0.9 * 8087) :]]
        assert [code == 0 for code in late] == new


@pytest.mark.dataset("avazu_sample")
def test_raw_ids(dataset, tmp_path):
    clicks = data.load("avazu", folder=dataset, cache=tmp_path, ids="raw")
    sizes = {feature.name: feature.num_embeddings for feature in clicks.schema.features}
    assert (sizes.pop("hour"), sizes.pop("weekday"), sizes.pop("is_weekend")) == (24, 7, 2)
    assert set(sizes.values()) == {None}


def test_another_header(tmp_path):
    (tmp_path / "train.csv").write_text("id,click\n1,0\n")
    with pytest.raises(DataError, match=r"train\.csv:1: the header is 'id,click', not 'id,click,hour"):
        data.load("avazu", folder=tmp_path, cache=tmp_path / "cache")


def test_files_as_they_come(tmp_path):
    """Gzipped, as Kaggle gives it; a byte that is no UTF-8 is named with its line."""
    row = ["1"] * len(COLUMNS)
    row[list(COLUMNS).index("hour")] = "14102100"
    lines = ",".join(COLUMNS) + "\n" + (",".join(row) + "\n") * 20
    (tmp_path / "train.gz").write_bytes(gzip.compress(lines.encode()))
    clicks = data.load("avazu", folder=tmp_path, cache=tmp_path / "cache", min_count=1)
    assert clicks.num_rows("train") == 16
    whole = gzip.compress(os.urandom(4000) + lines.encode())
    (tmp_path / "train.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"avazu: .*|train\.gz"):
        data.load("avazu", folder=tmp_path, cache=tmp_path / "cache")
    (tmp_path / "train.csv").write_bytes(lines.encode() + ",".join(["1"] * 23 + ["\xe9"]).encode("latin1") + b"\n")
    with pytest.raises(DataError, match=r"train\.csv:22: not UTF-8 \(byte 0xe9\); convert the file"):
        data.load("avazu", folder=tmp_path, cache=tmp_path / "cache")
