"""Choices that are trained: within their budget, written like any run, gone on with where they were stopped."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import embcomp
from experiments.__main__ import app
from experiments.runs import results as files
from experiments.runs.runner import Settings, run_all
from experiments.studies import choose as study
from experiments.studies.choose import chosen_run, run_all_choices
from experiments.tasks.by_table import ByTable
from experiments.tasks.task import prepare
from experiments.training.checkpoint import Last

CONSOLE = Console(quiet=True)


def test_every_level_is_trained_within_its_budget(make_run, tmp_path: Path, monkeypatch) -> None:
    full = make_run(training={"batch_size": 512, "epochs": 2})
    settings = Settings(tmp_path / "results", tmp_path / "out")
    assert run_all_choices([full], ["20%"], ["served"], [1, 2, 3], settings, CONSOLE) == 0
    assert run_all_choices([full], ["50%"], ["training"], [1], settings, CONSOLE) == 0
    for level, budget, count in (
        (1, "20%", "served"),
        (2, "20%", "served"),
        (3, "20%", "served"),
        (1, "50%", "training"),
    ):
        run = chosen_run(full, budget, count, level)
        values = json.loads(files.path_of(run, settings.results).read_text())
        share = float(budget[:-1]) / 100
        assert values[f"{count}_nbytes"] <= share * values["full_nbytes"]
        assert values[f"{count}_nbytes"] == sum(line[count] for line in values["choice"].values())
        assert values["planning"]["seconds"] > 0
        assert 0 < values["metrics"]["test/auc"] < 1
    monkeypatch.setattr(study, "carry_out", lambda *given: pytest.fail("it is current"))
    assert run_all_choices([full], ["20%"], ["served"], [1, 2, 3], settings, CONSOLE) == 0


@pytest.mark.parametrize(
    ("text", "budget"), [("10%", ("share", 0.1)), ("50000", ("nbytes", 50_000)), ("50MB", ("nbytes", 50_000_000))]
)
def test_budgets_as_they_are_typed(make_run, text: str, budget: tuple[str, float]) -> None:
    assert chosen_run(make_run(), text, "served", 1).budget == budget


@pytest.mark.parametrize(("new_items", "given"), [(0.5, True), (0.0, False)])
def test_content_is_given_where_new_ids_come(make_run, new_items: float, given: bool) -> None:
    options = {"num_rows": 40_000, "num_items": 600, "item_exponent": 0.0, "focus": 0.0, "new_items": new_items}
    task = prepare(make_run(data={"options": options}))
    content = study._content(task, task.training().counts())
    assert list(content) == (["item"] if given else [])
    if given:
        assert content["item"].shape == (600, 5)


def test_a_plan_that_is_made_again_is_trained_if_it_is_another(make_run, tmp_path: Path, monkeypatch) -> None:
    full = make_run(training={"batch_size": 512, "epochs": 2})
    settings = Settings(tmp_path / "results", tmp_path / "out")
    assert run_all_choices([full], ["20%"], ["served"], [1], settings, CONSOLE) == 0
    path = files.path_of(chosen_run(full, "20%", "served", 1), settings.results)
    before = json.loads(path.read_text())
    fits, fit = [], study.Trainer.fit
    monkeypatch.setattr(study.Trainer, "fit", lambda self: (fits.append(1), fit(self))[1])
    assert run_all_choices([full], ["20%"], ["served"], [1], settings, CONSOLE, again=True) == 0
    after = json.loads(path.read_text())
    assert not fits
    assert after | {"planning": 0} == before | {"planning": 0}
    path.write_text(json.dumps(before | {"method_config": {"another": 1}}))
    assert run_all_choices([full], ["20%"], ["served"], [1], settings, CONSOLE, again=True) == 0
    assert fits == [1]
    assert json.loads(path.read_text())["metrics"] == before["metrics"]


def test_a_training_that_was_stopped_goes_on_with_its_own_plan_alone(make_run, tmp_path: Path, monkeypatch) -> None:
    full = make_run(training={"batch_size": 512, "epochs": 2})
    settings = Settings(tmp_path / "results", tmp_path / "out")
    run_all([full], settings, CONSOLE)
    run = chosen_run(full, "20%", "served", 1)
    tables = prepare(full).tables
    plans = [
        {table.name: embcomp.LowBit(bits=bits, of=embcomp.HashingTrick(rows=5)) for table in tables} for bits in (4, 3)
    ]
    begun, load = [], Last.load

    def loaded(last: Last):
        found = load(last)
        begun.append(found is not None)
        return found

    monkeypatch.setattr(Last, "load", loaded)
    monkeypatch.setattr(Last, "remove", lambda last: None)  # as if it had been stopped
    for methods, force in ((plans[0], False), (plans[0], False), (plans[1], False), (plans[1], True)):
        choice = embcomp.choose(tables, "90%", options={name: [method] for name, method in methods.items()})
        monkeypatch.setattr(study, "_chosen", lambda *given, choice=choice: (choice, 0.1))
        assert run_all_choices([full], ["20%"], ["served"], [1], settings, CONSOLE, force) == 0
        files.path_of(run, settings.results).unlink()
    assert begun == [False, True, False, False]


def test_a_choice_that_fails_is_said_and_leaves_the_others(make_run, tmp_path: Path) -> None:
    full = make_run(training={"batch_size": 512, "epochs": 1})
    settings = Settings(tmp_path / "results", tmp_path / "out")
    assert run_all_choices([full], ["0.001%", "30%"], ["served"], [1], settings, CONSOLE) == 1
    assert files.path_of(chosen_run(full, "30%", "served", 1), settings.results).is_file()


def test_methods_by_table_are_one_method() -> None:
    tables = [embcomp.Table(name, 300, 8) for name in ("a", "b", "c", "d")]
    shared = embcomp.UnifiedEmbedding(rows=100, chunk_dim=4)
    methods = {
        "a": shared,
        "b": embcomp.LowBit(bits=4),
        "c": shared,
        "d": embcomp.UnifiedEmbedding(rows=50, chunk_dim=4),
    }
    plan = ByTable(methods=methods).plan(tables)
    assert [part.table.name for part in plan.tables] == ["a", "b", "c", "d"]
    assert sorted(store.rows for store in plan.stores.values()) == [50, 100, 300]
    apart = sum(
        method.plan([t for t in tables if methods[t.name] is method]).served_nbytes()
        for method in {id(m): m for m in methods.values()}.values()
    )
    assert plan.served_nbytes() == apart
    model = torch.nn.ModuleDict({t.name: torch.nn.Embedding(300, 8) for t in tables})
    report = embcomp.compress_(model, ByTable(methods=methods))
    assert report.served_nbytes == apart


def test_the_command_names_what_is_wrong(tmp_path: Path) -> None:
    config = tmp_path / "none.toml"
    config.write_text(
        'experiment = "none"\n[data]\nname = "planted"\noptions = { num_rows = 500 }\n'
        '[model]\nname = "DCNv2"\nembedding_dim = 4\n[training]\nbatch_size = 100\nepochs = 1\n'
        '[[methods]]\nmethod = "LowBit"\n'
    )
    said = CliRunner().invoke(app, ["choose", str(config), "--nbytes", "10%"])
    assert "no run of full tables" in str(said.exception)
    said = CliRunner().invoke(app, ["choose", str(config), "--nbytes", "10%", "--count", "both"])
    assert "--count both: served or training" in str(said.exception)
