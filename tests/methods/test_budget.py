"""What `for_budget` does for several tables and at its edges; `embcomp.testing` holds every method to its promise."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from embcomp import (
    DoubleHash,
    FrequencyHash,
    Full,
    HashEmbedding,
    HashingTrick,
    Method,
    MultiHash,
    QuotientRemainder,
    Table,
    UnifiedEmbedding,
    compress_,
)
from embcomp.methods.budget import largest_within, share_rows
from embcomp.ops.hashing import MAX_ROWS


@given(st.integers(1, 10**6), st.integers(0, 10**8))
def test_the_largest_that_fits(most: int, budget: int) -> None:
    """Against the closed form: one table of rows of 4 floats, one key."""
    table = Table("t", None, 4)
    if budget < 24:
        with pytest.raises(ValueError, match=f"HashingTrick: a budget of {budget} bytes .* for 't'; .* takes 24 bytes"):
            largest_within([table], budget, lambda rows: HashingTrick(rows=rows), most)
        return
    method = largest_within([table], budget, lambda rows: HashingTrick(rows=rows), most)
    assert method.rows == max(1, min(most, (budget - 8) // 16))


def test_budgets_beyond_every_size() -> None:
    assert HashingTrick.for_budget([Table("t", None, 4)], 10**15).rows == MAX_ROWS
    assert UnifiedEmbedding.for_budget([Table("t", 10, 4), Table("u", None, 8)], 10**15).rows == MAX_ROWS


@given(st.lists(st.integers(1, 10**7), min_size=2, max_size=9), st.integers(1, 10**6))
def test_rows_are_split_by_vocabulary_after_those_of_small_tables(sizes: list[int], total: int) -> None:
    tables = [Table(str(i), n, 4) for i, n in enumerate(sizes)]
    rows, more = (share_rows(tables, n) for n in (total, total + 1))
    assert all(1 <= rows[name] <= more[name] for name in rows)
    if total >= len(sizes):
        assert total - len(sizes) <= sum(rows.values()) <= total + len(sizes)
    if total >= 64 * len(sizes):  # half of it holds 32 each
        assert all(rows[str(i)] >= n for i, n in enumerate(sizes) if n < 28)  # places(28) == 32
        large = [(n, rows[str(i)] - 32) for i, n in enumerate(sizes) if n >= 32 and rows[str(i)] < MAX_ROWS]
        for (n, more_rows), (other, others_rows) in itertools.pairwise(large):
            assert abs(more_rows * other - others_rows * n) <= n + other  # whole rows


def test_one_table_has_all_rows() -> None:
    assert share_rows([Table("t", None, 4)], 70) == 70
    with pytest.raises(ValueError, match="table 'b': splitting a budget by vocabulary needs num_embeddings"):
        share_rows([Table("a", 5, 4), Table("b", None, 4)], 70)


def test_ids_of_small_tables_stay_apart() -> None:
    """Gender was one row at 50 %: its two values became one."""
    model = nn.ModuleDict({"user": nn.Embedding(6040, 16), "gender": nn.Embedding(2, 16), "age": nn.Embedding(7, 16)})
    for method in (HashingTrick, MultiHash, UnifiedEmbedding, QuotientRemainder):
        for share in ("50%", "10%"):
            copy_of = copy.deepcopy(model)
            compress_(copy_of, method.for_budget(model, share))
            for name in ("gender", "age"):
                assert copy_of[name].weight.unique(dim=0).shape[0] == model[name].num_embeddings


@pytest.mark.parametrize("fixed", [{}, {"num_hashes": 3}, {"combine": "concat"}, {"seed": 7}])
def test_summed_rows_of_small_tables_stay_apart(fixed: dict) -> None:
    """Frappe at 50 %: two permutations of two rows are the same sum for both values of isweekend."""
    ids = {"user": 957, "item": 4082, "isweekend": 2, "cost": 2, "homework": 3, "daytime": 7, "weather": 9, "age": 18}
    model = nn.ModuleDict({name: nn.Embedding(number, 12) for name, number in ids.items()})
    classes = (MultiHash, DoubleHash) if fixed in ({}, {"seed": 7}) else (MultiHash,)
    for method in classes:
        for share in ("50%", "10%"):
            found = method.for_budget(model, share, **fixed)
            assert found.seed >= fixed.get("seed", 0)
            copy_of = copy.deepcopy(model)
            compress_(copy_of, found)
            for name in ("isweekend", "cost", "homework", "daytime", "weather", "age"):
                assert copy_of[name].weight.unique(dim=0).shape[0] == ids[name]


@pytest.mark.parametrize("cls", [HashingTrick, MultiHash, DoubleHash, HashEmbedding, FrequencyHash])
def test_within_two_percent_of_the_bytes(cls) -> None:
    """For 26 tables from 2 to 10^6 ids at 10 %: the gap of whole rows is far below the promise."""
    tables = [Table(f"t{i}", n, 16) for i, n in enumerate([2, 3, 30, 500, 20_000, 10**5] * 4 + [10**6, 3 * 10**5])]
    fixed = {"counts": {t.name: torch.arange(t.num_embeddings) for t in tables}} if cls is FrequencyHash else {}
    fixed |= {"importance_rows": 1000} if cls is HashEmbedding else {}
    budget = sum(t.num_embeddings * 64 for t in tables) // 10
    stored = cls.for_budget(tables, budget, **fixed).plan(tables).nbytes()
    assert 0.98 * budget <= stored <= budget


def test_budgets_of_many_rows_are_those_of_each_table() -> None:
    """26 tables of 10^9 ids at 10 %: more rows together than one table may have."""
    tables = [Table(f"t{i}", 10**9, 64) for i in range(26)]
    budget = 26 * 10**9 * 64 * 4 // 10
    rows = HashingTrick.for_budget(tables, budget).rows
    assert 0.98 * budget <= sum(rows.values()) * 64 * 4 <= budget
    rows = HashingTrick.for_budget(tables, 10**15).rows
    assert set(rows.values()) == {MAX_ROWS}


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=3), st.integers(1, 10**6), st.sampled_from([1, 2, 5]))
def test_hash_embedding_hashes_importances_that_would_not_fit(sizes: list[int], budget: int, k: int) -> None:
    """One importance for each id where these take up to half of the budget and leave a row; else as many as rows."""
    tables = [Table(str(i), n, 16) for i, n in enumerate(sizes)]
    padded = 8 if k == 5 else 4
    if budget < len(sizes) * (4 * (16 + padded) + 8 * (k + 1)):  # one row of each store, and the keys
        with pytest.raises(ValueError, match="too small"):
            HashEmbedding.for_budget(tables, budget, num_hashes=k)
        return
    method = HashEmbedding.for_budget(tables, budget, num_hashes=k)
    own = sum(sizes) * padded * 4
    assert (method.importance_rows is None) == (max(2 * own, own + len(sizes) * (4 * 16 + 8 * (k + 1))) <= budget)
    stored = method.plan(tables).nbytes()
    assert budget - max(0.02 * budget, len(tables) * 4 * (16 + padded)) <= stored <= budget


def test_a_method_without_rows_says_what_its_budget_needs() -> None:
    class Fixed(Full, registered=False):
        ladder = classmethod(Method.ladder.__func__)

    with pytest.raises(TypeError, match=r"Fixed has no `rows`.*its own `ladder`"):
        Fixed.for_budget([Table("t", 10, 4)], 10**6)
