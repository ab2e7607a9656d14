"""The bench beside outrank: what is planted, and that the two rankings are compared feature by feature."""

import io
import sys

import pytest
from rich.console import Console

import embcomp
from experiments.bench import features
from experiments.errors import InputError

STAND_IN = """#!{python}
import sys, pathlib
if "ranking" in sys.argv:
    out = pathlib.Path(sys.argv[sys.argv.index("--output_folder") + 1])
    out.mkdir()
    names = pathlib.Path("csv/data.csv").open().readline().strip().split(",")
    lines = [f"{{name}}\\tlabel\\t{{-at}}" for at, name in enumerate(names)]
    (out / "pairwise_ranks.tsv").write_text("\\n".join(["FeatureA\\tFeatureB\\tScore", *lines]))
    print("done in", 2.5)
"""


def test_what_is_planted_is_found():
    ranking = embcomp.rank_features(features.planted(100_000))
    scores = ranking.scores
    for name in ("user", "item"):
        order = [name, *(f"{name} {share} noise" for share in ("20%", "40%", "60%"))]
        assert [scores[each] for each in order] == sorted((scores[each] for each in order), reverse=True)
    assert {name for name in scores if "oise" in name and "%" not in name} <= {*ranking.useless}
    assert not {"user", "item", "device", "hour", "user 60% noise"} & {*ranking.useless}


def test_rankings_are_compared_feature_by_feature(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBCOMP_DATA", str(tmp_path))  # no real logs
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN.format(python=sys.executable))
    stand_in.chmod(0o755)
    rows = features.run(Console(file=io.StringIO()), outrank=str(stand_in), rows=4000, part=2000)
    names = [row.name.split(",")[0] for row in rows]
    assert [name for name in names if name.startswith("outrank")] == ["outrank"] * 3
    spearman = [row for row in rows if row.name.startswith("Spearman")]
    assert all(-1 <= row.ratio <= 1 for row in spearman)
    assert {row.against.split(",")[1] for row in spearman} == {" one batch", " its defaults"}


def test_an_interpreter_without_outrank_is_refused():
    with pytest.raises(InputError, match=r"no such interpreter has the package outrank"):
        features.run(Console(file=io.StringIO()), outrank="/bin/false")
