import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from embcomp.ops import native
from embcomp.ops.hashing import MAX_ROWS, check_ids, hash_key, hash_rows, hash_rows_by_key, hash_rows_reference
from tests import hash_spec

# seed, table, chunk, key, then the rows of id 0 of 1000, 1 of 1000, 2^31 of 7, 2^62 of 2^31 - 1, 2^63 - 1 of 1
VECTORS = [
    (0, "user_id", 0, 0x6EBFF783E65D2CB9, [894, 819, 5, 384754672, 0]),
    (0, "user_id", 1, 0xEAE15B71F0D737B4, [466, 854, 5, 748994247, 0]),
    (1, "user_id", 0, 0x2B7AE57A11001D9C, [524, 119, 4, 1160598661, 0]),
    (-1, "a/b", 0, 0x08567C1504ACB054, [252, 159, 1, 1632209756, 0]),
    (0, "embedding", 0, 0x1CD91E5B74FB86DB, [791, 687, 5, 2026309721, 0]),
    (1099511627776, "Straße", 12, 0x3300A3F1D7F9063C, [975, 615, 4, 1377307387, 0]),
]
PLACES = [(0, 1000), (1, 1000), (2**31, 7), (2**62, 2**31 - 1), (2**63 - 1, 1)]
INT64 = st.integers(-(2**63), 2**63 - 1)


def keys_of(*names: tuple[int, str, int]) -> Tensor:
    return torch.tensor([hash_key(*name) for name in names])


@pytest.mark.parametrize(("seed", "table", "chunk", "key", "rows"), VECTORS)
def test_vectors(seed: int, table: str, chunk: int, key: int, rows: list[int]) -> None:
    assert hash_key(seed, table, chunk) % 2**64 == key == hash_spec.key(seed, table, chunk)
    keys = keys_of((seed, table, chunk))
    for (id, size), row in zip(PLACES, rows, strict=True):
        assert hash_spec.row(id, seed, table, chunk, size) == row
        for form in (hash_rows, hash_rows_reference):
            assert form(torch.tensor([id]), keys, size).tolist() == [[row]]
        assert hash_rows_by_key(torch.tensor([id]), keys, size).tolist() == [[row]]


@given(st.lists(INT64, max_size=20), st.lists(INT64, min_size=1, max_size=5), st.integers(1, MAX_ROWS))
def test_compiled_form_is_the_reference(ids: list[int], keys: list[int], rows: int) -> None:
    ids_, keys_ = torch.tensor(ids, dtype=torch.int64), torch.tensor(keys)
    expected = hash_rows_reference(ids_, keys_, rows)
    assert expected.shape == (len(ids), len(keys))
    assert torch.equal(hash_rows(ids_, keys_, rows), expected)
    assert torch.equal(hash_rows_by_key(ids_, keys_, rows), expected.t())
    assert not ids or (int(expected.min()) >= 0 and int(expected.max()) < rows)


def test_compiled_form_over_many_ids_in_any_layout() -> None:
    """More than one block of the C code, and memory that is not contiguous."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(-(2**63), 2**63 - 1, (2, 1500)))
    keys = keys_of(*[(0, "t", chunk) for chunk in range(6)])
    for part in (ids[0], ids[:, 0], ids.t()[::3, 1], ids[1, :513]):
        for some in (keys, keys[::2], keys[1:2]):
            assert torch.equal(hash_rows(part, some, 12345), hash_rows_reference(part, some, 12345))
            assert torch.equal(hash_rows_by_key(part, some, 12345), hash_rows_reference(part, some, 12345).t())


def test_a_traced_module_hashes_what_it_is_given() -> None:
    """torch.jit.trace records torch operations alone: rows from C code would stay those of the example."""
    keys = keys_of((0, "t", 0), (0, "t", 1))
    traced = torch.jit.trace(lambda ids: hash_rows(ids, keys, 1000), (torch.arange(4),))
    ids = torch.tensor([5, 2**62, 7])
    assert torch.equal(traced(ids), hash_rows(ids, keys, 1000))


PATTERNS = {
    "sequential": lambda n: np.arange(n),
    "from 10^12": lambda n: 10**12 + np.arange(n),
    "stride 1000": lambda n: 1000 * np.arange(n),
    "multiples of 2^16": lambda n: np.arange(n) << 16,
    "multiples of 2^32": lambda n: np.arange(n) << 32,
    "multiples of 2^47": lambda n: np.arange(n) << 47,
    "random": lambda n: np.random.default_rng(1).integers(0, 2**63 - 1, n),
    "powers and neighbours": lambda n: np.unique([(1 << k) + j for k in range(8, 63) for j in range(n // 55)])[:n],
}


@pytest.mark.parametrize("rows", [2, 7, 100, 1024, 4099])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_rows_are_uniform(pattern: str, rows: int) -> None:
    """Chi-square over the rows, for three keys: neither too uneven nor too even (a permutation would be)."""
    ids = torch.from_numpy(PATTERNS[pattern](50_000).astype(np.int64))
    for column in hash_rows_by_key(ids, keys_of((0, "t", 0), (1, "t", 0), (0, "t", 1)), rows):
        p = stats.chisquare(np.bincount(column.numpy(), minlength=rows)).pvalue
        assert 1e-4 < p < 1 - 1e-4


@pytest.mark.parametrize("pattern", ["sequential", "stride 1000", "multiples of 2^32", "random"])
def test_seeds_chunks_and_tables_hash_independently(pattern: str) -> None:
    """For each pair of keys: the joint rows are uniform, and as many ids agree as the binomial law says."""
    names = [(seed, table, chunk) for seed in (0, 1) for table in ("user", "item") for chunk in (0, 1)]
    ids = torch.from_numpy(PATTERNS[pattern](40_000).astype(np.int64))
    rows = 16
    columns = hash_rows_by_key(ids, keys_of(*names), rows).numpy()
    for i in range(len(names)):
        for j in range(i):
            joint = np.bincount(columns[i] * rows + columns[j], minlength=rows * rows)
            assert 1e-5 < stats.chisquare(joint).pvalue < 1 - 1e-5
            agree = int((columns[i] == columns[j]).sum())
            assert stats.binomtest(agree, len(ids), 1 / rows).pvalue > 1e-5


def test_ids_that_collide_under_one_key_part_under_another() -> None:
    """Pairs in one row of the first key: a share of 1 / rows of them is in one row of the second, no more."""
    ids, rows = torch.arange(6000), 500
    first, second = hash_rows_by_key(ids, keys_of((0, "t", 0), (0, "t", 1)), rows).numpy()
    together = first[:, None] == first[None, :]
    pairs = np.argwhere(np.triu(together, 1))
    assert abs(len(pairs) - 6000 * 5999 / 2 / rows) < 5 * (6000 * 5999 / 2 / rows) ** 0.5
    both = int((second[pairs[:, 0]] == second[pairs[:, 1]]).sum())
    assert stats.binomtest(both, len(pairs), 1 / rows).pvalue > 1e-4


def test_keys_differ_in_each_part_of_their_name() -> None:
    names = [(s, t, c) for s in (-1, 0, 1, 10) for t in ("a", "b", "1/a", "", "0") for c in (0, 1, 10)]
    keys = [hash_key(*name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(-(2**63) <= key < 2**63 for key in keys)


@pytest.fixture(params=["compiled", "torch"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("limit", [None, 1, 10, 2**31, 2**62, 2**63 - 1])
def test_ids_in_range_pass_and_others_do_not(limit: int | None) -> None:
    top = 2**63 if limit is None else limit
    inside = torch.tensor([0, 0, top - 1, top // 2])
    assert torch.equal(check_ids(inside, limit, "t"), inside)
    for wrong in {-1, -(2**63), top} - {2**63}:
        for place in (0, 2, 3):
            ids = inside.clone()
            ids[place] = wrong
            with pytest.raises(IndexError, match=rf"table 't': id {wrong} is out of range.*\(1 of 4 ids"):
                check_ids(ids, limit, "t")
    with pytest.raises(IndexError, match=r"id -7 .*\(3 of 3 ids"):
        check_ids(torch.tensor([[-7], [-8], [-9]]), limit, "t")
    assert check_ids(torch.tensor([], dtype=torch.int64), limit, "t").shape == (0,)


@pytest.mark.usefixtures("form")
def test_every_integer_type_becomes_int64() -> None:
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        ids = check_ids(torch.tensor([[1, 2], [100, 0]], dtype=dtype).t(), 101, "t")
        assert (ids.dtype, ids.tolist()) == (torch.int64, [[1, 100], [2, 0]])
        if dtype != torch.uint8:
            with pytest.raises(IndexError, match="id -2"):
                check_ids(torch.tensor([1, -2], dtype=dtype), 101, "t")
    for dtype in (torch.float32, torch.float16, torch.bool, torch.complex64):
        with pytest.raises(ValueError, match=rf"table 't': ids must be integers, got {dtype}.*ids\.long"):
            check_ids(torch.zeros(2, dtype=dtype), 101, "t")


def test_rows_are_written_where_they_belong() -> None:
    keys, ids = keys_of((0, "t", 0), (0, "t", 1)), torch.arange(5)
    whole = torch.full((12,), -7)
    place = whole[1:11].view(2, 5)
    assert hash_rows_by_key(ids, keys, 99, out=place).data_ptr() == place.data_ptr()
    assert torch.equal(whole[1:11], hash_rows_reference(ids, keys, 99).t().reshape(-1))
    assert whole[[0, 11]].tolist() == [-7, -7]
    for wrong in (torch.empty(5, 2, dtype=torch.int64), torch.empty(5, 2, dtype=torch.int64).t()):
        with pytest.raises(ValueError, match="out must be contiguous"):
            hash_rows_by_key(ids, keys, 99, out=wrong)


def test_rows_of_each_id_are_written_into_place(form):
    ids, keys = torch.arange(9), torch.tensor([hash_key(0, "t", chunk) for chunk in range(3)])
    place = torch.full((9, 3), -1)
    assert hash_rows(ids, keys, 99, out=place).data_ptr() == place.data_ptr()
    assert torch.equal(place, hash_rows_reference(ids, keys, 99))
    for wrong in (torch.empty(3, 9, dtype=torch.int64), place.t().contiguous().t()):
        with pytest.raises(ValueError, match="out must be contiguous"):
            hash_rows(ids, keys, 99, out=wrong)
