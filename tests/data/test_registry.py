import pytest

import data
from data import DataError
from data.registry import has_files, root_folder


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ml1m", {}, "unknown data set 'ml1m': did you mean 'ml-1m'"),
        ("xyz", {}, "unknown data set 'xyz': there are ml-1m, criteo, avazu, kdd12, frappe, globo, parquet, synthetic"),
        ("synthetic", {"num_row": 5}, "unknown option of synthetic 'num_row': did you mean 'num_rows'"),
        ("frappe", {"seed": 5}, "unknown option of frappe 'seed': there are order"),
        ("criteo", {"seed": "x"}, "option 'seed' of criteo must be like its default 0, not 'x'"),
        ("criteo", {"min_count": True}, "option 'min_count' of criteo must be like its default 10, not True"),
        ("synthetic", {"drift": "much"}, r"must be like its default 0\.1, not 'much'"),
        ("parquet", {"folder": "x"}, "data set 'parquet' needs the option 'schema'"),
        ("ml-1m", {}, "set EMBCOMP_DATA"),
    ],
)
def test_bad_requests(name, options, message, monkeypatch):
    monkeypatch.delenv("EMBCOMP_DATA", raising=False)
    with pytest.raises(DataError, match=message):
        data.load(name, **options)


def test_root(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBCOMP_DATA", str(tmp_path))
    assert root_folder() == tmp_path
    assert root_folder("elsewhere").name == "elsewhere"
    with pytest.raises(DataError, match=rf"no file {tmp_path}/criteo/train\.txt; `python -m data fetch criteo`"):
        data.load("criteo")


def test_whether_files_are_there(monkeypatch, tmp_path):
    monkeypatch.delenv("EMBCOMP_DATA", raising=False)
    assert not has_files("ml-1m")
    monkeypatch.setenv("EMBCOMP_DATA", str(tmp_path))
    assert not has_files("ml-1m")
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m" / "users.dat").write_text("")
    assert has_files("ml-1m")
    assert not has_files("synthetic")
    with pytest.raises(DataError, match="did you mean 'ml-1m'"):
        has_files("ml1m")
