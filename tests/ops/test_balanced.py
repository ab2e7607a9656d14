import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from embcomp.ops.balanced import MAX_IDS, Domain, balanced_key, balanced_rows, balanced_rows_reference
from tests import hash_spec


def keys_of(*names: tuple[int, str, int]) -> torch.Tensor:
    return torch.tensor([balanced_key(*name) for name in names])


def rows_of(num_ids: int, rows: int, *names: tuple[int, str, int]) -> np.ndarray:
    return balanced_rows(torch.arange(num_ids), keys_of(*names), num_ids, rows).numpy()


@given(st.integers(1, 3000), st.integers(1, 5000), st.integers(-9, 9))
def test_no_row_is_read_by_more_ids_than_must_be(num_ids: int, rows: int, seed: int) -> None:
    """Counted by hand: ceil(places / rows) at most, where fewer than sqrt(ids) places are empty; one where they fit."""
    found = rows_of(num_ids, rows, (seed, "t", 0))[0]
    most = np.bincount(found, minlength=rows)
    places = num_ids + int(np.sqrt(num_ids))
    assert found.min() >= 0
    assert len(most) == rows
    assert most.max() <= -(-places // rows)
    if rows >= places:
        assert most.max() == 1


@given(
    st.integers(1, MAX_IDS),
    st.integers(1, 2**31 - 1),
    st.lists(st.integers(0, MAX_IDS - 1), max_size=20),
    st.integers(0, 3),
)
def test_compiled_form_is_the_reference_and_the_specification(
    num_ids: int, rows: int, ids: list[int], chunk: int
) -> None:
    ids = [id % num_ids for id in ids]
    keys = keys_of((5, "Straße", chunk), (5, "b", chunk))
    given_ids = torch.tensor(ids, dtype=torch.int64)
    found = balanced_rows(given_ids, keys, num_ids, rows)
    assert torch.equal(found, balanced_rows_reference(given_ids, keys, Domain.of(num_ids, rows)))
    assert found[0].tolist() == [hash_spec.balanced_row(id, 5, "Straße", chunk, num_ids, rows) for id in ids]
    out = torch.empty_like(found)
    assert balanced_rows(given_ids, keys, num_ids, rows, out) is out
    assert torch.equal(out, found)


@pytest.mark.parametrize("num_ids", [97, 1000, 6040])
def test_any_two_ids_meet_as_often_as_chance_allows(num_ids: int) -> None:
    """Over 3,000 seeds, of pairs that are neighbours, far apart or a power of two apart: never one pair too often."""
    rows = num_ids // 3
    pairs = np.array([(0, 1), (5, 6), (0, num_ids - 1), (1, 33), (2, 66), (7, 8 + num_ids // 2), (3, num_ids // 3)])
    keys = keys_of(*[(seed, "t", 0) for seed in range(3000)])
    first, second = (balanced_rows(torch.from_numpy(side.copy()), keys, num_ids, rows).numpy() for side in pairs.T)
    every = rows_of(num_ids, rows, *[(seed, "t", 0) for seed in range(20)])
    chance = np.mean([(np.bincount(row) * (np.bincount(row) - 1)).sum() for row in every]) / (num_ids * (num_ids - 1))
    for met in (first == second).sum(0):
        assert stats.binomtest(int(met), 3000, chance).pvalue > 1e-5


def test_ids_that_meet_under_one_key_part_under_another() -> None:
    num_ids, rows = 6000, 500
    first, second = rows_of(num_ids, rows, (0, "t", 0), (0, "t", 1))
    pairs = np.argwhere(np.triu(first[:, None] == first[None, :], 1))
    both = int((second[pairs[:, 0]] == second[pairs[:, 1]]).sum())
    chance = len(pairs) / (num_ids * (num_ids - 1) / 2)
    assert stats.binomtest(both, len(pairs), chance).pvalue > 1e-4


@pytest.mark.parametrize(("num_ids", "rows"), [(21, 4000), (6000, 50), (6000, 9000)])
def test_two_tables_and_two_seeds_read_unrelated_rows(num_ids: int, rows: int) -> None:
    """How many of one table's ids have the row that the same id of another has: as many as independence says."""
    names = [(seed, table, 0) for seed in range(40) for table in ("user", "item")]
    found = rows_of(num_ids, rows, *names)
    agree = sum(int((found[i] == found[j]).sum()) for i in range(len(names)) for j in range(i))
    trials = num_ids * len(names) * (len(names) - 1) // 2
    assert stats.binomtest(agree, trials, 1 / rows).pvalue > 1e-4


def test_too_many_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="2\\^60 ids"):
        Domain.of(MAX_IDS + 1, 10)
