"""Batches that contradict themselves: the text names the feature, and nothing is read or trained."""

import pytest
import torch
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_modules import EmbeddingBagCollection

import embcomp
from embcomp.ops import native
from embcomp.torchrec import CompressedEmbeddingBagCollection, fuse_

VALUES = torch.tensor([7, 8, 3])


def lengths(*numbers: int) -> dict[str, torch.Tensor]:
    return {"lengths": torch.tensor(numbers)}


def offsets(*numbers: int) -> dict[str, torch.Tensor]:
    return {"offsets": torch.tensor(numbers)}


def model(form: str) -> torch.nn.Module:
    tables = [EmbeddingBagConfig(name="t", num_embeddings=9, embedding_dim=8, feature_names=["user", "film", "tag"])]
    made = (
        EmbeddingBagCollection(tables=tables)
        if form == "fused torchrec"
        else CompressedEmbeddingBagCollection(tables, {"*": embcomp.HashingTrick(rows=5)})
    )
    holder = torch.nn.ModuleList([made])
    if form != "plain":
        fuse_(holder, optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 1.0})
    return holder[0]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("form", ["plain", "fused", "fused torchrec"])
def test_batches_that_contradict_themselves(form: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(native, "library", lambda: None)
    module = model(form)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for told, message in [
        (offsets(0, 1, 500, 3), "'film': a length of 499 in a batch of 3 values|'tag': a length of -497"),
        (lengths(1, 1, 500), "'tag': a length of 500 in a batch of 3 values"),
        (lengths(1, 1, 0), r"add up to \{'user': 1, 'film': 1, 'tag': 0\}, 2 in all, for 3 values"),
        (lengths(2, -1, 2), "'film': a length of -1"),
        (offsets(1, 1, 2, 3), r"add up to .* 2 in all, for 3 values"),
        (offsets(1, 2, 3, 4), "offsets begin at 1, not at 0"),
        ({**lengths(1, 1, 1), **offsets(0, 2, 2, 3)}, r"'user': offsets \[0, 2\] of bag 0, whose length is 1"),
        ({**lengths(1, 1, 1), "stride": 2}, r"3 lengths for 3 features \['user', 'film', 'tag'\] in batches of 2"),
        ({**lengths(1, 1, 1), "length_per_key": [1, 2, 0]}, r"length_per_key is \[1, 2, 0\], but .*'film': 1"),
        ({**lengths(1, 1, 1), "length_per_key": [1, 1]}, r"length_per_key is \[1, 1\] for 3 values"),
        ({**lengths(1, 1, 1), "weights": torch.ones(2)}, "2 weights for 3 values"),
        ({"lengths": torch.tensor([1, 1, 1]).short()}, "lengths are torch.int16, expected torch.int64"),
    ]:
        with pytest.raises(ValueError, match=message):
            module(KeyedJaggedTensor(["user", "film", "tag"], VALUES, **told))
    for wrong in ([1], None, torch.zeros(3), {"user": VALUES}):
        with pytest.raises(TypeError, match="features must be a KeyedJaggedTensor, got"):
            module(wrong)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module(KeyedJaggedTensor(["user", "film", "tag"], VALUES, **lengths(1, 1, 1))).values().shape == (1, 24)


def test_ids_that_change_before_the_backward_pass() -> None:
    """Rows of a full table are the ids themselves; read again, they would name foreign memory."""
    tables = [EmbeddingBagConfig(name="t", num_embeddings=9, embedding_dim=8, feature_names=["user"])]
    for fused in (False, True):
        module = torch.nn.ModuleList([CompressedEmbeddingBagCollection(tables, {"*": embcomp.Full()})])
        if fused:
            fuse_(module, optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 1.0})
        ids = torch.tensor([1, 2])
        out = module[0](KeyedJaggedTensor(["user"], ids, lengths=torch.tensor([1, 1]))).values().sum()
        ids.fill_(10**9)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.backward()
