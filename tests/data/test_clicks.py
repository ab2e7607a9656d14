import polars as pl
import pytest
import torch

from data import DataError


def test_counts_are_those_of_train(make_clicks):
    clicks, rows = make_clicks(300)
    assert clicks.counts("user").tolist() == [(rows["user"] == i).sum() for i in range(50)]
    tags = rows["tags"].explode(empty_as_null=False).to_list()
    assert clicks.counts("tags").tolist() == [tags.count(i) for i in range(30)]
    assert clicks.counts("tags").dtype == torch.int64


def test_splits(make_clicks):
    clicks, _ = make_clicks(300)
    assert clicks.splits == ("train", "valid", "test")
    assert [clicks.num_rows(split) for split in clicks.splits] == [300, 3, 2]
    assert isinstance(clicks.split("train"), pl.LazyFrame)
    assert clicks.split("test").collect()["row"].to_list() == [0, 1]
    assert repr(clicks) == "ClickData(parquet: 4 features, train 300, valid 3, test 2 rows)"


def test_what_is_not_there(make_clicks):
    clicks, _ = make_clicks(300)
    for call in (clicks.split, clicks.num_rows, lambda split: clicks.loader(split, 8)):
        with pytest.raises(DataError, match="parquet has no split 'dev'; it has train, valid, test"):
            call("dev")
    for call in (clicks.counts, clicks.content, clicks.vocabulary):
        with pytest.raises(DataError, match="no feature 'itme'; the features are user, tags, item, more"):
            call("itme")
    assert clicks.content("item") is None
    assert clicks.vocabulary("item") is None
    assert clicks.truth() == {}
