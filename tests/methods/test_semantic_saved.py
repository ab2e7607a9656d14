"""Files and pickles of `SemanticIds` from before its encoder held `ItemCodes` load, and give the same vectors."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import embcomp
from embcomp import PrefixNgram, SemanticIds, Unigram
from embcomp.checkpoints import Checkpoints
from embcomp.nn import CompressedEmbedding
from embcomp.semantic_ids import Neighbours
from tests.before import SAVED, pickled

BEFORE = pickled()
CODES, COUNTS, IDS = BEFORE["inputs"]["codes"], BEFORE["inputs"]["counts"], BEFORE["ids"]
NEIGHBOURS = Neighbours.of(BEFORE["inputs"]["content"], COUNTS)


def group(**settings) -> nn.ModuleDict:
    model = nn.ModuleDict({name: nn.Embedding(33, 8) for name in ("item", "history")})
    embcomp.compress_(model, {"*": SemanticIds(CODES, PrefixNgram(3), rows=40, **settings)})
    return model.eval()


def alone(ids: int | None, dim: int, method: SemanticIds) -> nn.ModuleDict:
    return nn.ModuleDict({"item": CompressedEmbedding(ids, dim, method)}).eval()


MODELS = {
    "plain": lambda: group(),
    "counts": lambda: group(counts=COUNTS, min_support=2, piece_dropout=0.2, id_rows=5),
    "neighbours": lambda: group(counts=COUNTS, neighbours=NEIGHBOURS, id_rows=5, piece_dropout=0.1),
    "hashed ids": lambda: group(id_rows=7),
    "concat": lambda: alone(33, 9, SemanticIds(CODES, PrefixNgram(3), 40, combine="concat")),
    "open": lambda: alone(
        None, 8, SemanticIds(CODES, Unigram(), 12, counts=COUNTS, neighbours=NEIGHBOURS, id_rows=4)
    ),
}  # fmt: skip


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: table(IDS).detach() for name, table in model.named_children()}


def check(model: nn.Module, name: str) -> None:
    for table, vectors in values(model).items():
        assert torch.equal(vectors, BEFORE["embedding values"][name][table])


@pytest.mark.parametrize("name", MODELS)
def test_state_dicts_have_the_keys_and_maps_that_they_had(name):
    model, state = MODELS[name](), BEFORE["embedding states"][name]
    assert list(model.state_dict()) == list(state)
    for key, value in model.state_dict().items():
        if ".encoder." in key:
            assert torch.equal(value, state[key])
            assert value.dtype == state[key].dtype
    model.load_state_dict(state)
    check(model, name)
    missing = model.load_state_dict({key: value for key, value in state.items() if "codes" not in key}, strict=False)
    assert missing.missing_keys == [key for key in state if "codes" in key]
    with pytest.raises(RuntimeError, match=r"Unexpected key.*item\.encoder\.colours"):
        model.load_state_dict({**state, "item.encoder.colours": torch.zeros(1)})


@pytest.mark.parametrize("name", ["plain", "counts", "neighbours", "hashed ids"])
def test_pickled_encoders_still_hold_one_copy_of_the_codes(name):
    model = BEFORE["embeddings"][name]
    item, history = model["item"].encoder, model["history"].encoder
    assert item.items is history.items
    assert item.mixtures is history.mixtures
    assert embcomp.nbytes(model) == embcomp.nbytes(MODELS[name]())


def test_saved_models_load_into_full_and_compressed_ones(tmp_path):
    file = SAVED / "semantic_neighbours.safetensors"
    for model in (nn.ModuleDict({name: nn.Embedding(33, 8) for name in ("item", "history")}), MODELS["neighbours"]()):
        loaded = embcomp.load(model, file).eval()
        check(loaded, "neighbours")
        assert loaded["item"].encoder.items is loaded["history"].encoder.items
        assert loaded["item"].encoder.mixtures is loaded["history"].encoder.mixtures
    embcomp.save(loaded, tmp_path / "again.safetensors")
    full = nn.ModuleDict({name: nn.Embedding(33, 8) for name in ("item", "history")})
    again = embcomp.load(full, tmp_path / "again.safetensors").eval()
    check(again, "neighbours")
    assert again["item"].encoder.items is again["history"].encoder.items


def test_checkpoints_of_before_go_on(tmp_path: Path):
    folder = shutil.copytree(SAVED / "semantic_checkpoint", tmp_path / "run")
    model = MODELS["counts"]()
    Checkpoints(folder, model, []).load()
    check(model, "counts")
