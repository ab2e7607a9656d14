"""The page of models of other libraries."""

from pathlib import Path

from experiments.files import write_json
from experiments.report import third_party

ROOT = Path(__file__).parents[2]


def test_counts_and_reasons(tmp_path: Path) -> None:
    versions = {"torchfm": "1.2", "torch": "3"}
    outcomes = [{"trained": 9}, {"trained": 7, "refused": {"a|b": ["x", "y"]}}, {"no table": 9}]
    rows = [{"model": f"m{i}", "versions": versions, "outcomes": found} for i, found in enumerate(outcomes)]
    write_json(tmp_path / "third-party" / "torchfm.json", rows)
    path = third_party.write(tmp_path, tmp_path)
    assert path is not None
    lines = path.read_text().splitlines()
    assert "| torchfm 1.2 | 3 | 3 | 1 | 1 | 1 | 0 | 0 | 27 |" in lines
    assert "| all | | 3 | 1 | 1 | 1 | 0 | 0 | 27 |" in lines
    assert lines[-2:] == ["| torchfm | m1 | refused | a\\|b |", "| torchfm | m2 | no table |  |"]
    assert third_party.write(tmp_path / "nothing", tmp_path) is None


def test_the_page_shows_the_results_of_now(tmp_path: Path) -> None:
    path = third_party.write(ROOT / "experiments" / "results", tmp_path)
    assert path is not None
    assert path.read_text() == (ROOT / "docs" / "results" / path.name).read_text()
