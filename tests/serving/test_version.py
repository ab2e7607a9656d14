"""Exported files carry a version, and are refused where another one is wanted."""

import pytest
import torch
from torch import nn

import embcomp
from embcomp.files import Damaged


def test_a_stamp_is_read_compared_and_part_of_the_checksum(tmp_path) -> None:
    model = nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 1))
    stamped, plain = tmp_path / "stamped.pt2", tmp_path / "plain.pt2"
    embcomp.export(model, stamped, (torch.arange(4),), version="monday")
    embcomp.export(model, plain, (torch.arange(4),))
    assert (embcomp.serving.version_of(stamped), embcomp.serving.version_of(plain)) == ("monday", None)
    ids = torch.tensor([3, 49])
    expected = torch.export.load(stamped).module()(ids)  # torch alone reads it as before
    assert torch.equal(embcomp.serving.load(stamped, version="monday").module()(ids), expected)
    assert torch.equal(embcomp.serving.load(stamped).module()(ids), expected)
    with pytest.raises(ValueError, match=r"stamped.pt2 holds version 'monday', and version 'tuesday' is wanted"):
        embcomp.serving.load(stamped, version="tuesday")
    with pytest.raises(ValueError, match="holds version None"):
        embcomp.serving.load(plain, version="monday")
    content = stamped.read_bytes()
    stamped.write_bytes(content.replace(b"monday", b"sunday"))
    with pytest.raises(Damaged):
        embcomp.serving.load(stamped, version="sunday")


def test_what_is_no_stamp_and_no_file(tmp_path) -> None:
    model = nn.Sequential(nn.Embedding(50, 32))
    with pytest.raises(TypeError, match="version must be a string"):
        embcomp.export(model, tmp_path / "model.pt2", (torch.arange(4),), version=3)
    (tmp_path / "text.pt2").write_text("no archive")
    with pytest.raises(Damaged, match=r"text\.pt2"):
        embcomp.serving.version_of(tmp_path / "text.pt2")
    with pytest.raises(FileNotFoundError):
        embcomp.serving.version_of(tmp_path / "none.pt2")
