"""The same neighbors from faiss and usearch."""

import sys

import pytest
import torch
from torch import Tensor

from embcomp import retrieval
from tests.retrieval.test_compress import vectors

ITEMS, QUERIES = vectors(500), vectors(20, seed=1)


def same_neighbors(rows: Tensor, scores: Tensor, other: Tensor, of_other: Tensor, every: Tensor) -> None:
    """Equal scores in equal places, and every row has the score that it is found with."""
    assert torch.allclose(scores, of_other, rtol=1e-4, atol=1e-4)
    assert torch.allclose(every.gather(1, other), scores, rtol=1e-4, atol=1e-4)
    assert (rows == other).float().mean() > 0.9  # equal codes and near ties may change places


@pytest.mark.parametrize("way", [
    {"bits": 8, "scale": "table"}, {"bits": 4, "scale": "column"}, {"bits": 6, "scale": "table", "rotation": "itq"},
    {"bits": 4, "scale": "column", "rotation": "svd", "width": 8}, {"bits": 8, "scale": "column", "width": 8},
    {"parts": 4, "codes": 16}, {"parts": 8, "codes": 60, "rotation": "svd"}, {"parts": 4, "codes": 200},
], ids=str)  # fmt: skip
def test_faiss_floats(way):
    pytest.importorskip("faiss")
    codes = retrieval.compress(ITEMS, **way)
    index = codes.to_faiss()
    assert index.ntotal == 500
    scores, rows = map(torch.from_numpy, index.search(QUERIES.numpy(), 10))
    found = codes.search(QUERIES, 10)
    same_neighbors(found.rows, found.scores, rows, scores, codes.score(QUERIES))


@pytest.mark.parametrize("way", [{"levels": 1, "rotation": "itq"}, {"bits": 1}], ids=str)
def test_faiss_signs(way):
    pytest.importorskip("faiss")
    codes = retrieval.compress(ITEMS, **way)
    distances, rows = map(torch.from_numpy, codes.to_faiss().search(codes.signs(QUERIES).numpy(), 10))
    found = codes.search(QUERIES, 10, "hamming")
    every = codes.score(QUERIES, "hamming")
    assert torch.equal(16 - 2 * distances.float(), found.scores)
    assert torch.equal(every.gather(1, rows), found.scores)  # of equal distances faiss takes any


def test_faiss_holds_no_row_sizes():
    pytest.importorskip("faiss")
    for way in ({"bits": 4}, {"bits": 3, "scale": "table"}, {"levels": 2}, {"row_bits": 20}):
        with pytest.raises(ValueError, match=r"faiss holds no codes of .* scale='column'"):
            retrieval.compress(ITEMS, **way).to_faiss()
    with pytest.raises(ValueError, match="do not fill whole bytes"):
        retrieval.compress(ITEMS, levels=1, width=12).to_faiss()


@pytest.mark.parametrize("bits", [4, 7])
def test_usearch_integers(bits):
    pytest.importorskip("usearch")
    codes = retrieval.compress(ITEMS, bits=bits, scale="table")
    index = codes.to_usearch()
    asked = (2 * (QUERIES / float(codes.form.basis[0])).floor() + 1).clamp(-127, 127)
    found = index.search(asked.to(torch.int8).numpy(), 10, exact=True)
    mine = codes.search(asked, 10)
    rows = torch.from_numpy(found.keys.astype("int64"))
    assert torch.allclose(codes.score(asked).gather(1, rows), mine.scores)
    assert (rows == mine.rows).float().mean() > 0.9  # ties of integers


def test_usearch_signs():
    pytest.importorskip("usearch")
    codes = retrieval.compress(ITEMS, levels=1, rotation="itq")
    found = codes.to_usearch().search(codes.signs(QUERIES).numpy(), 10, exact=True)
    every = codes.score(QUERIES, "hamming")
    rows = torch.from_numpy(found.keys.astype("int64"))
    assert torch.equal(every.gather(1, rows), codes.search(QUERIES, 10, "hamming").scores)


def test_usearch_holds_no_row_sizes():
    pytest.importorskip("usearch")
    with pytest.raises(ValueError, match="usearch holds no codes"):
        retrieval.compress(ITEMS, bits=4).to_usearch()


@pytest.mark.parametrize("name", ["faiss", "usearch"])
def test_a_missing_library_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.index", None)
    codes = retrieval.compress(ITEMS, levels=1)
    with pytest.raises(ImportError, match=f"needs {name}: pip install {name}"):
        getattr(codes, f"to_{name}")()
