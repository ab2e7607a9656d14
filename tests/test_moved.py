"""What was pickled or saved before modules moved into folders loads, by its old names, and gives the same values."""

import pickle
from importlib import import_module
from typing import Any

import pytest
import torch
from torchrec import KeyedJaggedTensor

import embcomp.torchrec
from embcomp.moved import MOVED
from tests.before import pickled

CLASSES = {
    "bit_stages": "BitStages",
    "held_out": "HeldOutTurns",
    "hot_tracker": "HotTracker",
    "mask_stages": "MaskStages",
    "methods.graphhash": "ClusterEncoder GraphHash DoubleGraphHash",
    "methods.lsh": "LSHash",
    "methods.semantic_encoder": "Range SemanticEncoder",
    "methods.semantic_ids": "SemanticIds SupportReport",
    "methods.soft_graphhash": "MixtureEncoder SoftGraphHash",
    "report": "TableReport CompressionReport",
    "schedule": "Schedule _Clusters _MovingRows",
    "semantic_ids.content": "Content",
    "semantic_ids.neighbours": "Neighbours",
    "semantic_ids.pieces": "Pieces Unigram Ngram PrefixNgram",
    "semantic_ids.quality": "Coder Quality Drift",
    "semantic_ids.residual_kmeans": "ResidualKMeans",
    "semantic_ids.resume": "Checkpoint",
    "semantic_ids.rqvae": "RQVAE",
    "semantic_ids.rqvae_training": "Training _Network",
    "semantic_ids.sentence_pieces": "SentencePieces",
    "semantic_ids.tokenizer": "Tokenizer",
    "semantic_ids.vocabulary": "Vocabulary",
    "stages": "Site",
    "torchrec.assemble": "AssembleBags AssembleSequences",
    "torchrec.branch": "Branch",
    "torchrec.collections": "CompressedEmbeddingBagCollection CompressedEmbeddingCollection",
    "torchrec.constraints": "BagSharder SequenceSharder",
    "torchrec.decode": "Decode PoolVectors",
    "torchrec.encoder": "KeyedEncoder",
    "torchrec.engines": "Engine FbgemmEngine NativeEngine",
    "torchrec.estimate": "Sent Estimate",
    "torchrec.fused": "_Row FusedTables",
    "torchrec.holders": "KeyedHolder CollectionHolder FusedHolder IntegerHolder CompressedCollectionHolder",
    "torchrec.integers": "IntegerTable IntegerTables",
    "torchrec.layout": "Read Output Layout",
    "torchrec.loss_scale": "LossScale",
    "torchrec.optimizer": "FusedOptimizer",
    "torchrec.serve": "ServedCollection",
    "torchrec.together": "Together",
    "width_stages": "MixtureStages RandomStages",
}
"""The classes of each module before it moved: at the commit of `tests/before.py`, those of schedules at ee9d6af."""


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    return pickled()


def batch(saved: dict[str, Any]) -> KeyedJaggedTensor:
    return KeyedJaggedTensor.from_lengths_sync(saved["keys"], saved["values"], saved["lengths"])


def close(values: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("module", CLASSES)
def test_classes_unpickle_by_their_old_names(module):
    for name in CLASSES[module].split():
        assert pickle.loads(f"cembcomp.{module}\n{name}\n.".encode()).__name__ == name


def test_old_names_are_the_present_modules():
    for old, new in MOVED.items():
        assert import_module(old) is import_module(new)
        assert import_module(new).__name__ == new
    with pytest.raises(ModuleNotFoundError, match=r"embcomp\.torchrec\.never_was"):
        import_module("embcomp.torchrec.never_was")


def test_pickled_modules_give_the_same_vectors(saved):
    """The same up to the last bit of a sum, in which processors differ."""
    for name, tables in saved["embeddings"].items():
        for table, embedding in tables.items():
            close(embedding(saved["ids"]), saved["embedding values"][name][table])
    for name, collection in saved["collections"].items():
        close(collection(batch(saved)).values(), saved["collection values"][name])
    for key, vectors in saved["sequences"](batch(saved)).items():
        close(vectors.values(), saved["sequence values"][key])


def test_pickled_pieces_vocabularies_and_tokenizers_work(saved):
    codes = saved["inputs"]["codes"]
    assert saved["pieces"] == [embcomp.PrefixNgram(3), embcomp.Unigram()]
    assert saved["vocabulary"].support_of(codes)[:2].tolist() == [[8, 2], [8, 2]]
    assert saved["tokenizer"].encode(saved["inputs"]["content"]).shape == (33, 2)
