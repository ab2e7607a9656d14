"""The learned binarization of BEBR."""

import pytest
import torch
from torch.nn import functional as F

from embcomp import retrieval
from embcomp.retrieval import VectorCodes
from embcomp.retrieval.network import SignNetwork, total
from tests.retrieval.test_compress import vectors

ITEMS, QUERIES = vectors(400), vectors(40, seed=1)
QUICK = {"epochs": 30, "hidden": 32, "batch_size": 100, "lr": 3e-3}


def recall(codes: VectorCodes, how: str, queries=QUERIES, items=ITEMS) -> float:
    exact = (F.normalize(queries) @ F.normalize(items).T).topk(10).indices
    return float((codes.search(queries, 10, how).rows.unsqueeze(2) == exact.unsqueeze(1)).any(2).float().mean())


def test_the_recursion():
    network = SignNetwork(6, 4, 3, 8).eval()
    x = torch.randn(5, 6)
    unit = F.normalize(x)
    code = (network.direct[0](unit) + network.to_signs[0](unit)).sign()
    for u in (1, 2):
        left = unit - F.normalize(network.back[u - 1](code))
        code = code + 2.0**-u * (network.direct[u](left) + network.to_signs[u](left)).sign()
    assert torch.allclose(total(network.signs(x), 3), code)
    network(x)[2].sum().backward()
    assert network.direct[0].weight.grad.abs().sum() > 0  # through the signs, and what they miss


@pytest.mark.parametrize("levels", [1, 2])
def test_learned_codes_find_neighbors(levels):
    said = []
    learned = retrieval.learn(
        ITEMS, signs=64, levels=levels, metric="cosine", progress=lambda *step: said.append(step), **QUICK
    )
    assert said[0][0] == 1
    assert said[-1][0] == said[-1][1] == 120
    assert float(said[-1][2].split()[1]) < float(said[0][2].split()[1])
    assert learned.form.packed.columns == 64 * levels
    for how, least in (("float query", 0.55), ("codes", 0.4), ("hamming", 0.4)):
        assert recall(learned, how) > least, how
    symmetric = learned.score(QUERIES, "hamming")
    codes = [total(learned.network.signs(F.normalize(each)), levels) for each in (QUERIES, ITEMS)]
    assert torch.allclose(symmetric, codes[0] @ codes[1].T, atol=1e-3)


def test_pairs_of_queries():
    queries = vectors(340, seed=2)
    codes = retrieval.learn(ITEMS, signs=32, queries=queries[:300], metric="cosine", **QUICK)
    assert recall(codes, "hamming", queries[300:]) > 0.15  # 0.025 by chance


def test_seeds(tmp_path):
    state = torch.random.get_rng_state()
    one, same, other = (retrieval.learn(ITEMS, signs=16, seed=seed, **QUICK) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.form.packed.data, same.form.packed.data)
    assert not torch.equal(one.form.packed.data, other.form.packed.data)
    one.save(tmp_path / "learned")
    again = VectorCodes.load(tmp_path / "learned")
    for how in ("float query", "codes", "hamming"):
        assert torch.equal(again.score(QUERIES, how), one.score(QUERIES, how))
    moved = one.to("cpu")
    assert torch.equal(moved.score(QUERIES, "codes"), one.score(QUERIES, "codes"))


def test_new_queries_ask_old_codes():
    """Vectors of a new training lie elsewhere: only codes learned beside the old ones find anything in them."""
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3)))[0]
    old = retrieval.learn(ITEMS, signs=64, version="monday", **QUICK)
    apart = retrieval.learn(ITEMS @ turn, signs=64, seed=1, **QUICK)
    beside = retrieval.learn(ITEMS @ turn, signs=64, seed=1, old=old, **QUICK)

    def recall_in_old(new: VectorCodes) -> float:
        asked = new.network.signs(QUERIES @ turn)
        rows = (asked @ (2 * old.form.codes.centered(torch.arange(400))).T).topk(10).indices
        exact = (F.normalize(QUERIES) @ F.normalize(ITEMS).T).topk(10).indices
        return float((rows.unsqueeze(2) == exact.unsqueeze(1)).any(2).float().mean())

    assert recall_in_old(apart) < 0.15
    assert recall_in_old(beside) > 3 * recall_in_old(apart)


def test_refused():
    with pytest.raises(ValueError, match="levels must be 1 to 4"):
        retrieval.learn(ITEMS, levels=5)
    with pytest.raises(ValueError, match="1 vectors are too few"):
        retrieval.learn(ITEMS[:1])
    with pytest.raises(ValueError, match="old must be learned codes of 16 signs and 1 levels"):
        retrieval.learn(ITEMS, old=retrieval.compress(ITEMS, levels=1))
    old = retrieval.learn(ITEMS, epochs=1, hidden=8)
    with pytest.raises(ValueError, match="old holds 400 vectors, there are 10 now"):
        retrieval.learn(ITEMS[:10], old=old)
