import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embcomp import UnifiedEmbedding
from embcomp.methods import Table
from embcomp.nn import CompressedEmbedding
from embcomp.testing.drop_ins import randomize
from tests import hash_spec

TABLES = [Table("user", 6000, 32), Table("film", 4000, 32), Table("word", None, 16)]


def test_all_tables_read_one_store() -> None:
    plan = UnifiedEmbedding(rows=50, chunk_dim=8).plan(TABLES, group="multiplex")
    assert {name: (store.rows, store.dim) for name, store in plan.stores.items()} == {"multiplex": (50, 8)}
    assert [len(table.chunks) for table in plan.tables] == [4, 4, 2]
    assert {chunk.store for table in plan.tables for chunk in table.chunks} == {"multiplex"}
    assert [plan.embedding_dim(table) for table in plan.tables] == [32, 32, 16]
    assert plan.nbytes() == 50 * 8 * 4 + 8 * 10


def test_each_chunk_of_each_feature_has_a_hash_of_its_own() -> None:
    plan = UnifiedEmbedding(rows=50, chunk_dim=8, seed=3).plan(TABLES)
    ids = torch.arange(40)
    read = {}
    for table in plan.tables:
        for c, chunk in enumerate(table.encoder(ids)):
            read[table.table.name, c] = chunk.rows.flatten().tolist()
            assert read[table.table.name, c] == [hash_spec.row(i, 3, table.table.name, c, 50) for i in range(40)]
    assert len({tuple(rows) for rows in read.values()}) == 10


def test_balanced_chunks_part_the_ids_of_a_feature() -> None:
    tables = TABLES[:2]
    plan = UnifiedEmbedding(rows=6100, chunk_dim=8, seed=3, balanced=True).plan(tables)
    for table in plan.tables:
        ids = torch.arange(table.table.num_embeddings or 0)
        for c, chunk in enumerate(table.encoder(ids)):
            assert len(chunk.rows.unique()) == len(ids)  # of plain hashes 6100 (1 - e^(-6000/6100)) = 3819
            expected = [hash_spec.balanced_row(i, 3, table.table.name, c, len(ids), 6100) for i in range(40)]
            assert chunk.rows[:40].flatten().tolist() == expected


def test_a_vector_is_its_chunks_side_by_side() -> None:
    module = randomize(CompressedEmbedding(None, 12, UnifiedEmbedding(rows=9, chunk_dim=4)))
    (store,) = module.parameters()
    for id in (0, 5, 2**62):
        rows = [hash_spec.row(id, 0, "embedding", c, 9) for c in range(3)]
        assert torch.equal(module(torch.tensor(id)), torch.cat([store[row] for row in rows]))


def test_lookups_change_widths() -> None:
    plan = UnifiedEmbedding(rows=50, chunk_dim=8, lookups={"user": 6, "film": 1}).plan(TABLES)
    assert [len(table.chunks) for table in plan.tables] == [6, 1, 2]
    assert [plan.embedding_dim(table) for table in plan.tables] == [48, 8, 16]
    module = CompressedEmbedding(100, 32, UnifiedEmbedding(rows=50, chunk_dim=8, lookups={"embedding": 3}))
    assert (module.embedding_dim, module(torch.tensor([1, 2])).shape) == (24, (2, 24))
    odd = UnifiedEmbedding(rows=50, chunk_dim=7, lookups={"t": 2}).plan([Table("t", 10, 32)])
    assert odd.embedding_dim(odd.tables[0]) == 14


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="table 'word': balanced=True needs num_embeddings"):
        UnifiedEmbedding(rows=50, chunk_dim=8, balanced=True).plan(TABLES)
    for wrong, message in [
        (lambda: UnifiedEmbedding(rows=5, chunk_dim=0), "chunk_dim must be at least 1, got 0"),
        (lambda: UnifiedEmbedding(rows=0, chunk_dim=8).plan(TABLES), r"rows must be an integer in \[1, 2\^31\), got 0"),
        (lambda: UnifiedEmbedding(rows=5, chunk_dim=5).plan(TABLES), "table 'user': embedding_dim 32 .* chunk_dim 5"),
        (
            lambda: UnifiedEmbedding(rows=5, chunk_dim=8, lookups={"user": 0}).plan(TABLES),
            r"lookups\['user'\] must be at least 1, got 0",
        ),
        (lambda: UnifiedEmbedding(rows=5, chunk_dim=8, lookups={"usr": 1}).plan(TABLES), r"lookups names \['usr'\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()


@given(
    st.lists(st.tuples(st.integers(1, 10**6) | st.none(), st.sampled_from([3, 8, 24, 32, 40])), min_size=1, max_size=4),
    st.integers(10_000, 10**7),
)
def test_a_budget_alone_picks_chunks_that_divide_every_width(sizes: list[tuple[int | None, int]], budget: int) -> None:
    tables = [Table(str(i), n, dim) for i, (n, dim) in enumerate(sizes)]
    method = UnifiedEmbedding.for_budget(tables, budget)
    assert all(table.embedding_dim % method.chunk_dim == 0 for table in tables)
    assert budget - 4 * method.chunk_dim < method.plan(tables).nbytes() <= budget


def test_tighter_budgets_read_more_and_narrower_chunks() -> None:
    tables = [Table("user", 6040, 32), Table("film", 3706, 32)]
    full = sum(4 * 32 * (table.num_embeddings or 0) for table in tables)
    dims = [UnifiedEmbedding.for_budget(tables, int(full * share)).chunk_dim for share in (1, 0.5, 0.1, 0.01, 0.001)]
    assert dims == sorted(dims, reverse=True)
    assert dims[0] > dims[-1]


def test_look_ups_for_a_budget_are_those_that_were_best_on_movielens() -> None:
    """The numbers of docs/results/unified-ml1m.md: at 100 %, 50 % and 10 % of tables that are 30 wide."""
    sizes = {"user": 6039, "item": 3667, "gender": 2, "age": 7, "occupation": 21, "zip": 3439}
    tables = [Table(name, size, 30) for name, size in sizes.items()]

    def look_ups(balanced: bool) -> list[int]:
        made = [
            UnifiedEmbedding.for_budget(tables, budget, balanced=balanced) for budget in (1_581_240, 790_620, 158_124)
        ]
        return [30 // method.chunk_dim for method in made]

    assert look_ups(balanced=False) == [2, 3, 5]
    assert look_ups(balanced=True) == [1, 2, 3]


def test_chunks_whose_keys_alone_would_take_the_budget_are_left_out() -> None:
    tables = [Table("a", 100, 30), Table("b", 200, 30)]
    assert UnifiedEmbedding.for_budget(tables, 1000, balanced=True).plan(tables).nbytes() <= 1000
    with pytest.raises(ValueError, match="needs at least one"):
        UnifiedEmbedding.for_budget([], 1000)


def test_a_given_chunk_is_kept() -> None:
    tables = [Table("a", 100, 24), Table("b", None, 40)]
    narrow = UnifiedEmbedding.for_budget(tables, 5000, chunk_dim=4, seed=7)
    assert (narrow.chunk_dim, narrow.seed, narrow.rows) == (4, 7, (5000 - 8 * 16) // 16)
