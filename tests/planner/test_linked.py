"""The rules for the two sides of a graph, against committed results of training from scratch."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import embcomp
from embcomp.graph import cluster, interactions
from embcomp.graph.soft import mixture
from embcomp.planner import linked, rules
from embcomp.planner.choice import kind
from embcomp.planner.offers import offers
from embcomp.planner.tables import held_tables
from experiments.runs.results import RESULTS

USERS, ITEMS, WIDTH = 600, 400, 64
TABLES = [embcomp.Table("user_id", USERS, WIDTH), embcomp.Table("item_id", ITEMS, WIDTH)]
SIDES = {"user_id": "users", "item_id": "items"}


@pytest.fixture(scope="module")
def edges():
    """Clicks of users on items of their block, and on a few others."""
    random = np.random.default_rng(0)
    users = random.integers(USERS, size=6000)
    own = users % 20 + 20 * random.integers(ITEMS // 20, size=users.size)
    items = np.where(random.random(users.size) < 0.8, own, random.integers(ITEMS, size=users.size))
    return interactions((users, items), num_users=USERS, num_items=ITEMS)


def mixtures(edges, share, k, bits=None):
    """A method for each side whose clusters are a share of its ids."""
    clusters = cluster(edges, (int(share * USERS), int(share * ITEMS)), progress=False)
    sides = {side: getattr(clusters, side) for side in ("users", "items")}
    mixed = [
        embcomp.SoftGraphHash(own, weights=mixture(edges, clusters, side, k), k=k) if k > 1 else embcomp.GraphHash(own)
        for side, own in sides.items()
    ]
    return [embcomp.LowBit(bits=bits, of=method) if bits else method for method in mixed]


def read(experiment, name, seed):
    return json.loads((RESULTS / experiment / f"beauty-LightGCN-{name}-seed{seed}.json").read_text())


def measured(experiment, name, seeds=(0, 1, 2)):
    """The mean loss of recall@10 and recall@50, as a share of the full table's."""
    kept = [
        read(experiment, name, seed)["metrics"][f"test/recall@{n}"]
        / read("lowbit-beauty", "Full", seed)["metrics"][f"test/recall@{n}"]
        for seed in seeds
        for n in (10, 50)
    ]
    return 1 - sum(kept) / len(kept)


def expected(methods):
    """The loss of a method for each side, worth the same, or of one for both."""
    if len(methods) == 1:
        return linked.loss(methods[0], TABLES, 1.0)
    return sum(linked.loss(method, [table], 0.5) for method, table in zip(methods, TABLES, strict=True))


def test_rules_expect_what_training_from_scratch_loses(edges):
    own = [([embcomp.LowBit(bits=bits)], measured("lowbit-beauty", f"own-rows-{bits}-bit")) for bits in (4, 2, 1)]
    own.append(([embcomp.LowBit(bits=3)], measured("choose", "own-rows-3-bit", [0])))
    narrow = [
        ([embcomp.LowRank(rank=rank)], measured("choose", f"low-rank-share{share}", [0]))
        for rank, share in ((15, 0.25), (6, 0.1))
    ]
    both = (USERS + ITEMS) * 8
    hashed = [
        (
            [embcomp.LowBit(bits=4, of=embcomp.UnifiedEmbedding(rows=int(8 * share * both), chunk_dim=8))],
            measured("choose", f"Unified-balanced-4-bit-share{share}", [0]),
        )
        for share in (0.1, 0.03, 0.01)
    ]
    mixed = [
        (mixtures(edges, 0.25, 1), measured("graphhash-beauty", "GraphHash-nbytes2370000")),
        (mixtures(edges, 0.25, 2), measured("graphhash-beauty", "SoftGraphHash-k=2-nbytes2370000")),
        (mixtures(edges, 0.23, 4), measured("graphhash-beauty", "SoftGraphHash-k=4-nbytes2370000")),
        (mixtures(edges, 0.19, 8), measured("graphhash-beauty", "SoftGraphHash-k=8-nbytes2370000")),
        (mixtures(edges, 0.063, 4), measured("choose", "SoftGraphHash-k=4-share0.1", [0])),
        (mixtures(edges, 0.092, 2, bits=4), measured("choose", "SoftGraphHash-k=2-4-bit-share0.03", [0])),
        (mixtures(edges, 0.175, 8, bits=4), measured("choose", "SoftGraphHash-k=8-4-bit-share0.1", [0])),
    ]
    pairs = [(expected(methods), lost) for methods, lost in [*own, *narrow, *hashed, *mixed]]
    assert spearmanr(*zip(*pairs, strict=True)).statistic > 0.9
    assert max(abs(rule - lost) for rule, lost in pairs) < 0.045


@pytest.mark.parametrize(("share", "mixed"), [(0.25, True), (0.1, True), (0.02, False)])
def test_no_rank_is_chosen_for_two_sides_that_are_trained_from_scratch(edges, share, mixed):
    nbytes = int(share * 4 * WIDTH * (USERS + ITEMS))
    plan = embcomp.choose(TABLES, nbytes, edges=edges, sides=SIDES)
    kinds = [kind(line.method) for line in plan.tables]
    assert not any("LowRank" in each for each in kinds)
    assert any("Soft" in each or each.startswith("LowBit") for each in kinds) or not mixed
    warm = embcomp.choose(TABLES, nbytes, edges=edges, sides=SIDES, init="warm")
    assert warm.loss <= plan.loss  # from trained tables there is one more way


def test_a_model_with_other_tables_has_the_usual_rules(edges):
    hour = embcomp.Table("hour", 24, WIDTH)
    nbytes = int(0.03 * 4 * WIDTH * (USERS + ITEMS))
    plan = embcomp.choose([*TABLES, hour], nbytes, edges=edges, sides=SIDES)
    alone = embcomp.choose([*TABLES, hour], nbytes)
    assert plan.loss <= alone.loss * 1.001  # clusters are further options under the same rules


def test_other_tables_of_any_kind_have_the_usual_rules(edges):
    """A third table with content or kept as it is, or one side alone, make another model than users and items."""
    third = embcomp.Table("genre", 300, WIDTH)
    codes = torch.randint(8, (300, 2), generator=torch.Generator().manual_seed(0))
    nbytes = int(0.08 * 4 * WIDTH * (USERS + ITEMS + 300))
    ways = {"content": {"genre": codes}}, {}
    plans = [embcomp.choose([*TABLES, third], nbytes, edges=edges, sides=SIDES, **way) for way in ways]
    tables = [*TABLES, third]
    for plan in plans:  # a table of content loses more, whatever its method
        own = [rules.loss(line.method, [t], line.worth) for t, line in zip(tables, plan.tables, strict=True)]
        assert plan.tables[0].loss == pytest.approx(own[0])
        assert plan.tables[1].loss == pytest.approx(own[1])
    item = embcomp.choose(TABLES[1:], int(0.08 * 4 * WIDTH * ITEMS), edges=edges, sides={"item_id": "items"})
    plain = embcomp.choose(TABLES[1:], int(0.08 * 4 * WIDTH * ITEMS))
    assert item.loss <= plain.loss * 1.001


def test_sides_that_have_one_cluster_an_id_have_it_from_different_clusterings(edges):
    held = held_tables(TABLES, None)
    both = offers(held, "training", edges=edges, sides=SIDES)
    rows = [{m.clusters.rows for m in both[t.name] if type(m) is embcomp.GraphHash} for t in TABLES]
    assert all(rows)
    found = [{id(m.clusters) for m in both[t.name] if isinstance(m, embcomp.SoftGraphHash)} for t in TABLES]
    alone = [{id(m.clusters) for m in both[t.name] if type(m) is embcomp.GraphHash} for t in TABLES]
    assert len(found[0]) == len(found[1]) == len(alone[0]) + len(alone[1])
    item = offers(held[1:], "training", edges=edges, sides={"item_id": "items"})["item_id"]
    assert sum(type(m) is embcomp.GraphHash for m in item) == len(found[1])


def test_a_probe_that_shows_nothing_does_not_make_an_option_free():
    for method in (embcomp.ProductCodes(parts=16, codes=256), embcomp.LowRank(rank=32)):
        assert linked.loss(method, TABLES[:1], 1.0, probed=0.0, fresh=False) > 0.001
