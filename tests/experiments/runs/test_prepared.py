"""Each run is prepared once: what the check before all runs has sized is what is trained."""

import json
import os
import pickle
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

import data
from embcomp import GraphHash, SemanticIds, SentencePieces
from embcomp.graph import clustering
from embcomp.semantic_ids import Neighbours, ResidualKMeans
from experiments import __main__ as cli
from experiments.config import inputs
from experiments.errors import Infeasible
from experiments.runs.sent import Sent
from experiments.tasks import clicks, content, datasets, sizing


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    """How often methods are sized and planned, clusters are sought, and data are opened and read for the graph."""
    counts: Counter[str] = Counter()

    def counted(owner, name):
        call = getattr(owner, name)

        def counting(*args, **kwargs):
            counts[name] += 1
            return call(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    inputs.edges_of.cache_clear()
    datasets._loaded.cache_clear()
    for cached in (content._codes, content._pieces, content._neighbours):
        cached.cache_clear()
    for owner, name in (
        (sizing, "size"),
        (clustering, "cluster"),
        (GraphHash, "plan"),
        (data.registry, "prepared"),
        (inputs, "interactions"),
        (clicks.ClickTraining, "edges"),
        (ResidualKMeans, "fit"),
        (SentencePieces, "train"),
        (Neighbours, "of"),
    ):
        counted(owner, name)
    return counts


def ended(toml, tmp_path, monkeypatch, *options):
    """Run the small experiment, and return the exit code."""
    command = ["experiments", "run", str(toml()), "--results", str(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [*command, *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_nothing_is_sized_or_clustered_twice(toml, small, calls, tmp_path, monkeypatch):
    small["graph"] = {"user": "user", "item": "item"}
    small["training"] |= {"epochs": 1}
    small["methods"] = [
        {"method": "GraphHash", "table": ["user", "item"], "nbytes": nbytes} for nbytes in ([6000, 4000], 30)
    ]
    small["seeds"] = [0]
    assert ended(toml, tmp_path, monkeypatch) == 0
    assert calls["size"] == 3  # one cannot be served
    assert calls["cluster"] == 3  # of the third to see whether more bytes would serve
    assert calls["plan"] == 2
    written = [json.loads(path.read_text()) for path in (tmp_path / "small").glob("*.json")]
    assert sorted(values["budget"]["nbytes"] for values in written) == [4000, 6000]
    assert len(list((tmp_path / "small" / "infeasible").glob("*.json"))) == 1


def test_several_methods_and_seeds_share_what_they_are_made_of(toml, small, calls, tmp_path, monkeypatch):
    """Two methods of as many clusters: those of a seed are sought once, and the data are read once for all runs."""
    small["graph"] = {"user": "user", "item": "item"}
    small["training"] |= {"epochs": 1}
    graphs = [("GraphHash", 6000), ("DoubleGraphHash", 6016)]  # whose second hash has two keys of 8 bytes
    small["methods"] = [{"method": name, "table": ["user", "item"], "nbytes": nbytes} for name, nbytes in graphs]
    small["methods"].append({"method": "HashingTrick", "share": 0.2})
    small["seeds"] = [0, 1]
    assert ended(toml, tmp_path, monkeypatch) == 0
    assert len(list((tmp_path / "small").glob("*.json"))) == 6
    assert calls["size"] == 6
    assert calls["cluster"] == 2
    assert (calls["prepared"], calls["interactions"], calls["edges"]) == (1, 1, 1)


SEMANTIC = {
    "codes": {"tokenizer": "ResidualKMeans", "levels": 3, "codebook_size": 8},
    "pieces": {"kind": "SentencePieces", "vocab_size": 40},
}


def test_a_tokenizer_is_fitted_once_for_all_runs_of_its_settings(toml, small, calls, tmp_path, monkeypatch):
    """And pieces are trained once, neighbours are sought once, for two budgets of two seeds."""
    small["training"] |= {"epochs": 1}
    options = {**SEMANTIC, "neighbours": {"k": 3}}
    small["methods"] = [{"method": "SemanticIds", "table": "item", "rows": [30, 40], "options": options}]
    assert ended(toml, tmp_path, monkeypatch) == 0
    assert len(list((tmp_path / "small").glob("*.json"))) == 4
    assert (calls["fit"], calls["train"], calls["of"]) == (1, 1, 1)
    assert calls["plan"] == 0  # of GraphHash


PLACES = (
    (sizing, "size"),
    (clustering, "cluster"),
    (GraphHash, "plan"),
    (SemanticIds, "plan"),
    (ResidualKMeans, "fit"),
    (SentencePieces, "train"),
    (data.registry, "prepared"),
    (inputs, "interactions"),
)

PLUGIN = """
import os
from tests.experiments.runs.test_prepared import PLACES

def say(text):
    with open({path!r}, "a") as file:
        file.write(f"{{text}} {{os.getpid()}}\\n")

def counted(owner, name):
    call = getattr(owner, name)

    def counting(*args, **kwargs):
        say(f"{{owner.__name__}}.{{name}}")
        return call(*args, **kwargs)

    setattr(owner, name, counting)

say("starts")
for owner, name in PLACES:
    counted(owner, name)
"""


def test_jobs_side_by_side_get_what_was_prepared(toml, small, calls, tmp_path, monkeypatch):
    """All is done in the process of the command; the others read encoded rows alone."""
    for owner, name in PLACES:
        monkeypatch.setattr(owner, name, getattr(owner, name))  # so that it is as before after the test
    plugin, said = tmp_path / "counting.py", tmp_path / "said"
    plugin.write_text(PLUGIN.format(path=str(said)))
    small["graph"] = {"user": "user", "item": "item"}
    small["training"] |= {"epochs": 1}
    small["methods"] = [
        {"method": "GraphHash", "table": ["user", "item"], "nbytes": 6000},
        {"method": "SemanticIds", "table": "item", "rows": 30, "options": SEMANTIC},
        {"method": "HashingTrick", "table": "item", "nbytes": 8},
    ]
    assert ended(toml, tmp_path, monkeypatch, "--jobs", "2", "--import", str(plugin)) == 0
    assert len(list((tmp_path / "small").glob("*.json"))) == 4
    assert len(list((tmp_path / "small" / "infeasible").glob("*.json"))) == 2
    places = Counter(said.read_text().splitlines())
    here = str(os.getpid())
    assert len([line for line in places if line.startswith("starts")]) == 3
    assert {line for line in places if line.split()[1] != here and not line.startswith("starts")} == set()
    assert places[f"experiments.tasks.sizing.size {here}"] == 6
    assert places[f"GraphHash.plan {here}"] == places[f"SemanticIds.plan {here}"] == 2
    assert places[f"ResidualKMeans.fit {here}"] == places[f"SentencePieces.train {here}"] == 1
    assert places[f"data.registry.prepared {here}"] == 1


@dataclass
class Local:
    """A task that cannot be pickled, because it holds a function without a name."""

    call: Any = field(default_factory=lambda: lambda: None)


def test_a_task_that_cannot_be_pickled_is_prepared_with_its_run():
    assert pickle.loads(pickle.dumps(Sent(Local()))).task is None
    received = pickle.loads(pickle.dumps(Sent(Infeasible("too small")))).task
    assert isinstance(received, Infeasible)
    assert str(received) == "too small"
