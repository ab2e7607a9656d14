"""Bad input: each refused by the name of the argument, with the value."""

import re

import pytest
import torch

from embcomp import retrieval
from embcomp.files import Damaged
from embcomp.retrieval import VectorCodes, compress

ITEMS = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
CODES = compress(ITEMS, bits=4, version="monday")


def refused(text: str, kind: type[Exception] = ValueError):
    return pytest.raises(kind, match=re.escape(text))


def test_vectors():
    with refused("vectors must be a tensor, got list", TypeError):
        compress([[1.0]], bits=4)
    with refused("vectors must be floats, got torch.int64"):
        compress(ITEMS.long(), bits=4)
    with refused("vectors must have the shape [rows, width], got [8]"):
        compress(ITEMS[0], bits=4)
    with refused("there are no vectors"):
        compress(ITEMS[:0], bits=4)
    bad = ITEMS.clone()
    bad[7, 3] = torch.nan
    with refused("vectors hold NaN or infinite values, first in row 7"):
        compress(bad, bits=4)
    bad[7, 3] = -torch.inf
    with refused("first in row 7"):
        retrieval.learn(bad)
    bad[7] = 0
    assert len(compress(bad, bits=4)) == 50
    with refused("row 7 of vectors is zero, which has no cosine"):
        compress(bad, bits=4, metric="cosine")


def test_ways():
    with refused("give one of bits, levels, parts, row_bits and signs, got none"):
        compress(ITEMS)
    with refused("got bits and levels"):
        compress(ITEMS, bits=1, levels=1)
    with refused("bits must be 1 to 8, got 9"):
        compress(ITEMS, bits=9)
    with refused("bits must be 1 to 8, got True"):
        compress(ITEMS, bits=True)
    with refused("levels must be 1 to 4, got 5"):
        compress(ITEMS, levels=5)
    with refused("codes must be 2 to 256, got 257"):
        compress(ITEMS, parts=2, codes=257)
    with refused("50 vectors are fewer than codes=64"):
        compress(ITEMS, parts=2, codes=64)
    with refused("50 vectors are fewer than codes=256"):
        compress(ITEMS, parts=2)
    with refused("parts=3 do not divide 8 values"):
        compress(ITEMS, parts=3, codes=4)
    with refused("codes are those of parts"):
        compress(ITEMS, bits=4, codes=4)
    with refused("row_bits=65 do not fit 8 values of 8 bits"):
        compress(ITEMS, row_bits=65)
    with refused("signs=65 are more than 8 for each of 8 values"):
        compress(ITEMS, signs=65)
    with refused("leave width and rotation out"):
        compress(ITEMS, signs=8, rotation="itq")
    with refused("width=9 values cannot be kept of vectors of 8"):
        compress(ITEMS, bits=4, width=9)
    with refused("width must be at least 1, got 0"):
        compress(ITEMS, bits=4, width=0)
    with refused("rotation must be one of None, 'itq', 'random', 'svd', got 'pca'"):
        compress(ITEMS, bits=4, rotation="pca")
    with refused("scale must be 'row', 'column' or 'table', got 'each'"):
        compress(ITEMS, bits=4, scale="each")
    with refused("scale", TypeError):
        compress(ITEMS, levels=1, scale="row")
    with refused("size must be 'closest' or 'unbiased', got 'short'"):
        compress(ITEMS, bits=4, size="short")
    with refused("size='unbiased' needs a size for each row: take scale='row', not 'table'"):
        compress(ITEMS, bits=4, scale="table", size="unbiased")
    with refused("size", TypeError):
        compress(ITEMS, parts=2, codes=16, size="unbiased")
    with refused("metric must be 'dot' or 'cosine', got 'l2'"):
        compress(ITEMS, bits=4, metric="l2")
    with refused("choose that, or leave them out"):
        compress(ITEMS, bits=4, queries=ITEMS)
    with refused("queries are 7 wide, the coded vectors 8"):
        compress(ITEMS, bits=4, rotation="svd", queries=ITEMS[:, :7])


@pytest.mark.parametrize("ask", [CODES.score, lambda queries, **more: CODES.search(queries, 3, **more)])
def test_queries(ask):
    with refused("queries are 7 wide, the coded vectors 8: take those of the same model"):
        ask(ITEMS[:, :7])
    with refused("queries must be floats, got torch.int32"):
        ask(ITEMS.int())
    with refused("queries hold NaN or infinite values, first in row 0"):
        ask(torch.full((2, 8), torch.nan))
    with refused("queries are of version 'tuesday', the codes of 'monday'"):
        ask(ITEMS, version="tuesday")
    with refused("queries are on meta, the codes on cpu"):
        ask(torch.empty(2, 8, device="meta"))
    with refused("how must be one of 'float query', 'codes', 'hamming', got 'adc'"):
        ask(ITEMS, how="adc")
    with refused("how='hamming' compares signs"):
        ask(ITEMS, how="hamming")
    ask(ITEMS, version="monday")


def test_zero_queries_under_cosine():
    codes = compress(ITEMS, bits=4, metric="cosine")
    with refused("row 1 of queries is zero"):
        codes.search(torch.tensor([[1.0] * 8, [0.0] * 8]), 3)
    assert CODES.search(torch.zeros(1, 8), 3).rows.tolist() == [[0, 1, 2]]


def test_k():
    for k in (0, -1, 51):
        with refused(f"k={k} vectors were asked for, there are 50"):
            CODES.search(ITEMS, k)
    with refused("k must be an integer, got float", TypeError):
        CODES.search(ITEMS, 2.0)


def test_candidates():
    found = CODES.search(ITEMS, 5).rows
    with refused("candidate 50 is out of range, there are 50 vectors", IndexError):
        CODES.rescore(ITEMS, found + (found == 49), ITEMS)
        CODES.rescore(ITEMS, torch.full_like(found, 50), ITEMS)
    with refused("candidates must be integers, got torch.float32"):
        CODES.rescore(ITEMS, found.float(), ITEMS)
    with refused("candidates must have the shape [50, n], got [49, 5]"):
        CODES.rescore(ITEMS, found[1:], ITEMS)
    with refused("there are 49 vectors, and codes of 50"):
        CODES.rescore(ITEMS, found, ITEMS[1:])
    with refused("vectors are 7 wide, the coded vectors 8"):
        CODES.rescore(ITEMS, found, ITEMS[:, :7])
    with refused("vectors are of version 'tuesday', the codes of 'monday'"):
        CODES.rescore(ITEMS, found, compress(ITEMS, bits=8, version="tuesday"))
    with refused("code the same vectors"):
        CODES.rescore(ITEMS, found, compress(ITEMS[:40], bits=8, version="monday"))
    with refused("k=6 vectors were asked for, there are 5"):
        CODES.rescore(ITEMS, found, ITEMS, k=6)


@pytest.mark.parametrize("way", [{"bits": 3}, {"parts": 2, "codes": 16}, {"row_bits": 16}, {"signs": 11},
                                 {"levels": 2, "rotation": "itq"}])  # fmt: skip
def test_files(way, tmp_path):
    codes = compress(ITEMS, version="monday", metric="cosine", **way)
    path = tmp_path / "items.safetensors"
    codes.save(path)
    again = VectorCodes.load(path, version="monday")
    assert torch.equal(again.score(ITEMS), codes.score(ITEMS))
    assert all(tensor.is_contiguous() for tensor in codes.form.tensors().values())  # else last bits of scores differ
    assert torch.equal(again.score(ITEMS, "codes"), codes.score(ITEMS, "codes"))
    assert (again.version, again.metric, again.nbytes, repr(again)) == ("monday", "cosine", codes.nbytes, repr(codes))
    with refused("are of version 'tuesday', the codes of 'monday'"):
        VectorCodes.load(path, version="tuesday")
    whole = path.read_bytes()
    for cut in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with refused(str(path), Damaged):
            VectorCodes.load(path)
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with refused(str(path), Damaged):
            VectorCodes.load(path)
    with pytest.raises(FileNotFoundError):
        VectorCodes.load(tmp_path / "none")


def test_files_of_other_things(tmp_path):
    from embcomp import artifact

    artifact.save(tmp_path / "map", "cluster map", {}, {"map": torch.zeros(3)})
    with refused("holds a cluster map, not a vector codes"):
        VectorCodes.load(tmp_path / "map")
    header = {"form": "grid", "rows": 9, "width": 4, "groups": [[4, 2]], "metric": "dot", "version": "", "settings": {}}
    artifact.save(tmp_path / "few", "vector codes", header, {"codes": torch.zeros(3, dtype=torch.uint8)})
    with refused("does not match its header (9 rows", Damaged):
        VectorCodes.load(tmp_path / "few")
