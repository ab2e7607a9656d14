import pytest
import torch
from torch import Tensor

import embcomp
from embcomp import DoubleHash, HashEmbedding, HashingTrick, MultiHash
from embcomp.methods import Table
from embcomp.nn import CompressedEmbedding
from embcomp.testing.drop_ins import randomize
from tests import hash_spec

IDS = [0, 1, 17, 999]


def rows(id: int, chunk: int, size: int, seed: int = 0) -> int:
    return hash_spec.row(id, seed, "embedding", chunk, size)


def module(method: embcomp.Method, dim: int = 6, n: int | None = 1000) -> CompressedEmbedding:
    return randomize(CompressedEmbedding(n, dim, method, dtype=torch.float64))


def assert_vectors(built: CompressedEmbedding, expected: list[Tensor]) -> None:
    torch.testing.assert_close(built(torch.tensor(IDS)), torch.stack(expected))


@pytest.mark.parametrize("seed", [0, 9])
def test_hashing_trick_reads_the_hashed_row(seed: int) -> None:
    built = module(HashingTrick(rows=13, seed=seed))
    (table,) = built.parameters()
    assert table.shape == (13, 6)
    assert_vectors(built, [table[rows(id, 0, 13, seed)] for id in IDS])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_summed_hashes(k: int) -> None:
    built = module(MultiHash(rows=13, num_hashes=k, seed=2))
    (table,) = built.parameters()
    assert_vectors(built, [sum((table[rows(id, j, 13, 2)] for j in range(k)), torch.zeros(6).double()) for id in IDS])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_hashes_side_by_side(k: int) -> None:
    built = module(MultiHash(rows=13, num_hashes=k, combine="concat"))
    (table,) = built.parameters()
    assert table.shape == (13, 6 // k)
    assert_vectors(built, [torch.cat([table[rows(id, j, 13)] for j in range(k)]) for id in IDS])


def test_balanced_hashes_read_no_row_more_often_than_must_be() -> None:
    """1000 ids, 1024 places with the empty ones: 11 in a row of 100 at most, where plain hashes put 19."""
    sizes = {"trick": embcomp.HashingTrick(rows=100, balanced=True), "plain": embcomp.HashingTrick(rows=100)}
    sizes |= {"sum": embcomp.DoubleHash(rows=100, balanced=True)}
    sizes |= {"concat": embcomp.MultiHash(rows=100, combine="concat", balanced=True)}
    most = {}
    for name, method in sizes.items():
        found = method.plan([embcomp.Table("t", 1000, 8)]).tables[0].encoder(torch.arange(1000))
        rows = torch.cat([chunk.rows for chunk in found], dim=1)
        most[name] = [int(column.bincount(minlength=100).max()) for column in rows.t()]
    assert most == {"trick": [11], "sum": [11, 11], "concat": [11, 11], "plain": most["plain"]}
    assert most["plain"][0] > 15


def test_double_hash_is_two_summed_hashes() -> None:
    double, multi = module(DoubleHash(rows=13, seed=4)), module(MultiHash(rows=13, num_hashes=2, seed=4))
    assert torch.equal(double.materialize(), multi.materialize())


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("importance_rows", [None, 7])
def test_hash_embedding_weighs_its_rows(k: int, importance_rows: int | None) -> None:
    """e(id) = sum_j p_j(id) E[h_j(id)], p(id) the id's own row or the one of hash number k."""
    built = module(HashEmbedding(rows=13, num_hashes=k, importance_rows=importance_rows, seed=1))
    importance, table = built.parameters()
    assert importance.shape == (importance_rows or 1000, {1: 4, 2: 4, 5: 8}[k])
    expected = []
    for id in IDS:
        p = importance[id if importance_rows is None else rows(id, k, importance_rows, 1)]
        expected.append(sum((p[j] * table[rows(id, j, 13, 1)] for j in range(k)), torch.zeros(6).double()))
    assert_vectors(built, expected)


def test_hash_embedding_starts_as_multi_hash() -> None:
    torch.manual_seed(0)
    weighted = CompressedEmbedding(50, 4, HashEmbedding(rows=7, num_hashes=3))
    summed = CompressedEmbedding(50, 4, MultiHash(rows=7, num_hashes=3))
    summed.stores[0].weight.data = weighted.stores[1].weight.data
    torch.testing.assert_close(weighted.materialize(), summed.materialize())


def test_hash_embedding_trains_both_tables() -> None:
    built = module(HashEmbedding(rows=13))
    built(torch.tensor([3])).sum().backward()
    importance, table = built.parameters()
    torch.testing.assert_close(importance.grad[3, :2], table[[rows(3, 0, 13), rows(3, 1, 13)]].sum(1))
    assert not importance.grad[3, 2:].any()  # columns that pad a row to four floats
    assert not importance.grad[:3].any()


def test_rows_by_table_name() -> None:
    tables = [Table("a", 100, 4), Table("b", None, 8)]
    for cls in (HashingTrick, MultiHash, DoubleHash):
        plan = cls(rows={"a": 5, "b": 9}).plan(tables)
        assert {name: (store.rows, store.dim) for name, store in plan.stores.items()} == {"a": (5, 4), "b": (9, 8)}
    plan = HashEmbedding(rows=6, importance_rows={"a": 3, "b": 2}).plan(tables)
    assert {name: store.rows for name, store in plan.stores.items()} == {
        "a": 6, "a_importance": 3, "b": 6, "b_importance": 2
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"rows names no table 'b'; it has \['a'\]"):
        HashingTrick(rows={"a": 5}).plan(tables)


def test_tables_with_the_same_ids_read_unrelated_rows() -> None:
    plan = HashingTrick(rows=1000).plan([Table("a", 500, 4), Table("b", 500, 4)])
    first, second = (table.encoder(torch.arange(500))[0].rows for table in plan.tables)
    assert int((first == second).sum()) < 10  # 0.5 by chance


@pytest.mark.parametrize("cls", [HashingTrick, MultiHash, DoubleHash, HashEmbedding])
@pytest.mark.parametrize("wrong", [0, -1, 2**31, 3.0, True, "5", None])
def test_rows_that_cannot_be_are_refused(cls: type[embcomp.Method], wrong: object) -> None:
    with pytest.raises(ValueError, match=rf"{cls.__name__}: rows must be an integer in \[1, 2\^31\), got {wrong!r}"):
        cls(rows=wrong).plan([Table("t", 10, 4)])


def test_settings_that_cannot_be_are_refused() -> None:
    for cls in (MultiHash, HashEmbedding):
        with pytest.raises(ValueError, match=f"{cls.__name__}: num_hashes must be at least 1, got 0"):
            cls(rows=5, num_hashes=0)
    with pytest.raises(ValueError, match="combine must be 'sum' or 'concat', got 'mean'"):
        MultiHash(rows=5, combine="mean")
    with pytest.raises(ValueError, match=r"table 't': embedding_dim 10 .* num_hashes 4.*combine='sum'"):
        MultiHash(rows=5, num_hashes=4, combine="concat").plan([Table("t", 10, 10)])
    with pytest.raises(ValueError, match=r"table 't_importance', the name|'t_importance', the name of another table"):
        HashEmbedding(rows=5).plan([Table("t", 10, 4), Table("t_importance", 10, 4)])
    with pytest.raises(TypeError):
        HashingTrick(5)  # pyright: ignore (keyword only)
    with pytest.raises(AttributeError):
        HashingTrick(rows=5).rows = 6  # pyright: ignore (frozen)
