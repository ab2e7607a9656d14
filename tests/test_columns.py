"""Parquet as it lies on disks, read alike by every part; each error names the file."""

from __future__ import annotations

import gzip
from datetime import date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data.__main__ import main as data_main
from embcomp.columns import ColumnsError, MissingColumn, parquet_files, readable, scan
from embcomp.graph.cli import app as graph_app
from embcomp.semantic_ids.cli import app as semantic_app


def write(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_parquet(path)
    return path


def spark(folder: Path, **columns: object) -> Path:
    """A folder as Spark leaves it."""
    part = write(folder / "part-00000-c000.snappy.parquet", **columns)
    (folder / f".{part.name}.crc").write_bytes(b"crc")
    (folder / "_SUCCESS").touch()
    (folder / "._SUCCESS.crc").write_bytes(b"crc")
    write(folder / "_temporary" / "0" / "part-9.parquet", **columns)
    return folder


def test_files_of_folders_globs_and_lists(tmp_path: Path) -> None:
    spark(tmp_path / "day=2", a=[3])
    spark(tmp_path / "day=1", a=[1, 2])
    (tmp_path / "notes.txt").write_text("not data")
    wanted = [tmp_path / f"day={day}" / "part-00000-c000.snappy.parquet" for day in (1, 2)]
    for source in (tmp_path, str(tmp_path / "*"), str(tmp_path / "day=*" / "*"), [tmp_path / "day=1", *wanted[1:]]):
        assert parquet_files(source) == wanted
    # Folders may hold columns, as Spark's partitionBy writes them.
    assert scan(wanted, ["day", "a"]).collect().rows() == [(1, 1), (1, 2), (2, 3)]
    odd = write(tmp_path / "odd [1].parquet", a=[4])  # a name that is also a pattern
    assert scan(parquet_files(odd), ["a"]).collect()["a"].to_list() == [4]


@pytest.mark.parametrize(
    ("first", "second", "dtype"),
    [
        (pl.Int32, pl.Int64, pl.Int64),
        (pl.Int64, pl.Int32, pl.Int64),
        (pl.UInt64, pl.Int8, pl.Int64),
        (pl.UInt8, pl.UInt32, pl.UInt32),
        (pl.Boolean, pl.Int8, pl.Int8),
        (pl.Float32, pl.Float64, pl.Float64),
        (pl.Int64, pl.Float32, pl.Float64),
        (pl.Null, pl.Int32, pl.Int32),
        (pl.Categorical, pl.String, pl.String),
        (pl.Date, pl.Datetime("ms"), pl.Datetime("ms")),
        (pl.Datetime("ns"), pl.Datetime("ms"), pl.Datetime("ns")),
        (pl.List(pl.Int32), pl.List(pl.Int64), pl.List(pl.Int64)),
        (pl.Array(pl.Int32, 2), pl.List(pl.Int64), pl.List(pl.Int64)),
    ],
)
def test_columns_of_several_widths(first: pl.DataType, second: pl.DataType, dtype: pl.DataType, tmp_path: Path) -> None:
    """And a column more in one of the files; the order of the files stays."""
    values = {pl.Null: None, pl.Boolean: True, pl.Categorical: "1", pl.String: "1", pl.Date: date(2026, 11, 1)}
    files = []
    for number, kind in enumerate([first, second, first]):
        value = values.get(kind, datetime(2026, 11, 1) if kind == pl.Datetime else 1)
        value = [1, 1] if kind in (pl.List, pl.Array) else value
        more = {"more": [0]} if number == 1 else {}
        files.append(write(tmp_path / f"{number}.parquet", n=[number], a=pl.Series([value], dtype=kind), **more))
    found = scan(files, ["a", "n"]).collect()
    assert found.schema == {"a": dtype, "n": pl.Int64}
    assert found["n"].to_list() == [0, 1, 2]
    if pl.Null not in (first, second):
        assert found["a"].null_count() == 0


def test_files_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    numbers, texts = write(tmp_path / "1.parquet", a=[1], b=[1]), write(tmp_path / "2.parquet", a=["x"])
    with pytest.raises(ValueError, match=r"column 'a' is Int64 in .*1\.parquet and String in .*2\.parquet; write it"):
        scan([numbers, texts], ["a"])
    with pytest.raises(ValueError, match=r"2\.parquet has no column 'b', which .*1\.parquet has; add it, or leave"):
        scan([texts, numbers], ["b"])
    with pytest.raises(MissingColumn, match="no column 'c'; there are a, b"):
        scan([texts, numbers], ["c"])
    for name in ("*", "^a.*$"):
        with pytest.raises(ColumnsError, match=r"1\.parquet: column .* polars reads as a pattern; rename it"):
            scan([numbers], [name])
    assert scan([texts], ["a"]).collect().rows() == [("x",)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", r"2\.parquet is empty; write it again, or leave it out"),
        (lambda data: data[: len(data) // 2], r"2\.parquet is cut short or damaged"),
        (lambda data: b"\x1f\x8b" + data, r"2\.parquet is gzipped; unpack it"),
        (lambda data: b"PK\x03\x04" + data, r"2\.parquet is a zip archive"),
        (lambda data: b"a,b\n1,2\n", r"2\.parquet is not a parquet file; polars converts others"),
        (lambda data: data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :], r"2\.parquet cannot be read: "),
        (lambda data: data[:-8] + b"\xff\xff\xff\x7f" + data[-4:], r"2\.parquet cannot be read: "),
    ],
)
def test_a_damaged_file_among_others_is_named(damage: object, message: str, tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.parquet", a=list(range(100)))
    bad = tmp_path / "2.parquet"
    bad.write_bytes(damage(bad.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):  # noqa: PT012 - whichever step sees it
        files = parquet_files(tmp_path)
        with readable(files):
            scan(files, ["a"]).collect()


def test_no_files(tmp_path: Path) -> None:
    for source, message in ((tmp_path, r"holds no \*.parquet file"), (tmp_path / "x", "no such file")):
        with pytest.raises(FileNotFoundError, match=message):
            parquet_files(source)
    with pytest.raises(FileNotFoundError, match="no file has such a name"):
        parquet_files(str(tmp_path / "*.parquet"))


@pytest.mark.parametrize("command", ["graph", "semantic_ids", "data"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "is cut short or damaged"),
        (gzip.compress, "is gzipped; unpack it"),
        (lambda data: "user_id,item_id,split\n1,é,train\n".encode("latin1"), "is not a parquet file"),
    ],
)
def test_every_command_line_names_the_file(
    command: str, damage: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """One message and exit code 2."""
    folder = spark(
        tmp_path / "beauty" / "interactions.parquet", user_id=[1, 2], item_id=[1, 2], split=["train", "test"]
    )
    (bad,) = parquet_files(folder)
    bad.write_bytes(damage(bad.read_bytes()))
    words = {
        "graph": [str(folder), "--rows", "2", "-o", str(tmp_path / "out")],
        "semantic_ids": ["fit", str(folder), "--column", "v", "-o", str(tmp_path / "out")],
        "data": ["head", "beauty", "--root", str(tmp_path)],
    }
    mains = {"graph": graph_app, "semantic_ids": semantic_app, "data": data_main}
    monkeypatch.setattr("sys.argv", [command, *words[command]])
    with pytest.raises(SystemExit) as stopped:
        mains[command]()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"{bad.name} {message}" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
