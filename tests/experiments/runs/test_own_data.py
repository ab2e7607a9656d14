"""Runs on files of one's own: what they depend on, columns of any name, splits of one class."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from data import registry
from embcomp.ops.kmeans import no_progress
from experiments.config import RunConfig
from experiments.errors import InputError
from experiments.load import check
from experiments.runs import results
from experiments.runs.results import checkpoint_key, is_current, key
from experiments.runs.runner import Settings, execute, run_all

NAMES = ("item.cat", "item/cat", "type", "items", "values", "train", "user[0]")


def rows(seed: int = 0, number: int = 400) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    columns = {name: draw.integers(10, size=number) for name in ("item", *NAMES)}
    return pl.DataFrame({"click": draw.integers(2, size=number), **columns})


def make_runs(*methods: dict[str, Any], features: tuple[str, ...] = ("item",), **sections: Any) -> list[RunConfig]:
    schema = {"label": "click", "split": "time", "features": {name: {"ids": 10} for name in features}}
    values = {
        "data": {"name": "parquet", "options": {"folder": "rows.parquet", "schema": schema}},
        "model": {"name": "DCN", "embedding_dim": 4, "options": {"cross_layers": 1, "hidden": [4]}},
        "training": {"batch_size": 128, "epochs": 1, "monitor": "valid/logloss"},
        "methods": list(methods) or [{"method": "Full"}],
        **sections,
    }
    return list(check(values, "own.toml", "own").runs())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What EMBCOMP_DATA names: a folder with `rows.parquet`."""
    monkeypatch.setenv("EMBCOMP_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    rows().write_parquet(tmp_path / "rows.parquet")
    return tmp_path


def test_a_result_is_of_what_is_in_the_files(folder: Path) -> None:
    (run,), settings = make_runs(), Settings(folder / "results", folder / "out")
    assert execute(run, settings, no_progress)[0] == "done"
    assert is_current(run, settings.results)
    path = folder / "rows.parquet"
    os.utime(path, ns=(0, 0))
    assert is_current(run, settings.results)
    first, checkpoints = key(run), checkpoint_key(run)
    rows(seed=1).write_parquet(path)
    os.utime(path, ns=(0, 0))
    assert not is_current(run, settings.results)
    assert key(run) != first
    assert checkpoint_key(run) != checkpoints
    rows().write_parquet(path)
    assert key(run) == first
    path.rename(folder / "moved.parquet")
    with pytest.raises(InputError, match=r"data 'parquet': .*no files at 'rows\.parquet'; .* EMBCOMP_DATA"):
        key(run)
    (moved,) = make_runs(data={**_data(run), "options": {**run.data.options, "folder": "moved.parquet"}})
    assert key(moved) == first


def test_a_schema_counts_by_its_content(folder: Path) -> None:
    schema = folder / "schema.toml"
    schema.write_text('label = "click"\n[features.item]\nids = 10\n')
    other = folder / "other.toml"
    other.write_text('# the same\nlabel = "click"\nfeatures = { item = { ids = 10 } }\n')

    def made(path: Path) -> str:
        (run,) = make_runs(data={"name": "parquet", "options": {"folder": "rows.parquet", "schema": str(path)}})
        return key(run)

    first = made(schema)
    assert made(other) == first
    schema.write_text('label = "click"\n[features.item]\nids = 11\n')
    assert made(schema) != first
    schema.unlink()
    with pytest.raises(InputError, match=r"no schema file .*schema\.toml"):
        made(schema)


def test_a_published_data_set_is_known_by_its_name_and_its_files(folder: Path, monkeypatch: Any, make_run: Any) -> None:
    """Results from before checksums, and those of data that are not here, stay current."""
    path = folder / "ml-1m" / "ratings.parquet"
    path.parent.mkdir()
    path.write_bytes(b"one")
    monkeypatch.setitem(
        registry.DATASETS, "ml-1m", registry.Dataset(lambda folder: None, lambda folder: [path], "ml-1m")
    )
    run = make_run(data={"name": "ml-1m", "options": {}})
    first, file = key(run), results.path_of(run, folder / "results")
    file.parent.mkdir(parents=True)
    for values, other, missing in (
        ({"key": first}, True, True),
        (results.proof(run), False, True),
        ({"key": "else"}, False, False),
    ):
        file.write_text(json.dumps(values))
        assert is_current(run, folder / "results") == (values["key"] == first)
        path.write_bytes(b"two")
        assert key(run) == first
        assert is_current(run, folder / "results") == other
        path.unlink()
        assert is_current(run, folder / "results") == missing
        path.write_bytes(b"one")


def test_a_test_split_of_one_class(folder: Path) -> None:
    """AUC is left out and said to be; the other runs go on."""
    frame = rows()
    frame.with_columns(click=pl.when(pl.int_range(400) >= 360).then(0).otherwise("click")).write_parquet("rows.parquet")
    runs = make_runs({"method": "Full"}, {"method": "HashingTrick", "share": 0.5})
    console = Console(width=200, record=True, file=io.StringIO())
    summary = run_all(runs, Settings(folder / "results", folder / "out"), console)
    assert len(summary.done) == 2
    assert console.export_text().count("auc not defined (one class only)  logloss 0.") == 2
    for run in runs:
        metrics = json.loads(results.path_of(run, folder / "results").read_text())["metrics"]
        assert "test/auc" not in metrics
        assert {"test/logloss", "valid/auc"} <= set(metrics)
    frame.with_columns(click=pl.when(pl.int_range(400) >= 320).then(0).otherwise("click")).write_parquet("rows.parquet")
    (run,) = make_runs(training={"batch_size": 128, "epochs": 1})
    status, said = execute(run, Settings(folder / "results", folder / "out"), no_progress)
    assert status == "bad_input"
    assert "valid/auc is not defined: the valid split holds one class only; split the data otherwise" in said


@pytest.mark.parametrize(
    "method",
    [
        {"method": "Full"},
        {"method": "FrequencyHash", "share": 0.6},
        {"method": "UnifiedEmbedding", "share": 0.9, "options": {"chunk_dim": 2}},
        {"method": "GraphHash", "share": 0.7, "table": ["items", "item.cat"]},
    ],
    ids=lambda method: method["method"],
)
def test_columns_of_any_name(folder: Path, method: dict[str, Any]) -> None:
    """Names that modules refuse, that are patterns, or that look like paths."""
    (run,) = make_runs(
        method,
        features=NAMES,
        graph={"user": "items", "item": "item.cat"},
        slices={"often": {"feature": "item/cat", "min_count": 20}},
        model={"name": "DeepFM", "embedding_dim": 4, "linear": True, "options": {"hidden": [4]}},
    )
    status, said = execute(run, Settings(folder / "results", folder / "out"), no_progress)
    assert status == "done", said
    values = json.loads(results.path_of(run, folder / "results").read_text())
    assert values["metrics"]["test/rows/often"] > 0
    assert values["full_nbytes"] == len(NAMES) * 10 * (4 + 1) * 4


def _data(run: RunConfig) -> dict[str, Any]:
    return {"name": run.data.name, "options": run.data.options}
