"""The demo writes its page and nothing among the results of experiments."""

import base64
import re

import pytest
from rich.console import Console

from experiments import demo
from experiments.load import check


def test_the_demo_shows_bytes_and_cost(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = check({**demo._VALUES, "data": small["data"], "training": {"batch_size": 512, "epochs": 1}}, "demo")
    path = demo.run_demo(tmp_path / "demo", 1, Console(width=120), config)
    assert path == tmp_path / "demo" / "report.html"
    out = capsys.readouterr().out
    for heading in ("method", "bytes", "share", "AUC", "log-loss"):
        assert heading in out
    page = path.read_text()
    (picture,) = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    assert "bytes of tables and maps" in base64.b64decode(picture).decode()
    for method in config.methods:
        assert method.method in page
    assert {path.name for path in tmp_path.iterdir()} == {"demo"}
    # Called again it has nothing to train.
    demo.run_demo(tmp_path / "demo", 1, Console(width=120), config)
    assert "done demo/" not in capsys.readouterr().out


@pytest.mark.parametrize("there", [True, False])
def test_movielens_where_it_is_and_synthetic_clicks_elsewhere(there, tmp_path, monkeypatch):
    def load(name):
        if not there:
            raise demo.DataError("no file")

    monkeypatch.setattr(demo, "load", load)
    assert demo.experiment().data.name == ("ml-1m" if there else "synthetic")
