import hashlib

import polars as pl
import pytest

import data
from data import DataError
from data.readers import frappe

VALID_MD5 = "88d51bf2173505436d3a8f78f2a59da8"  # as BARS publishes it


@pytest.mark.dataset("frappe_x1")
def test_known_figures(dataset, tmp_path):
    clicks = data.load("frappe", folder=dataset, cache=tmp_path)
    assert {split: clicks.num_rows(split) for split in clicks.splits} == {
        "train": 202_027,
        "valid": 57_722,
        "test": 28_860,
    }
    assert sum(feature.num_embeddings for feature in clicks.schema.features) == 5_382
    assert clicks.schema.group == "user"
    for split in clicks.splits:
        published = pl.read_parquet(dataset / f"{split}.parquet")
        local = clicks.split(split).collect()
        start = 0
        for feature in clicks.schema.features:
            assert (local[feature.name] + start == published[feature.name]).all()
            start += feature.num_embeddings
        assert (local["label"] == published["label"]).all()
    counts = clicks.counts("item")
    ids, expected = pl.read_parquet(dataset / "train.parquet")["item"].value_counts()
    assert counts.sum() == 202_027
    assert counts[ids.to_numpy() - 957].tolist() == expected.to_list()


@pytest.mark.dataset("frappe_x1")
def test_ids_in_the_order_of_counts_are_the_published_ones_renumbered(dataset, tmp_path):
    published, clicks = (data.load("frappe", folder=dataset, cache=tmp_path, order=o) for o in ("published", "count"))
    for feature, other in zip(clicks.schema.features, published.schema.features, strict=True):
        assert feature == other
        counts = clicks.counts(feature.name)
        assert (counts.diff() <= 0).all()
        assert counts.sort().values.equal(published.counts(feature.name).sort().values)
        for split in clicks.splits:
            pairs = pl.DataFrame(
                [each.split(split).collect()[feature.name] for each in (published, clicks)], ["a", "b"]
            )
            assert pairs.n_unique() == pairs["a"].n_unique() == pairs["b"].n_unique()


def test_an_order_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match="order must be 'published' or 'count', not 'counts'"):
        frappe.read(tmp_path, order="counts")


@pytest.mark.dataset("frappe_x1")
def test_published_csv_equals_parquet(dataset, tmp_path):
    for split in ("train", "valid", "test"):
        rows = pl.read_parquet(dataset / f"{split}.parquet")
        rows.write_csv(tmp_path / f"{split}.csv", line_terminator="\r\n")
    assert hashlib.md5((tmp_path / "valid.csv").read_bytes()).hexdigest() == VALID_MD5
    from_csv, from_parquet = frappe.read(tmp_path).rows, frappe.read(dataset).rows
    assert from_csv.collect().equals(from_parquet.collect().cast(dict(from_csv.collect_schema())))


def test_ids_out_of_range(tmp_path):
    row = {"label": 1} | frappe.STARTS
    for split in ("train", "valid", "test"):
        pl.DataFrame([row, row | {"weather": 4000}]).write_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(
        DataError, match=r"column 'weather' is -1060 in row 1 \(counted from 0\), but ids are 0 <= id < 9"
    ):
        data.load("frappe", folder=tmp_path, cache=tmp_path / "cache")


def test_missing_column(tmp_path):
    for split in ("train", "valid", "test"):
        pl.DataFrame({"label": [1], "user": [0]}).write_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(DataError, match=r"train\.parquet has no column 'city'"):
        data.load("frappe", folder=tmp_path, cache=tmp_path / "cache")
