import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from embcomp import PrefixNgram, SentencePieces, semantic_ids
from embcomp.manifest import write_sealed
from embcomp.semantic_ids import RQVAE, ResidualKMeans, Vocabulary


def test_what_is_loaded_encodes_and_judges_alike(tokenizer: ResidualKMeans, content: Tensor, tmp_path: Path) -> None:
    network = RQVAE(2, 8, latent_dim=8, hidden=(16,), epochs=1).fit(content)
    for made in (tokenizer, network):
        folder = tmp_path / type(made).__name__
        made.save(folder)
        again = semantic_ids.load(folder)
        assert (type(again), again.config(), again.version) == (type(made), made.config(), made.version)
        codes = made.encode(content)
        assert torch.equal(again.encode(content), codes)
        assert torch.equal(again.decode(codes), made.decode(codes))
        assert again.drift(content) == made.drift(content)
        assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]


def test_the_vocabulary_is_saved_with_it(tokenizer: ResidualKMeans, content: Tensor, tmp_path: Path) -> None:
    codes = tokenizer.encode(content)
    trained = SentencePieces(vocab_size=80).train(codes, torch.arange(600), codebook_size=16)
    for pieces in (PrefixNgram(3), trained):
        tokenizer.vocabulary = Vocabulary.of(codes[:300], pieces, codebook_size=16)
        tokenizer.save(tmp_path)  # over the same version: the codes are the same
        found = semantic_ids.load(tmp_path).vocabulary
        assert found is not None
        assert found.pieces == pieces
        assert torch.equal(found.support_of(codes), tokenizer.vocabulary.support_of(codes))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_later_release_with_more_settings_keeps_the_version(tokenizer: ResidualKMeans, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text())
    del values["checksum"], values["config"]["tolerance"]  # as of a release that had no such setting
    write_sealed(path, values)
    again = semantic_ids.load(tmp_path)
    assert again.version == tokenizer.version
    again.save(tmp_path)


def test_damage_is_named(tokenizer: ResidualKMeans, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tensors,), path = list(tmp_path.glob("*.safetensors")), tmp_path / "tokenizer.json"
    text, data = path.read_text(), tensors.read_bytes()

    tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=rf"{tensors.name} is damaged or was edited"):
        semantic_ids.load(tmp_path)
    tensors.write_bytes(safetensors.torch.save({"codebooks": torch.zeros(3, 16, 12)}))
    with pytest.raises(ValueError, match=rf"{tensors.name} is damaged or was edited"):
        semantic_ids.load(tmp_path)
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{tensors.name} is missing"):
        semantic_ids.load(tmp_path)
    tensors.write_bytes(data)

    edited = json.loads(text)
    edited["config"]["levels"] = 2
    path.write_text(json.dumps(edited))
    with pytest.raises(ValueError, match=r"tokenizer.json is damaged or was edited"):
        semantic_ids.load(tmp_path)
    for wrong in (text[: len(text) // 2], "[]", "{}"):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=r"tokenizer.json is damaged"):
            semantic_ids.load(tmp_path)
    path.write_text(json.dumps({**json.loads(text), "format": "1"}))
    with pytest.raises(ValueError, match=r"tokenizer.json is damaged or was edited"):
        semantic_ids.load(tmp_path)
    later = {name: value for name, value in json.loads(text).items() if name != "checksum"}
    write_sealed(path, {**later, "format": 99})
    with pytest.raises(ValueError, match="has format 99, this version reads up to 1"):
        semantic_ids.load(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        semantic_ids.load(tmp_path)


@pytest.mark.parametrize("fails", [1, 2])
def test_a_save_that_breaks_off_leaves_what_was_there(
    tokenizer: ResidualKMeans, content: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """Before the first file is in its place, or before the second."""
    tokenizer.save(tmp_path)
    codes, replace, left = tokenizer.encode(content), os.replace, [fails]

    def broken(source: Path, target: Path) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError("no space left")
        replace(source, target)

    tokenizer.vocabulary = Vocabulary.of(codes, PrefixNgram(3), codebook_size=16)
    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no space left"):
        tokenizer.save(tmp_path)
    monkeypatch.undo()
    again = semantic_ids.load(tmp_path)
    assert again.vocabulary is None
    assert torch.equal(again.encode(content), codes)
    tokenizer.save(tmp_path)
    assert semantic_ids.load(tmp_path).vocabulary is not None
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_keeps_its_version(tokenizer: ResidualKMeans, content: Tensor, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=rf"holds version {tokenizer.version}, which is frozen"):
        ResidualKMeans(3, 16, seed=1).fit(content).save(tmp_path)
    tokenizer.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match="not fitted"):
        ResidualKMeans(3, 16).save(tmp_path)
