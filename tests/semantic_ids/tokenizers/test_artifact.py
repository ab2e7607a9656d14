import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from embcomp import PrefixNgram, SentencePieces, artifact, semantic_ids
from embcomp.manifest import write_sealed
from embcomp.semantic_ids import RQVAE, ResidualKMeans, Vocabulary

SAVED = Path(__file__).parent / "saved" / "residual_kmeans"


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
        assert [path.name for path in folder.iterdir()] == ["tokenizer.safetensors"]


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
    assert len(list(tmp_path.iterdir())) == 1


def test_a_later_release_with_more_settings_keeps_the_version(tokenizer: ResidualKMeans, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.safetensors"
    values, tensors = artifact.load(path, "tokenizer")
    del values["config"]["tolerance"]  # as of a release that had no such setting
    artifact.save(path, "tokenizer", values, tensors)
    again = semantic_ids.load(tmp_path)
    assert again.version == tokenizer.version
    again.save(tmp_path)


def test_damage_is_named(tokenizer: ResidualKMeans, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.safetensors"
    data = path.read_bytes()
    for wrong in (data[:-1] + bytes([data[-1] ^ 1]), data.replace(b"levels", b"lewels"), data[: len(data) // 2], b"{}"):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"tokenizer.safetensors is damaged"):
            semantic_ids.load(tmp_path)
    path.write_bytes(safetensors.torch.save({"codebooks": torch.zeros(3, 16, 12)}))
    with pytest.raises(ValueError, match=r"tokenizer.safetensors is damaged, or not a file of embcomp"):
        semantic_ids.load(tmp_path)
    artifact.save(path, "mixture", {}, {})
    with pytest.raises(ValueError, match="holds a mixture, not a tokenizer"):
        semantic_ids.load(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        semantic_ids.load(tmp_path)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder that embcomp 0.1 wrote."""
    return Path(shutil.copytree(SAVED, tmp_path / "old"))


def test_what_an_earlier_release_saved_is_read_and_replaced(old: Path, tmp_path: Path) -> None:
    content = torch.randn(24, 4, generator=torch.Generator().manual_seed(5))
    before = semantic_ids.load(old)
    assert before.version == "32f6d6709969"
    assert before.encode(content)[:6].tolist() == [[2, 2], [2, 1], [2, 3], [2, 1], [2, 2], [1, 2]]
    assert before.vocabulary is not None
    assert before.vocabulary.support_of(before.encode(content))[:3].tolist() == [[10, 2], [10, 3], [10, 3]]
    with pytest.raises(ValueError, match="holds version 32f6d6709969, which is frozen"):
        ResidualKMeans(2, 4, seed=1).fit(content).save(old)
    before.save(old)
    assert [path.name for path in old.iterdir()] == ["tokenizer.safetensors"]
    assert torch.equal(semantic_ids.load(old).encode(content), before.encode(content))


def test_damage_of_an_earlier_release_is_named(old: Path) -> None:
    (tensors,), path = list(old.glob("*.safetensors")), old / "tokenizer.json"
    text, data = path.read_text(), tensors.read_bytes()

    tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=rf"{tensors.name} is damaged or was edited"):
        semantic_ids.load(old)
    tensors.write_bytes(safetensors.torch.save({"codebooks": torch.zeros(3, 16, 12)}))
    with pytest.raises(ValueError, match=rf"{tensors.name} is damaged or was edited"):
        semantic_ids.load(old)
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{tensors.name} is missing"):
        semantic_ids.load(old)
    tensors.write_bytes(data)

    edited = json.loads(text)
    edited["config"]["levels"] = 3
    path.write_text(json.dumps(edited))
    with pytest.raises(ValueError, match=r"tokenizer.json is damaged or was edited"):
        semantic_ids.load(old)
    for wrong in (text[: len(text) // 2], "[]", "{}"):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=r"tokenizer.json is damaged"):
            semantic_ids.load(old)
    path.write_text(json.dumps({**json.loads(text), "format": "1"}))
    with pytest.raises(ValueError, match=r"tokenizer.json is damaged or was edited"):
        semantic_ids.load(old)
    later = {name: value for name, value in json.loads(text).items() if name != "checksum"}
    write_sealed(path, {**later, "format": 99})
    with pytest.raises(ValueError, match="has format 99, this version reads up to 1"):
        semantic_ids.load(old)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        semantic_ids.load(old)


def test_a_save_that_breaks_off_leaves_what_was_there(
    tokenizer: ResidualKMeans, content: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.save(tmp_path)
    codes = tokenizer.encode(content)

    def broken(source: Path, target: Path) -> None:
        raise OSError("no space left")

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
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_keeps_its_version(tokenizer: ResidualKMeans, content: Tensor, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=rf"holds version {tokenizer.version}, which is frozen"):
        ResidualKMeans(3, 16, seed=1).fit(content).save(tmp_path)
    tokenizer.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match="not fitted"):
        ResidualKMeans(3, 16).save(tmp_path)
