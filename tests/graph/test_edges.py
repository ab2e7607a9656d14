from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcomp.graph import interactions

LOG = pl.DataFrame(
    {
        "user_id": [3, 0, 3, 0, 1, 3],
        "item_id": [1, 2, 1, 0, 2, 0],
        "w": [0.5, 2.0, 1.5, 0.0, 1.0, 3.0],
        "label": [1, 0, 1, 1, 5, -1],
        "t": [0.0, 10.0, 10.0, 5.0, 10.0, 0.0],
    }
)


def as_dict(edges) -> dict[tuple[int, int], float]:
    weights = np.ones(len(edges)) if edges.weights is None else edges.weights
    return {(int(u), int(i)): float(w) for u, i, w in zip(edges.users, edges.items, weights, strict=True)}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=40))
def test_every_pair_once_in_order(pairs: list[tuple[int, int]]) -> None:
    users, items = np.array([p[0] for p in pairs], dtype=np.int64), np.array([p[1] for p in pairs], dtype=np.int64)
    edges = interactions((users, items), num_items=12)
    assert list(as_dict(edges)) == sorted(set(pairs))
    assert (edges.num_users, edges.num_items) == (max((u for u, _ in pairs), default=-1) + 1, 12)
    assert edges.degrees("users").tolist() == [len({i for u, i in pairs if u == v}) for v in range(edges.num_users)]


def test_frames_files_and_arrays_give_the_same_edges(tmp_path: Path) -> None:
    LOG[:2].write_parquet(tmp_path / "a.parquet")
    LOG[2:].write_parquet(tmp_path / "b.parquet")
    expected = {(0, 0): 1.0, (0, 2): 1.0, (1, 2): 1.0, (3, 0): 1.0, (3, 1): 1.0}
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    arrays = {name: LOG[name].to_numpy() for name in LOG.columns}
    for source in (LOG, LOG.lazy(), files, str(tmp_path / "*.parquet"), arrays):
        assert as_dict(interactions(source)) == expected
    assert as_dict(interactions(LOG.rename({"user_id": "u", "item_id": "i"}), user="u", item="i")) == expected


def test_weights_add_up_and_zero_is_no_edge() -> None:
    assert as_dict(interactions(LOG, weight="w")) == {(0, 2): 2.0, (1, 2): 1.0, (3, 0): 3.0, (3, 1): 2.0}


def test_only_positive_labels_join() -> None:
    assert list(as_dict(interactions(LOG, label="label"))) == [(0, 0), (1, 2), (3, 1)]
    assert list(as_dict(interactions(LOG, label="label", min_label=4))) == [(1, 2)]
    assert len(interactions(LOG.with_columns(label=pl.col("label") > 0), label="label")) == 3


def test_time_halves_weights() -> None:
    decayed = as_dict(interactions(LOG, time="t", half_life=5.0))
    assert decayed == pytest.approx({(0, 0): 0.5, (0, 2): 1.0, (1, 2): 1.0, (3, 0): 0.25, (3, 1): 1.25})
    dated = LOG.with_columns(t=pl.lit(datetime(2024, 1, 1)) + pl.duration(seconds=pl.col("t")))
    assert as_dict(interactions(dated, time="t", half_life=5.0)) == pytest.approx(decayed)
    both = as_dict(interactions(LOG, weight="w", time="t", half_life=5.0))
    assert both == pytest.approx({(0, 2): 2.0, (1, 2): 1.0, (3, 0): 0.75, (3, 1): 1.625})


def test_most_frequent() -> None:
    edges = interactions((np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 1])), num_users=5)
    assert edges.most_frequent("users", 1).tolist() == [0]
    assert edges.most_frequent("users", 9).tolist() == [0, 1, 2]
    assert edges.most_frequent("items", 1).tolist() == [1]


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"user_id": [0, -1]}, {}, "'user_id' has a negative value, -1"),
        ({"item_id": [0.0, 1.0]}, {}, "ids of 'item_id' must be integers, got Float64"),
        ({"item_id": [0, 2**31]}, {}, "'item_id' has the id 2147483648.*below 2.31"),
        ({"user_id": [0, None]}, {}, "1 values of 'user_id' are missing"),
        ({"w": [1.0, float("nan")]}, {"weight": "w"}, "1 weights from 'w' are NaN or infinite"),
        ({"w": [1.0, float("inf")]}, {"weight": "w"}, "NaN or infinite"),
        ({"w": [1.0, -2.0]}, {"weight": "w"}, "'w' has a negative value, -2"),
        ({"w": [1.0, None]}, {"weight": "w"}, "1 values of 'w' are missing"),
        ({"t": [1.0, float("nan")]}, {"time": "t", "half_life": 1.0}, "NaN or infinite"),
        ({}, {"label": "stars"}, "no column 'stars'; there are"),
        ({}, {"half_life": 3.0}, "half_life=3.0 needs a column of times"),
        ({}, {"num_users": 1}, "num_users=1, but there is an id 1"),
    ],
)
def test_bad_logs_are_refused(columns: dict, settings: dict, message: str) -> None:
    log = pl.DataFrame({"user_id": [0, 1], "item_id": [0, 1], **columns})
    with pytest.raises(ValueError, match=message):
        interactions(log, **settings)


def test_bad_sources_are_refused() -> None:
    with pytest.raises(ValueError, match="got int"):
        interactions(3)
    with pytest.raises(ValueError, match="of one length"):
        interactions((np.arange(3), np.arange(2)))


def test_ids_just_below_the_limit() -> None:
    edges = interactions((np.array([2**31 - 1]), np.array([0])))
    assert (edges.num_users, edges.users.tolist()) == (2**31, [2**31 - 1])
