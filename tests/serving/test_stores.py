"""Stores against the definition, by the bytes that they hold."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from embcomp.serving.stores import DTYPES, ServedStore, serve
from tests.serving.grids import steps


def decoded(store: ServedStore) -> Tensor:
    """The rows that a store holds, read from its bytes by numpy."""
    if store.kind in ("float16", "float32"):
        return store.table.float()
    raw, tail = store.table.numpy(), {"int8": 8, "int4": 4}[store.kind]
    codes = raw[:, :-tail]
    if store.kind == "int4":
        codes = np.stack([codes % 16, codes // 16], -1).reshape(len(raw), -1)
    pair = np.ascontiguousarray(raw[:, -tail:]).view(np.float32 if tail == 8 else np.float16).astype(np.float32)
    values = pair[:, :1] * codes + pair[:, 1:]
    width = values.shape[1] // store.dim * store.dim
    return torch.from_numpy(values[:, :width].reshape(-1, store.dim)[: store.rows])


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.lists(st.integers(0, 3), max_size=4), st.booleans()
)
@example(5, 1, 1, [0, 0], False)
@example(3, 33, 2, [], True)
def test_look_ups_and_bags(dtype: str, rows: int, dim: int, lookups: int, bags: list[int], weighted: bool) -> None:
    random = torch.Generator().manual_seed(rows * dim + lookups)
    trained = torch.randn(rows, dim, generator=random)
    store = serve(trained, dtype, torch.float32, "t")  # pyright: ignore
    held = decoded(store)
    assert bool(((held.double() - trained.double()).abs() <= steps(trained, dtype)).all())
    ids = torch.randint(rows, (sum(bags), lookups), generator=random)
    weights = torch.rand(sum(bags), lookups, generator=random) if weighted else None
    each = held[ids] * (1 if weights is None else weights.unsqueeze(-1))
    found = store.look_up(ids, weights)
    assert found.shape == (sum(bags), dim)
    torch.testing.assert_close(found, each.sum(1), rtol=1e-5, atol=1e-5)
    offsets = torch.tensor([0, *bags]).cumsum(0)
    parts = [part.sum((0, 1)) for part in each.split(bags)] if bags else []
    expected = torch.stack(parts) if parts else torch.zeros(0, dim)
    torch.testing.assert_close(store.pool(ids, offsets, weights), expected, rtol=1e-5, atol=1e-5)
    if lookups == 1 and not weighted:
        mean = expected / offsets.diff().clamp(min=1).unsqueeze(-1)
        torch.testing.assert_close(store.pool(ids, offsets, None, "mean"), mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "expected"), [("int8", [10, 20, 40, 72, 136]), ("int4", [5, 10, 20, 36, 68])])
def test_bytes_of_a_row(dtype: str, expected: list[int]) -> None:
    """Widths 8, 16, 32, 64, 128; rows padded to 16 bytes would take 16, 32, 48, 80, 144 and 16, 16, 32, 48, 80."""
    stores = [serve(torch.randn(64, dim), dtype, torch.float32, "t") for dim in (8, 16, 32, 64, 128)]  # pyright: ignore
    assert [store.table.nbytes / 64 for store in stores] == expected


def test_vectors_have_the_dtype_asked_for() -> None:
    for dtype in DTYPES:
        store = serve(torch.randn(4, 6, dtype=torch.float64), dtype, torch.float64, "t")
        assert store.look_up(torch.tensor([[3]])).dtype == torch.float64
        assert store.pool(torch.tensor([[3]]), torch.tensor([0, 1])).dtype == torch.float64


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [
        (1e6, "int4", r"table 'users': values up to 1e\+06 are too large for int4.*float32"),
        (1e6, "float16", r"table 'users': .*float16.*\{'users': 'float32', '\*': 'float16'\}"),
        (float("nan"), "int8", "table 'users' holds NaN.*int8"),
        (float("inf"), "float16", "table 'users' holds NaN or infinite"),
    ],
)
def test_values_that_a_dtype_cannot_serve(value: float, dtype: str, text: str) -> None:
    rows = torch.tensor([[0.0, -value, value]])
    with pytest.raises(ValueError, match=text):
        serve(rows, dtype, torch.float32, "users")  # pyright: ignore
    assert serve(rows, "float32", torch.float32, "users").kind == "float32"
