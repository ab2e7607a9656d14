"""The leaderboard against sorting by hand, and its commands against the configurations that they name."""

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.load import find, load
from experiments.report import leaderboard as page
from experiments.report.leaderboard import FEWEST, SHARES, frame, leaderboard
from experiments.report.leaderboard_pages import write_all, write_html, write_markdown
from experiments.runs.results import RESULTS

FULL = 100_000
METHODS = Path(__file__).parents[3] / "docs" / "methods"


def result(method: str, served: int, training: int, auc: float, seed: int = 0, **more) -> dict:
    config = {
        "experiment": "some",
        "data": {"name": "d"},
        "model": {"name": "M"},
        "method": {"method": method, "options": {}, **more},
        "seed": seed,
    }
    return {
        "experiment": "some", "dataset": "d", "model": "M", "method": method, "label": f"<{method}>", "budget": {},
        "seed": seed, "rows": 1, "nbytes": served, "served_nbytes": served, "training_nbytes": training,
        "full_nbytes": FULL, "metrics": {"test/auc": auc, "valid/auc": auc}, "seconds": 1.5, "peak_memory": 2**20,
        "config": config,
    }  # fmt: skip


def write_results(folder: Path, results: list[dict]) -> Path:
    for number, values in enumerate(results):
        path = folder / values["experiment"] / f"run{number}-seed{values['seed']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    return folder


BYTES = st.integers(1, FULL)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(BYTES, BYTES, st.floats(0.5, 0.9)), min_size=FEWEST, max_size=12))
def test_methods_compete_at_the_smallest_budget_that_they_keep(tmp_path_factory, cells):
    folder = tmp_path_factory.mktemp("results")
    given_results = [result(f"m{i}", *cell) for i, cell in enumerate(cells)]
    entries = leaderboard(write_results(folder, [result("Full", FULL, FULL, 0.8), *given_results]))
    for place, count in enumerate(("served", "training")):
        for budget in SHARES:
            smaller = max([s for s in SHARES if s < budget], default=0)
            inside = [c for c in cells if 1.02 * smaller < c[place] / FULL <= 1.02 * budget]
            mine = [e for e in entries if (e.count, e.budget) == (count, budget)]
            assert [e.score for e in mine] == sorted((c[2] for c in inside), reverse=True)
            assert [e.rank for e in mine] == list(range(1, len(mine) + 1))
            assert all(e.to_full == pytest.approx(e.score - 0.8) for e in mine)


def test_seeds_are_averaged_and_what_lies_within_a_deviation_is_best_too(tmp_path):
    values = {"a": (0.70, 0.80), "b": (0.69, 0.79), "c": (0.60, 0.61), "d": (0.5, 0.5), "e": (0.4, 0.4)}
    results = [result(m, 1000, 1000, auc, seed) for m, aucs in values.items() for seed, auc in enumerate(aucs)]
    results += [result("Full", FULL, FULL, 0.8), result("a", 1000, 1000, 0.7, seed=0)]  # the last one a second time
    entries = [e for e in leaderboard(write_results(tmp_path, results)) if e.count == "served"]
    assert [(e.label, e.rank, e.best, e.seeds) for e in entries] == [
        ("<a>", 1, True, 2),
        ("<b>", 2, True, 2),
        ("<c>", 3, False, 2),
        ("<d>", 4, False, 2),
        ("<e>", 5, False, 2),
    ]
    assert entries[0].score == pytest.approx(0.75)


def test_runs_that_differ_in_more_than_the_method_do_not_compete(tmp_path):
    results = [result(m, 1000, 1000, 0.7) for m in "abcdef"] + [result("Full", FULL, FULL, 0.8)]
    results[0]["config"]["training"] = {"epochs": 99}
    assert {e.label for e in leaderboard(write_results(tmp_path, results))} == {f"<{m}>" for m in "bcdef"}


class Rows(HTMLParser):
    """The cells of the body of the table, and what is linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[tuple[str, str | None]]] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "tr" and "data-setup" in given:
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append((given["data-name"], given.get("data-value")))
        elif tag == "a":
            self.links.append(given["href"])


def test_the_page_holds_every_line_and_needs_nothing_else(tmp_path):
    results = [result(m, 1000 * i, 2000 * i, 0.7) for i, m in enumerate(("LowBit", *"abcde"), 1)]
    entries = leaderboard(write_results(tmp_path / "results", [*results, result("Full", FULL, FULL, 0.8)]))
    text = write_html(entries, tmp_path / "page.html").read_text()
    page = Rows(text)
    assert len(page.rows) == len(entries)
    for row, entry in zip(page.rows, entries, strict=True):
        values = dict(row)
        assert float(values["auc"] or "") == entry.score
        assert int(values["training"] or "") == entry.training_nbytes
        assert len(row) == text.count('<th scope="col"')
    assert "&lt;a&gt;" in text  # labels are text, not tags
    assert set(page.links) == {"../../docs/methods/low-bit.md"}
    assert not re.search(r'(src|href)="https?:', text)
    assert "width=device-width" in text


def test_look_ups_are_those_of_the_bench_by_method(tmp_path):
    inside = {"options": {"of": {"method": "Nested"}}}
    results = [result(m, 1000, 1000, 0.7) for m in ("LowBit", *"abcd")]
    results += [result("LowBit", 900, 900, 0.6, **inside), result("Full", FULL, FULL, 0.8)]
    folder = write_results(tmp_path / "results", results)
    assert {entry.look_up for entry in leaderboard(folder)} == {None}  # the bench has not been run
    ratios = {"LowBit: look-up": ("Full", 2.5), "LowBit: training step": ("Full", 7), "a: look-up": ("plain torch", 3)}
    ratios["LowBit(Nested): look-up"] = ("Full", 12.4)
    rows = [{"name": name, "against": against, "ratio": ratio} for name, (against, ratio) in ratios.items()]
    (folder / "bench").mkdir()
    (folder / "bench" / "frame.json").write_text(json.dumps(rows))
    entries = leaderboard(folder)
    assert {e.method: e.look_up for e in entries} == {
        **dict.fromkeys("abcd"), "LowBit": 2.5, "LowBit(Nested)": 12.4
    }  # fmt: skip
    page = Rows(write_html(entries, tmp_path / "page.html").read_text())
    shown = [float(dict(row)["look-up"] or "") for row in page.rows]
    assert shown == [1e9 if entry.look_up is None else entry.look_up for entry in entries]
    write_markdown(entries, tmp_path, METHODS)
    text = (tmp_path / "leaderboard.md").read_text()
    assert text.count("| 2.5x |") == 2  # as served, and in training
    assert text.count("| 12x |") == 2


def test_files_of_all_kinds_hold_the_same(tmp_path):
    results = [result(m, 1000 * i, 2000 * i, 0.7) for i, m in enumerate("abcdef", 1)]
    folder = write_results(tmp_path / "results", [*results, result("Full", FULL, FULL, 0.8)])
    page, csv, parquet = write_all(folder, tmp_path / "out")
    assert page.exists()
    assert pl.read_csv(csv)["score"].to_list() == pl.read_parquet(parquet)["score"].to_list()
    docs = tmp_path / "docs" / "results"
    docs.mkdir(parents=True)
    write_markdown(leaderboard(folder), docs, METHODS)
    assert (docs / "leaderboard.md").read_text().count("| <a> |") == 2
    assert write_all(write_results(tmp_path / "few", results[:2]), tmp_path / "none") == []


def test_commands_of_the_committed_results_name_their_runs():
    entries = frame(leaderboard(RESULTS))
    known = {path.stem: {run.name for run in load(path).runs()} for path in find([RESULTS.parent / "configs"])}
    commands = [command for command in entries["command"].unique() if " run " in command]
    assert len(commands) > 100
    for command in commands:
        *_, file, option, pattern = shlex.split(command)
        assert option == "--filter"
        named = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        assert any(named.fullmatch(name) for name in known[file]), command


@pytest.mark.parametrize(("budget", "said"), [({"share": 0.03}, "3%"), ({"nbytes": 550_000}, "550000")])
def test_a_choice_is_reproduced_by_its_own_command(budget, said):
    method = {"method": "choose", "options": {"level": 2, "count": "served"}, **budget}
    command = page._chosen({"config": {"method": method, "data": {"name": "beauty"}}})
    assert command == f"python -m experiments choose choose-beauty --nbytes {said} --level 2 --count served"
