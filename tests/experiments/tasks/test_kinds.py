"""A kind of runs is one object: its section, its data sets, its problems, its preparation."""

import json
from dataclasses import dataclass

import pytest
from pydantic.dataclasses import dataclass as pydantic_dataclass

import data
from embcomp.ops.kmeans import no_progress
from experiments.config.section import Positive, Section, strict
from experiments.errors import InputError
from experiments.load import check
from experiments.runs.runner import Settings, execute
from experiments.tasks.clicks import ClickTask
from experiments.tasks.kind import Kind
from experiments.tasks.task import KINDS, prepare


@pydantic_dataclass(frozen=True, kw_only=True, config=strict)
class Twice(Section):
    key = "twice"
    times: Positive = 2


@dataclass(frozen=True)
class TwiceTask(ClickTask):
    """Clicks whose epoch is the loader's, so many times over."""

    @property
    def steps(self):
        return self.run.section.times * super().steps

    def batches(self, epoch, start_batch):
        for _ in range(self.run.section.times):
            yield from super().batches(epoch, 0)


def problems(experiment):
    if experiment.section.times > 9:
        yield f"twice.times: {experiment.section.times} are too many"


@pytest.fixture(autouse=True)
def _kind(monkeypatch):
    monkeypatch.setitem(KINDS, "twice", Kind("twice", Twice, data.DATASETS, problems, TwiceTask.prepare))


def test_a_kind_of_ones_own_is_read_and_run(small, tmp_path):
    small["twice"] = {"times": 3}
    run, *_ = check(small, "x").runs()
    assert (run.kind, run.section) == ("twice", Twice(times=3))
    assert run.to_dict()["twice"] == {"times": 3}
    assert prepare(run).steps == 3 * ClickTask.prepare(run).steps
    assert execute(run, Settings(tmp_path, tmp_path / "out"), no_progress)[0] == "done"
    assert json.loads((tmp_path / "small" / f"{run.name}.json").read_text())["config"]["twice"] == {"times": 3}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"twice": {"times": 10}}, "twice.times: 10 are too many"),
        ({"twice": {"time": 2}}, "unknown key 'twice.time': did you mean 'times'?"),
        ({"twice": {"times": 0}}, "twice.times: .*greater than or equal to 1"),
        ({"twise": {}}, "unknown key 'twise': did you mean 'twice'?"),
        ({"twice": {}, "graph": {"user": "user", "item": "item"}}, "graph: a twice run has none; leave out one"),
        ({"section": {}}, "unknown key 'section'"),
        ({"kind": "twice"}, "unknown key 'kind'"),
    ],
)
def test_what_is_wrong_with_its_section_is_said(small, sections, message):
    with pytest.raises(InputError, match=message):
        check({**small, **sections}, "x")


def test_the_sections_of_kinds_are_apart():
    keys = [kind.section.key for kind in KINDS.values()]
    assert keys == ["graph", "retrieval", "behavior", "next_items", "twice"]
