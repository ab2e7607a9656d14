"""The choice of a way: each measure against its definition, what fits, what is refused."""

import re

import pytest
import torch
from torch import Tensor

import embcomp
from embcomp import retrieval
from embcomp.retrieval import candidates, ranking


def refused(text: str, kind: type[Exception] = ValueError):
    return pytest.raises(kind, match=re.escape(text))


def drawn(rows: int, width: int = 16, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Normal vectors; the deviations of the columns fall from 1 to `spread`."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=draw) * torch.linspace(1, spread, width)


ITEMS, QUERIES = drawn(600), drawn(50, seed=1)


def best(queries: Tensor, items: Tensor, known: Tensor, k: int) -> list[list[int]]:
    scores = queries @ items.T
    scores[known[0], known[1]] = -torch.inf
    return scores.topk(k).indices.tolist()


def test_agreement_is_the_share_of_the_best_by_floats():
    choice = retrieval.choose(ITEMS, "30%", queries=QUERIES, k=5)
    none = torch.zeros(2, 0, dtype=torch.int64)
    floats = best(QUERIES, ITEMS, none, 5)
    for tried in choice.tried:
        extra = {"queries": QUERIES} if tried.settings.get("rotation") == "svd" else {}
        coded = best(QUERIES, retrieval.compress(ITEMS, **tried.settings, **extra).decode(), none, 5)
        shared = [len({*one} & {*other}) / 5 for one, other in zip(floats, coded, strict=True)]
        assert tried.agreement == pytest.approx(sum(shared) / 50)
        assert tried.recall == tried.agreement
        assert tried.nbytes <= 0.3 * ITEMS.nbytes
        assert tried.nbytes == retrieval.way(**tried.settings).nbytes(600, 16)
    assert choice.full == 1.0
    assert choice.tried[0].agreement == max(tried.agreement for tried in choice.tried)


def test_recall_is_that_of_the_wanted_pairs_without_the_known_ones():
    draw = torch.Generator().manual_seed(2)
    wanted = torch.stack([torch.randint(40, (300,), generator=draw), torch.randint(600, (300,), generator=draw)])
    floats = (QUERIES @ ITEMS.T).topk(3).indices
    known = torch.stack([torch.arange(50).repeat_interleave(3), floats.reshape(-1)])
    wanted = torch.cat([wanted.unique(dim=1), torch.tensor([[4], [int((QUERIES @ ITEMS.T).topk(4).indices[4, 3])]])], 1)
    choice = retrieval.choose(ITEMS, "30%", queries=QUERIES, wanted=wanted, known=known, k=20)

    def recall(items: Tensor) -> float:
        found = best(QUERIES, items, known, 20)
        of_query: dict[int, set[int]] = {}
        for query, item in {tuple(pair) for pair in wanted.T.tolist()}:
            of_query.setdefault(query, set()).add(item)
        return sum(len(mine & {*found[q]}) / min(len(mine), 20) for q, mine in of_query.items()) / len(of_query)

    assert choice.full == pytest.approx(recall(ITEMS))
    assert choice.full > 0
    for tried in choice.tried:
        if tried.settings.get("rotation") != "svd":
            decoded = retrieval.compress(ITEMS, **tried.settings).decode()
            assert tried.recall == pytest.approx(recall(decoded), abs=1e-6)


def test_ways_within_the_noise_are_ordered_by_agreement():
    wanted = torch.stack([torch.arange(50), (QUERIES @ ITEMS.T).argmax(1)])
    choice = retrieval.choose(ITEMS, "60%", queries=QUERIES, wanted=wanted)
    most = max(tried.recall for tried in choice.tried)
    inside = [tried for tried in choice.tried if tried.recall >= most - tried.noise]
    assert list(choice.tried[: len(inside)]) == inside
    assert [t.agreement for t in inside] == sorted((t.agreement for t in inside), reverse=True)
    rest = [tried.recall for tried in choice.tried[len(inside) :]]
    assert rest == sorted(rest, reverse=True)


def test_the_best_way_depends_on_the_vectors():
    """Few directions are enough where the others hold nothing; where all hold the same, grids of all values win."""
    flat = retrieval.choose(ITEMS, "30%", queries=QUERIES)
    steep = retrieval.choose(drawn(600, spread=0.0) ** 3, "12%", queries=drawn(50, seed=1, spread=0.0) ** 3)
    assert "rotation" not in flat.tried[0].settings or flat.tried[0].settings["rotation"] != "svd"
    assert steep.tried[0].settings.get("rotation") == "svd" or "row_bits" in steep.tried[0].settings


def test_the_settings_go_into_compress():
    turned = [{"bits": 4, "rotation": "svd", "width": 12}]
    choice = retrieval.choose(ITEMS, "60%", queries=QUERIES, ways=turned)
    codes = retrieval.compress(ITEMS, **choice.settings)
    assert codes.nbytes == choice.nbytes
    assert torch.equal(choice.settings["queries"], QUERIES)
    alone = retrieval.choose(ITEMS, "60%", ways=turned)  # the vectors ask for each other
    assert "queries" not in alone.settings
    assert retrieval.compress(ITEMS, **alone.settings).nbytes == alone.nbytes
    printed = str(choice)
    assert "bits 4, rotation svd, width 12" in printed
    assert "float vectors" in printed


def test_without_queries_a_vector_does_not_find_itself():
    choice = retrieval.choose(ITEMS, "60%", ways=[{"bits": 8}], k=1)
    assert choice.full == 1.0
    found = ranking.Ranking.of(ITEMS, None, None, None, 1, "dot", 0)
    assert not bool((found.best[:, 0] == torch.arange(600)).any())


def test_samples_of_many_queries_and_vectors(monkeypatch):
    monkeypatch.setattr(ranking, "_QUERIES", 20)
    monkeypatch.setattr(ranking, "_ROWS", 100)
    wanted = torch.stack([torch.arange(50), torch.arange(50) * 12])
    found = ranking.Ranking.of(ITEMS, QUERIES, wanted, wanted[:, :5], 3, "dot", 0)
    assert (len(found.queries), len(found.vectors)) == (20, 100)
    assert found.wanted is not None
    assert found.wanted.shape == (2, 20)
    for query, row in found.wanted.T.tolist():  # the same pairs, by their new numbers
        old = int((found.queries[query] == QUERIES).all(1).nonzero())
        assert torch.equal(found.vectors[row], ITEMS[12 * old])
    choice = retrieval.choose(ITEMS, "60%", queries=QUERIES, wanted=wanted, ways=[{"bits": 4}])
    assert choice.nbytes == retrieval.way(bits=4).nbytes(600, 16)  # of all vectors


def test_cosines_are_ranked_by_normalized_vectors():
    long = ITEMS * torch.linspace(0.1, 10, 600).unsqueeze(1)
    choice = retrieval.choose(long, "60%", queries=QUERIES, ways=[{"bits": 8}], metric="cosine")
    dot = retrieval.choose(torch.nn.functional.normalize(long), "60%", queries=QUERIES, ways=[{"bits": 8}])
    assert choice.tried[0].agreement == pytest.approx(dot.tried[0].agreement, abs=0.01)


def test_candidates_fit():
    for rows, dim, share in ((12_101, 64, 0.1), (3_668, 32, 0.04), (100, 8, 0.5)):
        nbytes = share * 4 * rows * dim
        for settings in candidates.candidates(rows, dim, nbytes).values():
            way = retrieval.way(**settings)
            way.check(rows, dim)
            assert 0.75 * nbytes < way.nbytes(rows, dim) <= nbytes


def test_mistakes_are_named():
    with refused("nbytes=100: no way codes 600 vectors of 16 values in so few bytes; the least is"):
        retrieval.choose(ITEMS, 100)
    with refused("the least is 10088"):
        retrieval.choose(ITEMS, 100, ways=[{"bits": 8}, {"bits": 7}])
    with refused("nbytes='ten' is not a size"):
        retrieval.choose(ITEMS, "ten")
    with refused("k=601 vectors were asked for, there are 600"):
        retrieval.choose(ITEMS, "10%", k=601)
    with refused("wanted and known are pairs with queries"):
        retrieval.choose(ITEMS, "30%", wanted=torch.zeros(2, 1, dtype=torch.int64))
    with refused("wanted holds no pair"):
        retrieval.choose(ITEMS, "30%", queries=QUERIES, wanted=torch.zeros(2, 0, dtype=torch.int64))
    with refused("wanted lie in [0, 600], there are 600 vectors"):
        retrieval.choose(ITEMS, "30%", queries=QUERIES, wanted=torch.tensor([[0, 1], [0, 600]]))
    with refused("known must be integers [2, n], got torch.float32 [2, 1]"):
        retrieval.choose(ITEMS, "30%", queries=QUERIES, known=torch.zeros(2, 1))
    with refused("there are no queries"):
        retrieval.choose(ITEMS, "30%", queries=QUERIES[:0])
    with refused("queries are 8 wide"):
        retrieval.choose(ITEMS, "30%", queries=QUERIES[:, :8])
    with refused("vectors hold NaN"):
        retrieval.choose(ITEMS * torch.nan, "30%")
    with refused("embcomp.retrieval.choose", TypeError):
        embcomp.choose(ITEMS, "10%")
