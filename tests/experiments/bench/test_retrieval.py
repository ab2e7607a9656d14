"""The bench of searches: who is compared finds the same."""

import io

import pytest
import torch
from rich.console import Console

from experiments.bench import retrieval


def test_small():
    pytest.importorskip("faiss")
    rows = retrieval.run(Console(file=io.StringIO()), items=300, queries=40, width=16, rounds=1)
    names = [row.name.split(",")[0] for row in rows]
    assert names.count("ours") == 3
    assert "faiss IndexBinaryFlat" in names
    assert all("recall" in row.name and "recall" in row.against for row in rows)


def test_all_of_a_kind_find_the_same():
    pytest.importorskip("faiss")
    vectors = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    queries = torch.randn(20, 16, generator=torch.Generator().manual_seed(1))
    searches = retrieval.four_bits(vectors, 5)
    found = {name: search(queries) for name, (search, _) in searches.items()}
    same = found["ours, 4 bits, one step"] == found["faiss IndexScalarQuantizer, the same 4 bits"]
    assert same.float().mean() > 0.95
    exact = (queries @ vectors.T).topk(5).indices
    assert (found["faiss IndexFlatIP, float32"] == exact).float().mean() > 0.95
    assert (found["ours, 4 bits, 4 times as many rescored by float32"] == exact).float().mean() > 0.95
