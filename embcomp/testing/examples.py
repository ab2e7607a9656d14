"""Example configurations of every method of the library, for tests that apply to all methods.

Use it in tests as `@pytest.mark.parametrize("example", EXAMPLES, ids=str)`; `example.make(tables)` is a configuration
for these tables. Their widths must be multiples of 8, so that chunks are multiples of 4 (required by FBGEMM). There are
few rows, because tests need collisions. A method that is registered but missing here fails in tests/test_matrix.py and
tests/torchrec.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embcomp import Ngram, PrefixNgram, Unigram
from embcomp.graph import ClusterMap, Edges, Mixture, interactions
from embcomp.methods import (
    METHODS,
    ROBE,
    BitCipher,
    ClusteredHash,
    Dedup,
    DeepHash,
    DoubleGraphHash,
    DoubleHash,
    FrequencyBits,
    FrequencyHash,
    Full,
    GraphHash,
    HashEmbedding,
    HashingTrick,
    HotRows,
    LearnedMask,
    LearnedWidths,
    LowBit,
    LowRank,
    LSHash,
    MixedDimensions,
    MultiHash,
    Nested,
    ProductCodes,
    Pruned,
    QuotientRemainder,
    SemanticIds,
    SoftGraphHash,
    Table,
    TensorTrain,
    UnifiedEmbedding,
)
from embcomp.semantic_ids import Neighbours
from embcomp.testing.example import Example

ROWS = 7


def counts_of(tables: Sequence[Table]) -> Mapping[str, Tensor]:
    """Return training frequencies with ties and ids that never occur."""
    return {t.name: (torch.arange(t.ids_or_raise("counts")) * 7919 % 11).float() for t in tables}


def vectors_of(tables: Sequence[Table]) -> Mapping[str, Tensor]:
    """Return trained vectors around nine points."""
    values = {}
    for table in tables:
        random = torch.Generator().manual_seed(table.embedding_dim)
        points = torch.randn(9, table.embedding_dim, generator=random)
        ids = torch.arange(table.ids_or_raise("vectors"))
        values[table.name] = points[ids * 7919 % 9] + 0.1 * torch.randn(len(ids), table.embedding_dim, generator=random)
    return values


def clusters_of(tables: Sequence[Table], unseen_rows: int = 0) -> Mapping[str, ClusterMap]:
    """Return a map of each table, with ids that have no cluster; for an open id space, of the first 20 ids."""
    ids = {t.name: torch.arange(t.num_embeddings or 20) for t in tables}
    rows = {name: (n * 7919 % 11).clamp(max=ROWS) - 1 for name, n in ids.items()}
    return {name: ClusterMap.of(row, ROWS + unseen_rows, unseen_rows) for name, row in rows.items()}


def mixtures_of(tables: Sequence[Table]) -> Mapping[str, Mixture]:
    """Return a mixture of three clusters for each id; ids that are multiples of 5 have none."""
    mixtures = {}
    for name, clusters in clusters_of(tables).items():
        ids = torch.arange(clusters.num_ids).unsqueeze(1)
        weights = torch.tensor([0.7, 0.2, 0.1]) * (ids % 5 > 0)
        mixtures[name] = Mixture.of((ids * torch.tensor([1, 3, 5]) + 2) % ROWS, weights, clusters)
    return mixtures


def edges_of(table: Table) -> tuple[Edges, str]:
    """Return interactions of the table's ids with 9 others."""
    ids = np.arange(3 * table.ids_or_raise("edges"))
    kept = ids % 4 > 0
    log = (ids[kept] // 3, ids[kept] * 7919 % 9)
    return interactions(log, num_users=table.ids_or_raise("edges")), "users"


def items_of(tables: Sequence[Table]) -> dict[str, Any]:
    """Return codes of 3 levels with collisions and items without content, and counts; 30 items if ids are open."""
    sizes = {t.name: t.num_embeddings or 30 for t in tables}
    codes = {
        name: torch.arange(n).unsqueeze(1) * torch.tensor([3, 7, 5]) % torch.tensor([4, 5, 3])
        for name, n in sizes.items()
    }
    for table in codes.values():
        table[3::9] = -1
    return {"codes": codes, "counts": {name: torch.arange(n) * 7919 % 11 for name, n in sizes.items()}}


def neighbours_of(tables: Sequence[Table]) -> Mapping[str, Neighbours]:
    """Return for every third item the next five, some of which have no content."""
    neighbours = {}
    for name, codes in items_of(tables)["codes"].items():
        ids = torch.arange(0, len(codes), 3)
        nearest = (ids.unsqueeze(1) + torch.arange(1, 6)) % len(codes)
        neighbours[name] = Neighbours(ids, nearest.int(), torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1]).expand(nearest.shape))
    return neighbours


EXAMPLES = [
    Example("Full", lambda tables: Full(), open_ids=False),
    Example("HashingTrick", lambda tables: HashingTrick(rows=ROWS)),
    Example("HashingTrick-seed", lambda tables: HashingTrick(rows={t.name: ROWS + 2 for t in tables}, seed=3)),
    Example("MultiHash-sum", lambda tables: MultiHash(rows=ROWS, num_hashes=3)),
    Example("MultiHash-concat", lambda tables: MultiHash(rows=ROWS, num_hashes=2, combine="concat")),
    Example("DoubleHash", lambda tables: DoubleHash(rows=ROWS)),
    Example("BitCipher", lambda tables: BitCipher(rows=12, counts=counts_of(tables)), open_ids=False),
    Example("BitCipher-sorted", lambda tables: BitCipher(rows=13), open_ids=False),
    Example("ClusteredHash", lambda tables: ClusteredHash(rows=ROWS, chunks=2), open_ids=False),
    Example("Dedup", lambda tables: Dedup(rows=ROWS, vectors=vectors_of(tables)), open_ids=False),
    Example("Dedup-blocks", lambda tables: Dedup(rows=12, vectors=vectors_of(tables), block=3), open_ids=False),
    Example("DeepHash", lambda tables: DeepHash(width=6, hashes=5)),
    Example("HashEmbedding", lambda tables: HashEmbedding(rows=ROWS), open_ids=False),
    Example("HashEmbedding-hashed", lambda tables: HashEmbedding(rows=ROWS, num_hashes=5, importance_rows=5)),
    Example("QuotientRemainder-mul", lambda tables: QuotientRemainder(), open_ids=False),
    Example("QuotientRemainder-sum", lambda tables: QuotientRemainder(rows=ROWS, combine="sum"), open_ids=False),
    Example("QuotientRemainder-concat", lambda tables: QuotientRemainder(rows=3, combine="concat"), open_ids=False),
    Example(
        "FrequencyBits", lambda tables: FrequencyBits(counts=counts_of(tables), mean_bits=4, groups=5), open_ids=False
    ),
    Example(
        "FrequencyBits-sum",
        lambda tables: FrequencyBits(counts=counts_of(tables), mean_bits=3, of=MultiHash(rows=ROWS, num_hashes=3)),
        open_ids=False,
    ),
    Example("FrequencyHash", lambda tables: FrequencyHash(rows=ROWS, counts=counts_of(tables)), open_ids=False),
    Example(
        "FrequencyHash-double",
        lambda tables: FrequencyHash(rows=ROWS, counts=counts_of(tables), tail="double"),
        open_ids=False,
    ),
    Example("GraphHash", lambda tables: GraphHash(clusters_of(tables))),
    Example(
        "GraphHash-hot",
        lambda tables: GraphHash(clusters_of(tables, unseen_rows=3), hot={t.name: [0] for t in tables}, seed=2),
    ),
    Example("DoubleGraphHash", lambda tables: DoubleGraphHash(clusters_of(tables))),
    Example("DoubleGraphHash-own", lambda tables: DoubleGraphHash(clusters_of(tables), second="own", rows=ROWS)),
    Example("SoftGraphHash", lambda tables: SoftGraphHash(clusters_of(tables), weights=mixtures_of(tables), k=2)),
    Example(
        "SoftGraphHash-weights",
        lambda tables: SoftGraphHash(clusters_of(tables), weights=mixtures_of(tables), k=3, weight_bits=4),
    ),
    Example(
        "LSHash",
        lambda tables: LSHash(rows=ROWS, features={t.name: torch.eye(t.ids_or_raise(""), 5) - 0.3 for t in tables}),
        open_ids=False,
    ),
    Example(
        "LSHash-adjacency",
        lambda tables: LSHash(rows=ROWS, features={t.name: edges_of(t) for t in tables}, bits=5),
        open_ids=False,
    ),
    Example("HotRows", lambda tables: HotRows(rows=ROWS, own_share=0.3)),
    Example("LearnedMask", lambda tables: LearnedMask(keep=0.5), open_ids=False),
    Example(
        "LearnedMask-threshold", lambda ts: LearnedMask(keep=0.7, rule="threshold", per="row", block=4), open_ids=False
    ),
    Example(
        "LearnedMask-gates",
        lambda tables: LearnedMask(keep=0.5, rule="gates", counts=counts_of(tables), groups=3),
        open_ids=False,
    ),
    Example("LearnedWidths", lambda ts: LearnedWidths(width=4, candidates=(3,)), open_ids=False),
    Example("LearnedWidths-evolution", lambda tables: LearnedWidths(width=3, rule="evolution"), open_ids=False),
    Example(
        "LearnedWidths-rows",
        lambda tables: LearnedWidths(width=3, of=LearnedMask(keep=0.8, rule="rows")),
        open_ids=False,
    ),
    Example("LearnedMask-rows", lambda tables: LearnedMask(keep=0.8, rule="rows"), open_ids=False),
    Example("LowBit", lambda tables: LowBit(bits=4), open_ids=False),
    Example("LowBit-unified", lambda tables: LowBit(bits=2, of=UnifiedEmbedding(rows=ROWS, chunk_dim=4))),
    Example("LowBit-row", lambda tables: LowBit(bits=3, of=MultiHash(rows=ROWS, num_hashes=3), step="row")),
    Example(
        "LowBit-product",
        lambda tables: LowBit(bits=8, of=QuotientRemainder(), step=2),
        open_ids=False,
    ),
    Example("LowBit-soft", lambda ts: LowBit(bits=4, of=SoftGraphHash(clusters_of(ts), weights=mixtures_of(ts), k=2))),
    Example("LowRank", lambda tables: LowRank(rank=4), open_ids=False),
    Example("LowRank-multi", lambda tables: LowRank(rank=4, of=MultiHash(rows=ROWS, num_hashes=2))),
    Example("LowBit-rank", lambda tables: LowBit(bits=4, of=LowRank(rank=4)), open_ids=False),
    Example("ProductCodes", lambda tables: ProductCodes(parts=4, codes=4, small="cap"), open_ids=False),
    Example(
        "ProductCodes-hot",
        lambda tables: ProductCodes(
            parts=2,
            codes=6,
            of=MultiHash(rows=ROWS, num_hashes=2),
            share_books="all",
            hot=0.5,
            cold_codes=3,
            counts=counts_of(tables),
            small="cap",
        ),
        open_ids=False,
    ),
    Example(
        "MixedDimensions",
        lambda tables: MixedDimensions(base=60, alpha=1.0, groups=3, counts=counts_of(tables), multiple=4),
        open_ids=False,
    ),
    Example("Nested", lambda tables: Nested(width=4, of=MultiHash(rows=ROWS, num_hashes=2))),
    Example("Pruned", lambda tables: Pruned(keep=0.4, vectors=vectors_of(tables), block=4), open_ids=False),
    Example("ROBE", lambda tables: ROBE(size=96, block=4)),
    Example("ROBE-whole", lambda tables: ROBE(size=80, block=min(t.embedding_dim for t in tables), seed=2)),
    Example("SemanticIds", lambda tables: SemanticIds(items_of(tables)["codes"], PrefixNgram(3), ROWS)),
    Example("SemanticIds-concat", lambda ts: SemanticIds(**items_of(ts), pieces=Ngram(2), rows=ROWS, combine="concat")),
    Example("SemanticIds-hybrid", lambda ts: SemanticIds(**items_of(ts), pieces=Unigram(), rows=16, id_rows=3)),
    Example("SemanticIds-hot", lambda ts: SemanticIds(**items_of(ts), pieces=Unigram(), rows=19, hot=0.3)),
    Example(
        "SemanticIds-neighbours",
        lambda ts: SemanticIds(
            **items_of(ts), pieces=PrefixNgram(2), rows=16, neighbours=neighbours_of(ts), neighbour_rows=4
        ),
    ),
    Example("TensorTrain", lambda tables: TensorTrain(rank=2), open_ids=False),
    Example("UnifiedEmbedding", lambda tables: UnifiedEmbedding(rows=ROWS, chunk_dim=4)),
    Example("UnifiedEmbedding-whole", lambda tables: UnifiedEmbedding(rows=ROWS, chunk_dim=8, seed=5)),
    Example(
        "UnifiedEmbedding-balanced",
        lambda tables: UnifiedEmbedding(rows=ROWS, chunk_dim=4, balanced=True),
        open_ids=False,
    ),
]

KINDS = [
    example
    for example in EXAMPLES
    if "EMBCOMP_TEST_ALL" in os.environ
    or example.name
    in {
        "Full",
        "MultiHash-sum",
        "HashEmbedding",
        "QuotientRemainder-mul",
        "FrequencyHash-double",
        "GraphHash",
        "SoftGraphHash",
        "SemanticIds-hybrid",
        "UnifiedEmbedding-balanced",
        "LowBit-unified",
        "LowBit-row",
        "LowRank-multi",
        "ProductCodes-hot",
        "MixedDimensions",
        "ROBE",
        "TensorTrain",
        "DeepHash",
    }
]
"""An example for each kind of look-up, for slow tests that do not depend on the method: several rows added up, weights
that are learned or from a map, two tables multiplied or side by side, a shared store, coded rows, learned combiners."""


def missing() -> set[str]:
    """Return the registered methods of the library without an example; methods that tests define do not count."""
    own = {name for name, method in METHODS.items() if method.__module__.startswith("embcomp.")}
    return own - {example.method.__name__ for example in EXAMPLES}
