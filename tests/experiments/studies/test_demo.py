"""The demo writes its page and nothing among the results of experiments."""

import base64
import re

import pytest
from rich.console import Console

from experiments.errors import InputError
from experiments.load import check
from experiments.studies import demo


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


def test_movielens_where_it_is_and_synthetic_clicks_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("EMBCOMP_DATA", raising=False)
    assert demo.experiment().data.name == "synthetic"
    monkeypatch.setenv("EMBCOMP_DATA", str(tmp_path))
    assert demo.experiment().data.name == "synthetic"
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    assert demo.experiment().data.name == "synthetic"
    lines = [f"{user}::{item}::{3 * item - 2}::{user}" for user in range(1, 31) for item in (1, 2)]
    (folder / "ratings.dat").write_text("\n".join(lines))
    # Half there, and damaged: never silently another data set.
    with pytest.raises(InputError, match=r"no file .*users\.dat"):
        demo.experiment()
    (folder / "users.dat").write_text("1::F\n")
    with pytest.raises(InputError, match=r"users\.dat:1: 2 fields, not 5"):
        demo.experiment()
    (folder / "users.dat").write_text("".join(f"{user}::F::25::1::55\n" for user in range(1, 31)))
    assert demo.experiment().data.name == "ml-1m"
