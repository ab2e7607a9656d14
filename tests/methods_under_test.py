"""Example configurations of every method, for tests that hold for all of them.

`@pytest.mark.parametrize("example", EXAMPLES, ids=str)`; `example.make(tables)` is a configuration for these tables.
Their widths must be multiples of 8, so that chunks are multiples of 4 (what FBGEMM can read). Rows are few: collisions
are what tests want. A method that is registered but missing here fails in tests/test_matrix.py and tests/torchrec.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embcomp import Ngram, PrefixNgram, Unigram
from embcomp.methods import (
    METHODS,
    DoubleHash,
    FrequencyHash,
    Full,
    HashEmbedding,
    HashingTrick,
    Method,
    MultiHash,
    QuotientRemainder,
    SemanticIds,
    Table,
    UnifiedEmbedding,
)

ROWS = 7


@dataclass(frozen=True)
class Example:
    """One configuration: `make(tables)` builds it; `open_ids` says whether num_embeddings may be None."""

    name: str
    make: Callable[[Sequence[Table]], Method]
    open_ids: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def method(self) -> type[Method]:
        """The class, named before the first dash."""
        return METHODS[self.name.partition("-")[0]]


def counts_of(tables: Sequence[Table]) -> Mapping[str, Tensor]:
    """Training frequencies with ties and ids that never occur."""
    return {t.name: (torch.arange(t.ids_or_raise("counts")) * 7919 % 11).float() for t in tables}


def items_of(tables: Sequence[Table]) -> dict[str, Mapping[str, Tensor]]:
    """Codes of 3 levels with collisions and items without content, and counts; of 30 items where ids are open."""
    sizes = {t.name: t.num_embeddings or 30 for t in tables}
    codes = {
        name: torch.arange(n).unsqueeze(1) * torch.tensor([3, 7, 5]) % torch.tensor([4, 5, 3])
        for name, n in sizes.items()
    }
    for table in codes.values():
        table[3::9] = -1
    return {"codes": codes, "counts": {name: torch.arange(n) * 7919 % 11 for name, n in sizes.items()}}


EXAMPLES = [
    Example("Full", lambda tables: Full(), open_ids=False),
    Example("HashingTrick", lambda tables: HashingTrick(rows=ROWS)),
    Example("HashingTrick-seed", lambda tables: HashingTrick(rows={t.name: ROWS + 2 for t in tables}, seed=3)),
    Example("MultiHash-sum", lambda tables: MultiHash(rows=ROWS, num_hashes=3)),
    Example("MultiHash-concat", lambda tables: MultiHash(rows=ROWS, num_hashes=2, combine="concat")),
    Example("DoubleHash", lambda tables: DoubleHash(rows=ROWS)),
    Example("HashEmbedding", lambda tables: HashEmbedding(rows=ROWS), open_ids=False),
    Example("HashEmbedding-hashed", lambda tables: HashEmbedding(rows=ROWS, num_hashes=5, importance_rows=5)),
    Example("QuotientRemainder-mul", lambda tables: QuotientRemainder(), open_ids=False),
    Example("QuotientRemainder-sum", lambda tables: QuotientRemainder(rows=ROWS, combine="sum"), open_ids=False),
    Example("QuotientRemainder-concat", lambda tables: QuotientRemainder(rows=3, combine="concat"), open_ids=False),
    Example("FrequencyHash", lambda tables: FrequencyHash(rows=ROWS, counts=counts_of(tables)), open_ids=False),
    Example(
        "FrequencyHash-double",
        lambda tables: FrequencyHash(rows=ROWS, counts=counts_of(tables), tail="double"),
        open_ids=False,
    ),
    Example("SemanticIds", lambda tables: SemanticIds(items_of(tables)["codes"], PrefixNgram(3), ROWS)),
    Example("SemanticIds-concat", lambda ts: SemanticIds(**items_of(ts), pieces=Ngram(2), rows=ROWS, combine="concat")),
    Example("SemanticIds-hybrid", lambda ts: SemanticIds(**items_of(ts), pieces=Unigram(), rows=16, id_rows=3)),
    Example("UnifiedEmbedding", lambda tables: UnifiedEmbedding(rows=ROWS, chunk_dim=4)),
    Example("UnifiedEmbedding-whole", lambda tables: UnifiedEmbedding(rows=ROWS, chunk_dim=8, seed=5)),
]


def missing() -> set[str]:
    """Registered methods of the library without an example (methods that tests define are their own affair)."""
    own = {name for name, method in METHODS.items() if method.__module__.startswith("embcomp.")}
    return own - {example.method.__name__ for example in EXAMPLES}
