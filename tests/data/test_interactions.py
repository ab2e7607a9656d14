"""Pairs of users and items: dense ids, splits without overlap, what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from data import DataError
from data.interactions import from_rows
from data.readers.synthetic import Config, generate
from data.splits import SPLITS

ROWS = {"user_id": ["b", "a", "b", "c", "a"], "item_id": [70, 7, 7, 9, 70]}
ROWS |= {"split": ["train", "train", "valid", "test", "test"]}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes ROWS with other columns in their place."""

    def make(**columns: list) -> Path:
        path = tmp_path / "some.parquet"
        pl.DataFrame({**ROWS, **columns}, strict=False).write_parquet(path)
        return path

    return make


def test_ids_are_places_among_the_sorted_values(write):
    found = data.load_interactions("interactions", folder=write())
    assert (found.num_users, found.num_items) == (3, 3)
    assert found.values["user_id"].to_list() == ["a", "b", "c"]
    assert found.values["item_id"].to_list() == [7, 9, 70]
    assert found.edges("train").tolist() == [[0, 1], [0, 2]]
    assert found.edges("valid").tolist() == [[1], [0]]
    assert found.edges("test").tolist() == [[0, 2], [2, 1]]
    assert found.edges().dtype == torch.int64
    assert found.counts("user_id").tolist() == [1, 1, 0]
    assert found.counts("item_id").tolist() == [1, 0, 1]


_triples = st.tuples(st.integers(0, 5), st.integers(-9, 9), st.sampled_from(SPLITS))


@settings(max_examples=30)
@given(st.lists(_triples, max_size=40))
def test_every_pair_is_in_its_earliest_split_alone(rows):
    rows = [*rows, (90, 0, "train"), (90, 1, "valid"), (90, 2, "test")]  # no split is empty
    found = from_rows("x", pl.DataFrame(rows, schema=["user_id", "item_id", "split"], orient="row").lazy())
    expected = {}
    for user, item, split in rows:
        expected[user, item] = min(expected.get((user, item), 9), SPLITS.index(split))
    users, items = found.values["user_id"], found.values["item_id"]
    edges = {split: zip(*found.edges(split).tolist(), strict=True) for split in SPLITS}
    seen = {(users[u], items[i]): SPLITS.index(split) for split in SPLITS for u, i in edges[split]}
    assert seen == expected
    assert sum(len(part) for part in found.pairs.values()) == len(expected)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": [1, None, 2, 3, 4]}, "user_id is missing in 1 pairs"),
        ({"item_id": [1.5, 2, 3, 4, 5]}, "item_id must hold integers or strings, not Float64"),
        ({"split": ["train", "valid", "test", "dev", "test"]}, "split is 'dev'; it must be one of train, valid, test"),
        ({"split": ["train", "valid", "test", None, "test"]}, "split is None"),
        ({"split": ["train"] * 4 + ["test"]}, "the valid split is empty"),
    ],
)
def test_what_cannot_be_trained_on_is_named(write, columns, message):
    path = write(**columns)
    with pytest.raises(DataError, match=rf"^interactions in {path}\S*: {message}"):
        data.load_interactions("interactions", folder=path)


def test_bad_requests(tmp_path):
    with pytest.raises(DataError, match="did you mean 'gowalla'"):
        data.load_interactions("gowala")
    with pytest.raises(DataError, match=r"no file .*beauty/interactions\.parquet"):
        data.load_interactions("beauty", root=tmp_path)
    with pytest.raises(DataError, match="which folder"):
        data.load_interactions("interactions")
    (tmp_path / "interactions.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="is not a parquet file"):
        data.load_interactions("interactions", folder=tmp_path)
    pl.DataFrame({"user_id": [1]}).write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(DataError, match="parquet: no column 'item_id'; there are user_id"):
        data.load_interactions("interactions", folder=tmp_path)


def test_synthetic_pairs_are_the_clicks_and_keep_to_communities():
    options = {"num_rows": 20_000, "num_users": 300, "num_items": 200, "num_communities": 4, "drift": 0.0}
    found = data.load_interactions("synthetic", **options)
    clicks = generate(Config(**options))
    clicked = clicks.rows.filter(pl.col("label") == 1).select("user", "item").unique()
    sizes = [len(found.pairs[split]) for split in SPLITS]
    assert sum(sizes) == len(clicked)
    assert sizes[0] == int(0.8 * len(clicked))
    users, items = (found.values[name].to_numpy() for name in ("user_id", "item_id"))
    train = found.edges("train").numpy()
    same = clicks.truth["user_community"][users[train[0]]] == clicks.truth["item_community"][items[train[1]]]
    assert np.mean(same) > 0.6
    again = data.load_interactions("synthetic", **options)
    assert all(found.pairs[split].equals(again.pairs[split]) for split in SPLITS)


@pytest.mark.dataset("beauty")
def test_beauty_as_published(dataset):
    found = data.load_interactions("beauty", root=dataset.parent)
    assert (found.num_users, found.num_items) == (22_363, 12_101)
    assert [len(found.pairs[split]) for split in SPLITS] == [158_801, 19_850, 19_851]
    raw = pl.read_parquet(dataset / "interactions.parquet").filter(split="test").select("user_id", "item_id")
    assert found.pairs["test"].equals(raw.cast(pl.Int64).sort("user_id", "item_id"))  # these ids are dense already


@pytest.mark.dataset("gowalla")
def test_gowalla_as_published(dataset):
    found = data.load_interactions("gowalla", root=dataset.parent)
    assert (found.num_users, found.num_items) == (29_858, 40_981)
    assert [len(found.pairs[split]) for split in SPLITS] == [719_081, 91_047, 217_242]
