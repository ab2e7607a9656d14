"""Result files of tokenizers, and their table."""

import json

import torch
from rich.console import Console

from experiments.studies import tokenizers
from experiments.studies.tokenizers import CONFIG, Run, measure, run_all, runs, write_markdown

TOML = """
datasets = ["globo", "ml-1m"]
seeds = [0]
levels = 2
codebook_size = 8

[[tokenizers]]
name = "ResidualKMeans"
options = { rounds = 1 }

[[tokenizers]]
name = "vector-quantize-pytorch"
label = "theirs"
options = { kmeans_init = true }
"""


def test_each_run_leaves_a_file_and_a_row(tmp_path, monkeypatch):
    content = torch.randn(200, 6)
    (tmp_path / "config.toml").write_text(TOML)
    chosen = list(runs(tmp_path / "config.toml"))
    monkeypatch.setattr(tokenizers, "runs", lambda: chosen)
    monkeypatch.setattr(tokenizers, "content_of", lambda name: content if name == "globo" else None)
    console = Console(record=True, quiet=True)
    run_all(tmp_path, console)
    files = sorted((tmp_path / "semantic-tokenizers").glob("*/*.json"))
    assert [file.stem for file in files] == ["ResidualKMeans-seed0", "theirs-seed0"]
    found = json.loads(files[0].read_text())
    again = measure(chosen[0], content)
    assert found["quality"]["relative_error"] == again.relative_error
    before = [file.stat().st_mtime_ns for file in files]
    run_all(tmp_path, console)
    assert [file.stat().st_mtime_ns for file in files] == before
    table = write_markdown(tmp_path, tmp_path).read_text()
    assert f"| globo | ResidualKMeans | 1 | {again.relative_error:.4f} |" in table
    assert "| globo | theirs | 1 |" in table


def test_the_judge_of_their_codes_decodes_as_they_do():
    content = torch.randn(200, 6)
    run = Run("globo", "vector-quantize-pytorch", "theirs", 2, 8, {"kmeans_init": True}, 0)
    vq, codes = tokenizers._residual_vq(run, content)
    with torch.no_grad():
        theirs = vq.get_output_from_indices(codes)
    error = float((theirs - content).square().sum() / content.square().sum())
    assert abs(measure(run, content).relative_error - error) < 1e-5


def test_the_file_of_the_repository_is_well_formed():
    assert {run.name for run in runs(CONFIG)} == {"ResidualKMeans", "RQVAE", "vector-quantize-pytorch"}
