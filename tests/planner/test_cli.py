"""The command `embcomp choose`."""

import pytest

import embcomp
from embcomp.cli import main

TABLES = ["user=5000x16", "item=3000x16", "day=7x16"]


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["choose", *arguments])
    return end.value.code, *capsys.readouterr()


def test_it_prints_and_writes_the_choice(capsys, tmp_path):
    path, picture = tmp_path / "choice.json", tmp_path / "curve.svg"
    code, out, _ = run(capsys, *TABLES, "--nbytes", "10%", "--save", str(path), "--plot", str(picture))
    tables = [embcomp.Table("user", 5000, 16), embcomp.Table("item", 3000, 16), embcomp.Table("day", 7, 16)]
    expected = embcomp.choose(tables, "10%")
    assert code == 0
    assert out.strip() == str(expected)
    assert embcomp.Choice.load(path).tables == expected.tables
    assert picture.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["user=5000", "--nbytes", "10%"], "'user=5000' is not a table: write NAME=IDSxWIDTH"),
        ([*TABLES, "--nbytes", "much"], "is not a size"),
        ([*TABLES, "--nbytes", "10"], "the least possible is"),
        ([*TABLES, "--nbytes", "10%", "--keep", "x"], "the pattern 'x' matches no table"),
        ([*TABLES, "--nbytes", "10%", "--count", "both"], "count"),
    ],
)
def test_bad_input_ends_in_one_line(capsys, arguments, said):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
