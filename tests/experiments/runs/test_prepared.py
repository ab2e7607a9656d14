"""Each run is prepared once: what the check before all runs has sized is what is trained."""

import json
from collections import Counter

import pytest

import data
from embcomp import GraphHash
from embcomp.graph import clustering
from experiments import __main__ as cli
from experiments.config import inputs
from experiments.tasks import clicks, datasets, sizing


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
    for owner, name in (
        (sizing, "size"),
        (clustering, "cluster"),
        (GraphHash, "plan"),
        (data.registry, "prepared"),
        (inputs, "interactions"),
        (clicks.ClickTraining, "edges"),
    ):
        counted(owner, name)
    return counts


def test_nothing_is_sized_or_clustered_twice(toml, small, calls, tmp_path, monkeypatch):
    small["graph"] = {"user": "user", "item": "item"}
    small["training"] |= {"epochs": 1}
    small["methods"] = [
        {"method": "GraphHash", "table": ["user", "item"], "nbytes": nbytes} for nbytes in ([6000, 4000], 30)
    ]
    small["seeds"] = [0]
    command = ["experiments", "run", str(toml()), "--results", str(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert calls["size"] == 3  # one cannot be served
    assert calls["cluster"] == 3  # of the third to see whether more bytes would serve
    assert calls["plan"] == 2 + 3  # in sizing, and for each model: one is built before all runs
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
    command = ["experiments", "run", str(toml()), "--results", str(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert len(list((tmp_path / "small").glob("*.json"))) == 6
    assert calls["size"] == 6
    assert calls["cluster"] == 2
    assert (calls["prepared"], calls["interactions"], calls["edges"]) == (1, 1, 1)
