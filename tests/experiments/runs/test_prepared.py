"""Each run is prepared once: what the check before all runs has sized is what is trained."""

import json
from collections import Counter

import pytest

from embcomp import GraphHash
from embcomp.graph import clustering
from experiments import __main__ as cli
from experiments.tasks import sizing


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    """How often methods are sized, clusters are sought, and methods planned."""
    counts: Counter[str] = Counter()

    def counted(owner, name):
        call = getattr(owner, name)

        def counting(*args, **kwargs):
            counts[name] += 1
            return call(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    for owner, name in ((sizing, "size"), (clustering, "cluster"), (GraphHash, "plan")):
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
