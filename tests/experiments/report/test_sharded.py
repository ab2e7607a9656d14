"""The page on several processes says what the files say."""

import json

from experiments.report import sharded
from experiments.runs.results import RESULTS


def test_each_file_has_its_section(tmp_path):
    assert sharded.write(tmp_path, tmp_path) is None
    grid = tmp_path / "sharded-parity" / "2-processes.json"
    grid.parent.mkdir()
    case = {"method": "Full", "kind": "bags", "sharding": "table_wise", "optimizer": "SGD", "processes": 2, "steps": 20}
    found = {"loss": 1e-8, "tables": 2e-8, "dense": 3e-8, "moved": 0.5}
    rows = [{**case, **found}, {**case, **found, "kind": "sequences", "tables": 4.2e-7}]
    grid.write_text(json.dumps([*rows, {**case, **found, "sharding": "row_wise"}]))
    path = sharded.write(tmp_path, tmp_path)
    assert path is not None
    text = path.read_text()
    assert "| method | table-wise, SGD | row-wise, SGD |" in text
    assert "| Full | 4.2e-07 | 3.0e-08 |" in text
    assert "3 cases; tables change by 0.5 or more" in text
    assert "## Killed" not in text


def test_the_committed_figures_are_shown(tmp_path):
    path = sharded.write(RESULTS, tmp_path)
    assert path is not None
    text = path.read_text()
    kills = json.loads((RESULTS / "sharded-kills" / "kills.json").read_text())[0]
    assert f"killed with SIGKILL {len(kills['kills'])} times" in text
    assert text.count(kills["outcomes"]["alone"]["weights"][:16]) == len(kills["outcomes"])
    for row in json.loads((RESULTS / "bench" / "sharded.json").read_text()):
        assert f"| {row['name']} | {row['against']} | {row['ratio']:.2f} (" in text
