"""What studies share: what a result file holds, when it is current, and how a table is written."""

import json
from pathlib import Path

import pytest

from experiments.runs.results import RESULTS
from experiments.studies import study

OF_RUNS = {"export", "semantic-stability", "retrieval-codes"}


@pytest.mark.parametrize("name", [*sorted(OF_RUNS), "semantic-tokenizers"])
def test_files_hold_the_keys_that_committed_ones_hold(name, make_run, tmp_path: Path) -> None:
    run = make_run()
    file = tmp_path / "case.json"
    case = run if name in OF_RUNS else {"levels": 2}
    study.write(file, {"experiment": name}, case)
    written = set(study.held(file))
    assert written == {"experiment", "versions", "hardware", "config"} | ({"key"} if name in OF_RUNS else set())
    committed = list(study.read(RESULTS, name))
    assert committed
    for values in committed:
        assert written <= set(values)


def test_a_file_is_current_for_its_own_case_alone(make_run, tmp_path: Path) -> None:
    file = tmp_path / "case.json"
    run, other = make_run(), make_run(training={"batch_size": 64, "epochs": 1})
    assert not study.is_current(file, run)
    study.write(file, {}, run)
    assert study.is_current(file, run)
    assert not study.is_current(file, other)
    study.write(file, {}, {"levels": 2})
    assert study.is_current(file, {"levels": 2})
    assert not study.is_current(file, {"levels": 3})
    file.write_text(json.dumps(json.loads(file.read_text()))[:-1])
    assert not study.is_current(file, {"levels": 2})  # cut short


def test_a_row_is_current_for_its_own_case_alone(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    cases = [{"method": "Full", "steps": 4}, {"method": "Full", "steps": 5}]
    assert study.current_rows(file, cases) == [None, None]
    rows = [{**case, "loss": loss} for case, loss in zip(cases, (0.25, 0.5), strict=True)]
    study.write_rows(file, rows)
    assert study.current_rows(file, list(reversed(cases))) == list(reversed(rows))
    assert study.current_rows(file, [{"method": "Full", "steps": 6}, cases[1]]) == [None, rows[1]]
    file.write_text(file.read_text()[:-3])
    assert study.current_rows(file, cases) == [None, None]  # cut short


def test_a_page_has_its_name_and_its_table(tmp_path: Path) -> None:
    lines = study.table(["way", "bytes"], "lr", [["full", "400"], ["signs", "13"]])
    path = study.write_page(tmp_path, "codes", ["Bytes of vectors.", "", *lines])
    assert path.read_text() == (
        "# codes\n\nBytes of vectors.\n\n| way | bytes |\n|---|---:|\n| full | 400 |\n| signs | 13 |\n"
    )
