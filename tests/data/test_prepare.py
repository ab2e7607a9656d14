import os
import queue
import random
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import data
from data import DataError, encode, prepare
from experiments.processes.processes import start_context

ROWS = pl.DataFrame({"label": [0, 1] * 10, "item": [i % 5 for i in range(20)]})
SCHEMA = {"label": "label", "features": {"item": {}}}


@pytest.fixture
def load(tmp_path):
    (tmp_path / "rows").mkdir()
    path = tmp_path / "rows" / "rows.parquet"
    ROWS.write_parquet(path)

    def load(**changes) -> data.ClickData:
        return data.load("parquet", folder=path, cache=tmp_path / "cache", schema=SCHEMA | changes)

    load.path = path
    return load


def test_encodes_once(load, monkeypatch):
    first = load()
    monkeypatch.setattr(prepare, "encode", lambda *args: pytest.fail("encoded again"))
    assert load().folder == first.folder


@pytest.mark.parametrize("settings", [{}, {"ids": "all"}, {"min_count": 4}])
def test_a_vocabulary_in_the_order_of_counts_numbers_the_most_frequent_value_first(load, settings):
    draw = random.Random(0)
    items = [draw.choice([2, 10, 10, 10, 33, 33, 7, 7]) for _ in range(200)] + [5] * 3
    pl.DataFrame({"label": [0, 1] * 101 + [1], "item": items}).write_parquet(load.path)
    by_value = load(features={"item": settings})
    clicks = load(features={"item": {**settings, "order": "count"}})
    plain, ordered = (each.split("train").collect()["item"].to_list() for each in (by_value, clicks))
    seen = Counter(ordered)
    known = [count for id, count in sorted(seen.items()) if id or settings.get("ids") == "all"]
    assert known == sorted(known, reverse=True)
    assert len(set(zip(plain, ordered, strict=True))) == len(set(plain)) == len(seen)  # the same ids, renumbered


def test_other_options_or_sources_are_encoded_anew(load):
    first, other, _ = load(), load(seed=3), load(split="time")
    assert first.folder != other.folder
    os.utime(load.path, ns=(0, 0))
    assert load().folder == first.folder  # touched, not changed
    size = load.path.stat().st_size
    ROWS.with_columns(label=1 - pl.col("label")).write_parquet(load.path)
    os.utime(load.path, ns=(0, 0))
    assert load.path.stat().st_size == size
    assert load(split="time").split("train").collect()["label"].to_list() == [1, 0] * 8


def test_a_folder_appears_complete_or_not_at_all(load, tmp_path, monkeypatch):
    original = prepare.encode

    def breaks(source, folder, name):
        original(source, folder, name)
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "encode", breaks)
    with pytest.raises(KeyboardInterrupt):
        load()
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def load_slowly(path: Path, cache: Path, wait: Any, wrote: Any) -> None:
    """Loads in a process of its own: says when a file is written, and closes the next one after `wait`."""
    close = encode._Writer.close

    def closing(writer):
        close(writer)
        wrote.put(os.getpid())
        wait.wait(60)

    encode._Writer.close = closing
    data.load("parquet", folder=path, cache=cache, schema=SCHEMA)


def test_a_killed_run_leaves_no_half_and_the_next_one_cleans_up(load, tmp_path):
    cache, context = tmp_path / "cache", start_context()
    wrote, wait = context.Queue(), context.Event()
    process = context.Process(target=load_slowly, args=(load.path, cache, wait, wrote))
    process.start()
    assert wrote.get() == process.pid
    process.kill()
    process.join()
    left = [path for path in cache.iterdir() if path.is_dir()]
    assert [path.suffix for path in left] == [".part"]
    clicks = load()
    assert clicks.num_rows("train") == clicks.split("train").collect().height == 16
    assert [path for path in cache.iterdir() if path.is_dir()] == [clicks.folder]


def test_two_processes_at_once(load, tmp_path):
    """The second waits for the first and takes its folder."""
    context = start_context()
    wrote, wait = context.Queue(), context.Event()
    arguments = (load.path, tmp_path / "cache", wait, wrote)
    processes = [context.Process(target=load_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    first = wrote.get()
    with pytest.raises(queue.Empty):
        wrote.get(timeout=0.3)  # time for the other one to write, were it not to wait
    wait.set()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert [wrote.get() for _ in range(2)] == [first, first]
    assert wrote.empty()


def test_default_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prepare.cache_folder() == tmp_path / "embcomp"
    clicks = data.load("synthetic", num_rows=100, num_users=30, num_items=30, num_communities=2)
    assert clicks.folder.parent == tmp_path / "embcomp"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert prepare.cache_folder() == tmp_path / "home" / ".cache" / "embcomp"


def test_cache_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot make the cache folder .*file/cache \(Not a directory\); give another"):
        data.load("synthetic", cache=tmp_path / "file" / "cache")


def test_a_folder_that_holds_no_data(tmp_path):
    with pytest.raises(DataError, match="holds no encoded data"):
        data.ClickData(tmp_path)
