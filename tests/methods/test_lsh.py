import numpy as np
import pytest
import torch

from embcomp import LSHash
from embcomp.graph import interactions
from embcomp.methods import Table
from embcomp.methods.graph.lsh import signatures
from embcomp.nn import CompressedEmbedding
from tests.graph.graphs import blocks, power_law

TABLE = Table("t", 40, 8)


def test_the_adjacency_is_hashed_as_its_dense_matrix_would_be() -> None:
    edges = power_law(40, 25, 200, weighted=True)
    dense = torch.zeros(40, 25)
    dense[edges.users, edges.items] = torch.from_numpy(edges.weights)
    codes, known = signatures((edges, "users"), TABLE, 20, seed=3)
    expected, _ = signatures(dense, TABLE, 20, seed=3)
    assert known.tolist() == dense.any(1).tolist()
    assert torch.equal(codes[known], expected[known])
    assert torch.equal(signatures(dense.to_sparse().coalesce(), TABLE, 20, seed=3)[0], expected)


def test_the_chance_to_agree_follows_the_angle() -> None:
    """Charikar 2002: two vectors agree in a bit with probability 1 - angle / pi."""
    angles = torch.linspace(0, torch.pi, 9)
    features = torch.stack([angles.cos(), angles.sin()], 1)
    agree = torch.zeros(9)
    for seed in range(60):
        codes, _ = signatures(features, Table("t", 9, 8), 50, seed)
        for bit in range(50):
            agree += (codes >> bit & 1) == (codes[0] >> bit & 1)
    torch.testing.assert_close(agree / 3000, 1 - angles / torch.pi, atol=0.03, rtol=0)


def test_like_ids_meet_and_isolated_ones_are_hashed_alone() -> None:
    edges, _, of_item = blocks(within=1.0, across=0.0, items=8)
    edges = interactions((edges.users, edges.items), num_items=40)
    emb = CompressedEmbedding(40, 8, LSHash(rows=1000, features=(edges, "items")))
    rows = emb.encoder(torch.arange(40))[0].rows[:, 0].numpy()
    for group in range(4):
        assert np.unique(rows[:32][of_item == group]).size == 1
    assert np.unique(rows[32:]).size > 4


def test_what_does_not_fit_is_refused() -> None:
    edges = power_law(30, 25, 200)
    for features, message in [
        (torch.ones(39, 2), r"table 't': features must be floats \[40, any width\], got torch.float32 \[39, 2\]"),
        (torch.ones(40, 2, dtype=torch.int64), "must be floats"),
        (torch.ones(40), "must be floats"),
        (torch.full((40, 2), float("nan")), "table 't': features are NaN or infinite"),
        ((edges, "users"), "table 't' has 40 ids, the edges have 30 users"),
    ]:
        with pytest.raises(ValueError, match=message):
            LSHash(rows=4, features=features).plan([TABLE])
    for bits in (0, 63):
        with pytest.raises(ValueError, match=f"LSHash: bits must be .* got {bits}"):
            LSHash(rows=4, features=torch.ones(40, 2), bits=bits)
