import hashlib
import io
import zipfile

import pytest
from typer.testing import CliRunner

from data import __main__
from data.sources import SOURCES, Archive


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["data", *arguments])
    with pytest.raises(SystemExit) as exit_:
        __main__.main()
    output = capsys.readouterr()
    return exit_.value.code, output.out, output.err


def test_command(server, tmp_path, monkeypatch, capsys):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("ml-1m/ratings.dat", "1::1::5::1\n")
    body = buffer.getvalue()
    server.files["/ml-1m.zip"] = body
    good = Archive(server.url("/ml-1m.zip"), {"ratings.dat": None}, "md5:" + hashlib.md5(body).hexdigest(), "cite it")
    monkeypatch.setitem(SOURCES, "ml-1m", good)
    monkeypatch.setenv("EMBCOMP_DATA", str(tmp_path))
    code, out, err = run(monkeypatch, capsys, "fetch", "ml-1m")
    assert code == 0
    assert out == f"{tmp_path}/ml-1m/ratings.dat\n"
    assert "Terms: cite it" in err
    assert run(monkeypatch, capsys, "fetch", "ml-1m")[1] == f"{tmp_path}/ml-1m has all files\n"
    bad = Archive(server.url("/ml-1m.zip"), {"ratings.dat": None}, "md5:0", "cite it")
    monkeypatch.setitem(SOURCES, "ml-1m", bad)
    code, out, err = run(monkeypatch, capsys, "fetch", "ml-1m", "--root", str(tmp_path / "new"))
    assert (code, out) == (2, "")
    assert "error: ml-1m.zip: md5 is" in err
    assert not list((tmp_path / "new" / "ml-1m").iterdir())


def test_terms_must_be_accepted_first(server, tmp_path, monkeypatch, capsys):
    archive = Archive(server.url("/c.tar.gz"), {"train.txt": None}, None, "terms", accept=True)
    monkeypatch.setitem(SOURCES, "criteo", archive)
    code, _, err = run(monkeypatch, capsys, "fetch", "criteo", "--root", str(tmp_path))
    assert code == 2
    assert "--accept-terms" in err
    assert not server.requests
    code, _, err = run(monkeypatch, capsys, "fetch", "criteo", "--root", str(tmp_path), "--accept-terms")
    assert code == 2
    assert "404 Not Found" in err
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch", "avazu"], "avazu/train.csv"),
        (["fetch", "criteo"], "--accept-terms"),
        (["fetch", "beauty"], "beauty/interactions.parquet with the columns user_id"),
        (["head", "gowalla"], "no file"),
        (["fetch", "synthetic"], "nothing to fetch"),
        (["fetch", "ml1m"], "did you mean 'ml-1m'"),
        (["head", "ml-1m"], "no file"),
        (["head", "synthetic", "--split", "dev"], "synthetic has no split 'dev'"),
    ],
)
def test_command_refuses(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EMBCOMP_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.lstrip("\n").startswith("error: ")  # older releases of typer begin a line


def test_list_and_head(tmp_path):
    listed = CliRunner().invoke(__main__.app, ["list"])
    assert listed.exit_code == 0
    assert all(
        name in listed.output for name in ("ml-1m", "criteo", "avazu", "frappe", "parquet", "synthetic", "gowalla")
    )
    shown = CliRunner().invoke(__main__.app, ["head", "synthetic", "--cache", str(tmp_path), "--rows", "3"])
    assert shown.exit_code == 0
    assert "shape: (3, 8)" in shown.output
