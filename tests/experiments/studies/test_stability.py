"""Training again on a later window: what is compared, and that a run leaves a file and a row."""

import json

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats

from experiments.errors import InputError
from experiments.load import check, load
from experiments.studies import stability
from experiments.studies.stability import CONFIG, change, measure, run_all, write_markdown
from tests.globo_clicks import write_clicks

TOML = """
experiment = "semantic-stability"
data = { name = "globo" }
model = { name = "DCNv2", embedding_dim = 4, options = { cross_layers = 1, hidden = [4] } }
training = { batch_size = 64, epochs = 1 }

[[methods]]
method = "SemanticIds"
label = "prefixes"
table = "item"
rows = 12
[methods.options]
codes = { tokenizer = "ResidualKMeans", levels = 2, codebook_size = 4 }
pieces = { kind = "PrefixNgram", n = 2 }
"""


def test_change_is_that_of_the_definition():
    before, after = torch.randn(500), torch.randn(500)
    rows = torch.arange(500) < 100
    found = change(before, after, {"new": rows})
    for part, suffix in ((slice(None), ""), (slice(100), "/new")):
        p, q = (1 / (1 + np.exp(-x[part].double().numpy())) for x in (before, after))
        assert found[f"difference{suffix}"] == pytest.approx(np.abs(p - q).mean() / ((p + q) / 2).mean())
        assert found[f"rank{suffix}"] == pytest.approx(stats.spearmanr(p, q).statistic, abs=1e-6)


def test_each_run_leaves_a_file_and_a_row(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBCOMP_DATA", str(tmp_path))
    (tmp_path / "globo").mkdir()
    write_clicks(tmp_path / "globo")
    (tmp_path / "stability.toml").write_text(TOML)
    fitted = []
    resolved = stability.resolved
    monkeypatch.setattr(stability, "resolved", lambda run, clicks: fitted.append(run.data) or resolved(run, clicks))
    run_all(tmp_path / "results", tmp_path / "out", Console(quiet=True), tmp_path / "stability.toml")
    (file,) = (tmp_path / "results").glob("semantic-stability/globo/*.json")
    found = json.loads(file.read_text())
    assert 0 < found["change"]["difference"] < 2
    assert [data.options["train_share"] for data in fitted] == [0.4]  # one tokenizer, of the earlier window
    run_all(tmp_path / "results", tmp_path / "out", Console(quiet=True), tmp_path / "stability.toml")
    assert len(fitted) == 1
    table = write_markdown(tmp_path / "results", tmp_path).read_text()
    assert f"| prefixes | 1 | {found['change']['difference']:.4f} |" in table


def test_data_without_windows_are_refused(small, tmp_path):
    with pytest.raises(InputError, match="'synthetic' has no option first_share or train_share: it cannot be windowed"):
        measure(next(check(small, "small.toml").runs()), tmp_path)


def test_the_file_of_the_repository_is_well_formed():
    assert len({run.name for run in load(CONFIG).runs()}) == 6
