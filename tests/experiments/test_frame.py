"""The frame's configurations: all methods at equal bytes, and those for data that is not here on its samples."""

import json

import polars as pl
import pytest
from typer.testing import CliRunner

import embcomp
from embcomp.methods import METHODS
from experiments.__main__ import app
from experiments.load import CONFIGS, load

FRAMES = sorted(path.stem for path in CONFIGS.glob("frame-*.toml"))
# They need interactions or content vectors; codes and nested widths have experiments of their own (product-codes-ctr,
# retrieval-codes).
LEFT_OUT = {"DoubleGraphHash", "GraphHash", "LSHash", "SemanticIds", "SoftGraphHash", "Nested", "ProductCodes"}


LARGE = ("criteo", "avazu", "kdd12")


@pytest.mark.parametrize("name", ["frame-ml1m", "frame-frappe", *(f"frame-{name}" for name in LARGE)])
def test_every_method_is_at_every_budget(name: str) -> None:
    runs = list(load(CONFIGS / f"{name}.toml").runs())
    ours = {name for name, method in METHODS.items() if method.__module__.startswith("embcomp.")}
    assert {run.method.method for run in runs} >= ours - LEFT_OUT
    sized = [run for run in runs if run.budget]
    for label in {run.label for run in sized}:
        shares = {run.budget[1]: 0 for run in sized if run.label == label}
        assert set(shares) == {0.5, 0.1, 0.03, 0.01}
        assert {run.seed for run in sized if run.label == label and run.budget[1] == 0.1} == {0, 1, 2}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.dataset(f"{name}_sample")) for name in LARGE])
def test_configurations_of_large_data_train_on_a_sample(name, dataset, tmp_path, monkeypatch) -> None:
    (tmp_path / "data").mkdir()
    folder = tmp_path / "data" / name
    if name == "kdd12":  # the sample is a table of the published columns
        folder.mkdir()
        rows = pl.read_parquet(dataset / "train.parquet")
        rows.write_csv(folder / "training.txt", separator="\t", include_header=False)
    else:
        folder.symlink_to(dataset)
    monkeypatch.setenv("EMBCOMP_DATA", str(tmp_path / "data"))
    text = (CONFIGS / f"frame-{name}.toml").read_text().replace("epochs = 2", "epochs = 1")
    (tmp_path / "some.toml").write_text(text.replace("batch_size = 128", "batch_size = 1024"))
    command = ["run", str(tmp_path / "some.toml"), "--results", str(tmp_path), "--out", str(tmp_path / "out")]
    said = CliRunner().invoke(app, [*command, "--filter", f"{name}-hash-share0.1-seed0"])
    assert said.exit_code == 0, said.output
    (path,) = (tmp_path / "frame").glob("*.json")
    result = json.loads(path.read_text())
    assert 0 < result["served_nbytes"] <= 0.1 * result["full_nbytes"]
    assert embcomp.METHODS[result["method"]] is embcomp.HashingTrick
