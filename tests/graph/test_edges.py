import threading
from datetime import datetime, timedelta
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
    for source in (LOG, LOG.lazy(), LOG.to_arrow(), files, str(tmp_path / "*.parquet"), tmp_path, arrays):
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
    for half_life in (5.0, timedelta(seconds=5)):
        assert as_dict(interactions(dated, time="t", half_life=half_life)) == pytest.approx(decayed)
    days = LOG.with_columns(t=pl.date(2024, 1, 1) + pl.duration(days=pl.col("t")))
    assert as_dict(interactions(days, time="t", half_life=timedelta(days=5))) == pytest.approx(decayed)
    both = as_dict(interactions(LOG, weight="w", time="t", half_life=5.0))
    assert both == pytest.approx({(0, 2): 2.0, (1, 2): 1.0, (3, 0): 0.75, (3, 1): 1.625})


def test_pairs_that_have_decayed_to_nothing_are_no_edges() -> None:
    """Not edges of weight 0, by which a walk would divide."""
    log = {"user_id": np.arange(4), "item_id": np.arange(4), "t": np.array([0.0, 900.0, 1000.0, 1000.0])}
    found = interactions(log, time="t", half_life=1.5)
    assert (found.users.tolist(), found.num_users) == ([1, 2, 3], 4)
    assert found.weights is not None
    assert (found.weights > 0).all()
    log = {"user_id": np.arange(5), "item_id": np.arange(5), "t": np.array([0, 0, 9, 99, 99])}
    dated = pl.DataFrame(log).with_columns(t=pl.date(2024, 1, 1) + pl.duration(days=pl.col("t")))
    with pytest.warns(UserWarning, match="after half_life=7, 3 of 5 pairs have weight 0.*means seconds"):
        interactions(dated, time="t", half_life=7)


def test_sums_do_not_depend_on_the_order_of_the_log() -> None:
    rng = np.random.default_rng(0)
    log = pl.DataFrame({"user_id": rng.integers(0, 5, 4000), "item_id": 0, "t": rng.random(4000) * 9})
    first = interactions(log, time="t", half_life=1.0)
    for seed in range(5):
        again = interactions(log.sample(fraction=1.0, shuffle=True, seed=seed), time="t", half_life=1.0)
        assert np.array_equal(first.weights, again.weights)


def test_a_log_larger_than_what_is_held(tmp_path: Path) -> None:
    """200 MB of columns for each thread, 50,000 distinct pairs: memory grows by less than half of the log."""
    status, threads = Path("/proc/self/status"), pl.thread_pool_size()
    if not status.exists() or threads > 4:
        pytest.skip("the memory of a process is read from /proc; each thread has buffers of its own")
    rng, rows, times = np.random.default_rng(0), 1 << 20, 12 * threads
    columns = {"user_id": rng.integers(0, 500, rows), "item_id": rng.integers(0, 100, rows)}
    pl.DataFrame(columns).write_parquet(tmp_path / "log.parquet", row_group_size=1 << 16)
    del columns

    def anonymous() -> int:
        return next(int(x.split()[1]) * 1024 for x in status.read_text().splitlines() if x.startswith("RssAnon"))

    start, most, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], anonymous() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        found = interactions([tmp_path / "log.parquet"] * times)
    finally:
        done.set()
        watcher.join()
    assert len(found) == 50_000
    assert most[0] < times * rows * 16 / 2


def test_most_frequent() -> None:
    edges = interactions((np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 1])), num_users=5)
    assert edges.most_frequent("users", 1).tolist() == [0]
    assert edges.most_frequent("users", 9).tolist() == [0, 1, 2]
    assert edges.most_frequent("items", 1).tolist() == [1]
    with pytest.raises(ValueError, match="side must be 'users' or 'items', got 'user'"):
        edges.most_frequent("user", 1)


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"user_id": [0, -1]}, {}, "'user_id' has a negative value, -1"),
        ({"item_id": [0.0, 1.0]}, {}, "ids of 'item_id' must be integers, got Float64"),
        ({"item_id": [0, 2**31]}, {}, "'item_id' has the id 2147483648.*below 2.31"),
        ({"user_id": [0, None]}, {}, "1 values of 'user_id' are missing"),
        ({"w": [1.0, float("nan")]}, {"weight": "w"}, "1 weights from 'w' are NaN, infinite"),
        ({"w": [1.0, float("inf")]}, {"weight": "w"}, "NaN, infinite or"),
        ({"w": [1.0, -2.0]}, {"weight": "w"}, "'w' has a negative value, -2"),
        ({"w": [1.0, None]}, {"weight": "w"}, "1 values of 'w' are missing"),
        ({"t": [1.0, float("nan")]}, {"time": "t", "half_life": 1.0}, "NaN, infinite or"),
        ({}, {"label": "stars"}, "no column 'stars'; there are"),
        ({"w": ["1", "2"]}, {"weight": "w"}, "'w' must hold numbers, got String; cast it"),
        ({"w": [1.0, 1e39]}, {"weight": "w"}, "1 weights from 'w' are .*beyond a float32"),
        ({"user_id": [0, 0], "item_id": [0, 0], "w": [3e38, 3e38]}, {"weight": "w"}, "add up to more than a float32"),
        ({"user_id": ["ann", "bob"]}, {}, "ids of 'user_id' must be integers, got String; number them from 0"),
        ({"l": [1.0, float("nan")]}, {"label": "l"}, "1 labels of 'l' are NaN; drop these rows"),
        ({"l": [1, None]}, {"label": "l"}, "1 labels of 'l' are missing"),
        ({"l": ["yes", "no"]}, {"label": "l"}, "'l' must hold numbers, got String"),
        ({}, {"min_label": 4}, "min_label=4 needs a column of labels"),
        ({}, {"half_life": 3.0}, "half_life=3.0 needs a column of times"),
        ({"t": [1.0, 2.0]}, {"time": "t"}, "half_life=None needs .* a span above 0"),
        ({"t": [1.0, 2.0]}, {"time": "t", "half_life": float("nan")}, "half_life=nan"),
        ({"t": [1.0, 2.0]}, {"time": "t", "half_life": timedelta(7)}, "'t' must hold dates or datetimes, got Float64"),
        ({"t": ["1", "2"]}, {"time": "t", "half_life": 1.0}, "'t' must hold numbers, dates or datetimes, got String"),
        ({}, {"num_users": 1}, "num_users=1, but there is an id 1"),
        ({}, {"num_items": 2**31 + 1}, r"num_items=2147483649, but it must lie in \[0, 2\^31\]"),
        ({}, {"num_items": 9.0}, "num_items must be an integer, got 9.0"),
    ],
)
def test_bad_logs_are_refused(columns: dict, settings: dict, message: str) -> None:
    log = pl.DataFrame({"user_id": [0, 1], "item_id": [0, 1], **columns})
    with pytest.raises(ValueError, match=message):
        interactions(log, **settings)


def test_bad_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id\n1,2\n")
    with pytest.raises(ValueError, match=r"log\.csv is not a parquet file.*pl\.scan_csv"):
        interactions(tmp_path / "log.csv")
    with pytest.raises(FileNotFoundError, match=r"no\*\.parquet: no file has such a name"):
        interactions(tmp_path / "no*.parquet")
    assert len(interactions(pl.scan_csv(tmp_path / "log.csv"))) == 1
    with pytest.raises(FileNotFoundError):
        interactions(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="got int"):
        interactions(3)
    with pytest.raises(ValueError, match="of one length"):
        interactions((np.arange(3), np.arange(2)))


def test_ids_just_below_the_limit() -> None:
    edges = interactions((np.array([2**31 - 1]), np.array([0])))
    assert (edges.num_users, edges.users.tolist()) == (2**31, [2**31 - 1])
