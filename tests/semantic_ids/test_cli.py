from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from embcomp import semantic_ids
from embcomp.cli import main
from embcomp.semantic_ids.cli import app


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


def test_fit_encode_quality(content: Tensor, tmp_path: Path) -> None:
    file, folder, codes = tmp_path / "content.npy", tmp_path / "films", tmp_path / "codes.npy"
    np.save(file, content.numpy())
    status, said = run("fit", file, "-o", folder, "--levels", 2, "--codebook-size", 16)
    assert status == 0, said
    tokenizer = semantic_ids.load(folder)
    assert tokenizer.version in said
    assert run("encode", folder, file, "--out", codes)[0] == 0
    assert torch.equal(torch.from_numpy(np.load(codes)), tokenizer.encode(content))
    status, said = run("quality", folder, file, "--codes", codes)
    assert status == 0
    assert f"{tokenizer.quality(None, content).relative_error:.4f}" in said
    assert "retrain" in said


def test_an_autoencoder_from_a_parquet_column(content: Tensor, tmp_path: Path) -> None:
    file, folder, codes = tmp_path / "items.parquet", tmp_path / "films", tmp_path / "codes.npy"
    some = content[:100].numpy()
    pl.DataFrame({"v": pl.Series(some, dtype=pl.Array(pl.Float32, 12))}).write_parquet(file)
    options = ("--levels", 1, "--codebook-size", 8, "--column", "v", "--checkpoint", tmp_path / "fit.pt", "--seed", 3)
    status, said = run("fit", file, "-o", folder, "--kind", "rqvae", *options)
    assert status == 0, said
    assert (tmp_path / "fit.pt").exists()
    tokenizer = semantic_ids.load(folder)
    assert (type(tokenizer).__name__, tokenizer.seed) == ("RQVAE", 3)
    assert run("encode", folder, file, "--out", codes, "--column", "v")[0] == 0
    assert torch.equal(torch.from_numpy(np.load(codes)), tokenizer.encode(some))
    status, said = run("quality", folder, file, "--column", "v")
    assert status == 0, said

    before = codes.read_bytes()
    codes.write_bytes(before[:-40])
    for words, message in (
        (("fit", file, "-o", folder, *options), "films holds a tokenizer"),
        (("fit", file, "-o", file, *options), "or is a file; give another folder"),
        (("fit", file, "-o", tmp_path / "x", "--device", "pear", *options), "device pear"),
        (("encode", folder, file, "-o", tmp_path / "no" / "codes.npy"), "there is no folder"),
        (("encode", folder, file, "-o", tmp_path / "new.npy", "--column", "w"), "give the column of the vectors"),
        (("quality", folder, file, "--column", "v", "--codes", codes), "codes.npy is damaged, or holds no codes"),
    ):
        status, said = run(*words)
        assert (status, message in said.replace("\n", "")) == (2, True), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.npy", "films", "fit.pt", "items.parquet"]


@pytest.mark.parametrize("words", [("fit", "none.npy", "--out", "x"), ("encode", "none", "none.npy", "--out", "x.npy")])
def test_bad_input_is_one_message(words: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, said = run(*words)
    assert status == 2
    assert "none" in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_the_command_embcomp_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["semantic-ids", "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert all(command in said for command in ("fit", "encode", "quality"))
