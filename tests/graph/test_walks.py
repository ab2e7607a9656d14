"""The largest entries of rows: compiled, and in NumPy, against sorted lists."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from embcomp.graph.walks import counts, largest, largest_reference


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(1, 9), st.integers(1, 12), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 99))
@example(rows=0, columns=3, k=2, filled=1.0, seed=0)
def test_the_largest_entries_of_rows(rows: int, columns: int, k: int, filled: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(1, 4, (rows, columns)) * (random.random((rows, columns)) < filled)  # many are equal
    matrix = csr_array(values.astype(np.float64))
    for form in (largest, largest_reference):
        kept = form(matrix, k)
        assert kept.shape == matrix.shape
        assert kept.indptr.tolist() == [0, *np.cumsum(np.minimum(counts(matrix), k))]
        for row in range(rows):
            best = sorted((-value, column) for column, value in enumerate(values[row].tolist()) if value)[:k]
            mine = slice(kept.indptr[row], kept.indptr[row + 1])
            assert list(zip((-kept.data[mine]).tolist(), kept.indices[mine].tolist(), strict=True)) == best


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_other_kinds_of_numbers(dtype: type) -> None:
    matrix = csr_array(np.array([[3, 0, 7, 5]], dtype=dtype))
    assert largest(matrix, 2).indices.tolist() == [2, 3]
