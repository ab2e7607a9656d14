"""News clicks: negatives of the same hour, age of the clicked article, windows."""

import polars as pl
import pytest

import data
from data import DataError
from data.readers import globo
from tests.globo_clicks import HOUR, write_clicks


@pytest.fixture
def folder(tmp_path):
    write_clicks(tmp_path)
    return tmp_path


def rows_of(folder, **options):
    return globo.read(folder, **options).rows.collect()


def test_each_click_stands_against_others_of_its_hour(folder):
    rows = rows_of(folder, negatives=3)
    clicks = pl.read_parquet(folder / "clicks.parquet").filter(pl.col("click_article_id") < 112)
    alive = {hour: set(part["click_article_id"] - 100) for (hour,), part in clicks.group_by("click_timestamp")}
    expected = clicks.filter(pl.col("click_timestamp") < 19 * HOUR)  # nothing else was alive in the last hour
    taken = rows.filter(pl.col("label") == 1)
    assert sorted(taken.select("time", "user", "item").rows()) == sorted(
        expected.select("click_timestamp", "user_id", pl.col("click_article_id") - 100).rows()
    )
    for _, group in rows.group_by("click"):
        own, *others = group.sort("label", descending=True)["item"]
        assert len(others) == 3
        assert set(others) <= alive[group["time"][0]] - {own}
        assert group["time"].n_unique() == group["user"].n_unique() == group["first_day"].n_unique() == 1
    drawn = rows.filter(pl.col("label") == 0)
    assert drawn["item"].n_unique() == 12
    assert not rows.equals(rows_of(folder, negatives=3, seed=1))
    assert rows.equals(rows_of(folder, negatives=3))


def test_age_is_that_of_the_clicked_article(folder):
    taken = rows_of(folder).filter(pl.col("label") == 1)
    old = (pl.col("item") == 0) & (pl.col("time") >= -6 * HOUR)
    assert taken["older"].equals(taken.select(older=old)["older"])
    assert taken["first_day"].equals(taken.select(first_day=pl.col("item") == 1)["first_day"])


def test_loaded_columns_are_slices(folder, tmp_path):
    clicks = data.load("globo", folder=folder, cache=tmp_path / "cache")
    batch = next(iter(clicks.loader("test", 16)))
    assert batch.columns["first_day"].dtype == batch.columns["older"].dtype
    assert str(batch.columns["older"].dtype) == "torch.bool"
    assert clicks.content("item")[:, 0].tolist() == list(range(100, 112))
    assert clicks.schema.group == "click"


def test_a_random_split_takes_its_parts_from_all_of_the_time(folder):
    rows, by_time = rows_of(folder, split="random"), rows_of(folder)
    assert rows.drop("__split").equals(by_time.drop("__split"))
    assert (rows.group_by("click").agg(pl.col("__split").n_unique())["__split"] == 1).all()
    assert 0.75 < (rows["__split"] == 0).mean() < 0.85
    early = rows.sort("time").head(len(rows) // 2)["__split"]
    assert set(early) == {0, 1, 2}
    assert rows.equals(rows_of(folder, split="random"))
    assert not rows.equals(rows_of(folder, split="random", seed=1))
    with pytest.raises(DataError, match="leave them out with split='random'"):
        rows_of(folder, split="random", first_share=0.1)
    with pytest.raises(DataError, match="split must be 'time' or 'random', not 'user'"):
        rows_of(folder, split="user")


def test_windows_change_train_alone(folder):
    whole, early, late = (rows_of(folder, **w) for w in ({}, {"train_share": 0.4}, {"first_share": 0.4}))
    split = pl.col("__split")
    assert pl.concat([early, late]).filter(split == 0).equals(whole.filter(split == 0))
    for part in (early, late):
        assert part.filter(split > 0).equals(whole.filter(split > 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"negatives": 0}, "negatives must be at least 1, not 0"), ({"train_share": 0.9}, r"not \[0.0, 0.9\)")],
)
def test_what_does_not_fit_is_said(folder, options, message):
    with pytest.raises(DataError, match=message):
        globo.read(folder, **options)


@pytest.mark.dataset("globo")
def test_known_figures(dataset):
    rows = globo.read(dataset).rows.select("label", "first_day", "older", "__split").collect()
    clicks = rows.filter(pl.col("label") == 1)
    assert 666_000 < len(clicks) <= 667_048
    test = clicks.filter(pl.col("__split") == 2)
    assert test["first_day"].mean() == pytest.approx(0.652, abs=0.001)
