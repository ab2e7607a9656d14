"""The page that sets choices of the planner beside the best single method."""

import json

import pytest

from experiments.report import planned


@pytest.fixture
def results(tmp_path):
    """Full tables, two single methods and two levels, with two seeds each; the valid split has A first, test B."""
    lines = [
        ("Full", "", {}, 100_000, (0.90, 0.92), (0.90, 0.92), {}),
        ("LowBit", "A", {"share": 0.1}, 10_000, (0.82, 0.84), (0.80, 0.81), {}),
        ("LowRank", "B", {"share": 0.1}, 10_000, (0.81, 0.82), (0.84, 0.85), {}),
        ("LowBit", "too large", {"share": 0.2}, 20_000, (0.89, 0.89), (0.89, 0.89), {}),
        ("choose", "choose, level 1", {"share": 0.1}, 9_000, (0.8, 0.8), (0.804, 0.804), {"level": 1}),
        ("choose", "choose, level 2", {"share": 0.1}, 9_900, (0.8, 0.8), (0.806, 0.808), {"level": 2}),
    ]
    for method, label, budget, nbytes, valid, test, options in lines:
        for seed in (0, 1):
            result = {
                "dataset": "toys", "model": "DCNv2", "method": method, "label": label, "budget": budget, "seed": seed,
                "served_nbytes": nbytes, "training_nbytes": 2 * nbytes, "full_nbytes": 100_000,
                "metrics": {"valid/auc": valid[seed], "test/auc": test[seed]},
                "config": {"training": {"monitor": "valid/auc"}, "method": {"options": {**options, "count": "served"}}},
                "planning": {"of_full_training": 0.1 + seed / 10},
            }  # fmt: skip
            path = tmp_path / "choose" / f"{label or method}-{budget}-{seed}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(result))
    return tmp_path


def test_the_single_method_is_chosen_by_the_valid_split_among_those_that_fit(results):
    (cell,) = planned.cells(results)
    assert (cell.title, cell.count, cell.share) == ("DCNv2 on toys", "served", 0.1)
    assert cell.single.label == "A, 10 %"
    assert cell.single.mean == pytest.approx(0.805)
    assert cell.full.mean == pytest.approx(0.91)
    assert cell.over_single(1) == pytest.approx(-0.001)
    assert cell.over_single(2) == pytest.approx(0.002)
    assert cell.over_single(3) is None
    assert cell.levels[2].planning == pytest.approx(0.2)


def test_a_budget_in_bytes_is_a_share(results):
    for path in (results / "choose").glob("choose*"):
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "budget": {"nbytes": 12_345}}))
    (cell,) = planned.cells(results)
    assert cell.share == pytest.approx(0.12345)
    assert cell.single.label == "A, 10 %"


def test_bytes_on_features_without_effect(results, tmp_path):
    lines = [("MultiHash", "split by vocabulary", 0.70, {}), ("choose", "choose, level 1, ranked, served", 0.75, {})]
    for method, label, auc, options in lines:
        result = {
            "dataset": "planted", "model": "DCNv2", "method": method, "label": label, "budget": {"share": 0.1},
            "served_nbytes": 1000, "training_nbytes": 1000, "full_nbytes": 10_000, "metrics": {"test/auc": auc},
            "config": {"training": {}, "method": {"options": {**options, "ranked": True, "count": "served"}}},
            "choice": {"f25": {"served": 30}, "f24": {"served": 960}, "f04": {"served": 10}},
        }  # fmt: skip
        path = results / "choose-planted" / f"{method}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result))
    text = planned.write(results, tmp_path / "docs").read_text()
    assert "| 10 % | choose, level 1, ranked, served | 0.7500 (1) | +0.0500 | 4.0% |" in text  # f25, f04 say nothing


def test_the_page_counts_budgets(results, tmp_path):
    text = planned.write(results, tmp_path / "docs").read_text()
    assert "| 1 | 1 | 0 | 1 | 0 |" in text
    assert "| 2 | 1 | 1 | 1 | 1 |" in text
    assert "A, 10 %: 0.8050 ± 0.0071 (2)" in text
    assert "+0.0020 | 20% |" in text
    assert planned.write(tmp_path / "nothing", tmp_path / "docs") is None
