import re
import sys
from pathlib import Path

import polars as pl
import pytest

from embcomp.cli import main
from embcomp.graph import Clusters
from tests.graph.graphs import power_law


@pytest.fixture
def log(tmp_path: Path) -> Path:
    edges = power_law(60, 40, 400)
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user_id": edges.users, "item_id": edges.items, "stars": edges.items % 5}).write_parquet(path)
    return path


def run(*words: str | Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["embcomp", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
    return left.value.code or 0


def test_maps_a_summary_and_a_picture(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "clusters"
    assert run("graphhash", log, "--rows", "20", "-o", out) == 0
    clusters = Clusters.load(out)
    assert clusters.users.rows + clusters.items.rows == 20
    said = capsys.readouterr().out
    assert f"users   60       0{clusters.users.rows:>6}" in said
    assert "quality 0." in said
    assert (out / "sizes.svg").read_text().startswith("<?xml")
    picture = (out / "sizes.svg").read_bytes()
    assert run("graphhash", log, "--user-rows", "12", "--item-rows", "9", "-o", out, "--label", "stars") == 0
    assert (Clusters.load(out).users.rows, Clusters.load(out).items.rows) == (12, 9)
    assert (out / "sizes.svg").read_bytes() != picture


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "1"], "rows=1 .*one row each"),
        ([], "give --rows, or both"),
        (["--rows", "9", "--user-rows", "4"], "give --rows, or both"),
        (["--rows", "9", "--item", "film"], "no column 'film'"),
        (["--rows", "9", "--half-life", "7w"], "--half-life must be a number, or one with d or h .*'7w'"),
        (["--rows", "9", "--half-life", "7d", "--time", "item_id"], "'item_id' must hold dates or datetimes"),
        (["--rows", "9", "--algorithm", "magic"], "algorithm must be one of"),
    ],
)
def test_bad_input_ends_with_a_message(
    words: list[str], message: str, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("graphhash", log, "-o", tmp_path / "out", *words) == 2
    assert re.search(f"embcomp graphhash: .*{message}", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("graphhash", tmp_path / "no.parquet", "--rows", "9") == 2
    assert "no.parquet" in capsys.readouterr().err
    (tmp_path / "log.csv").write_text("user_id,item_id\n1,2\n")
    assert run("graphhash", tmp_path / "log.csv", "--rows", "9") == 2
    assert re.search("embcomp graphhash: .*log.csv is not a parquet file.*scan_csv", capsys.readouterr().err)
