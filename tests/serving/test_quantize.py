"""The grid of a row: nearest codes, half a scale away at most."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from embcomp.serving.quantize import quantize

ROWS = npst.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    elements=st.floats(-3e4, 3e4, width=32),
)


@given(ROWS, st.sampled_from([4, 8]), st.booleans())
@example(np.array([[1000.0, 1000.001]], dtype=np.float32), 4, True)
@example(np.array([[1e-9, -1e-9], [0.1, 0.1]], dtype=np.float32), 8, True)
def test_values_come_back_within_half_a_scale(rows: np.ndarray, bits: int, half: bool) -> None:
    codes, scale, bias = quantize(torch.from_numpy(rows), bits, half)
    assert codes.dtype == torch.uint8
    assert int(codes.max()) < 2**bits
    if half:
        assert torch.equal(scale, scale.half().float())
        assert torch.equal(bias, bias.half().float())
    exact = bias.double() + scale.double() * codes.double()
    rounding = 1e-6 * np.abs(rows).max(1, keepdims=True)  # of the division in float32
    assert bool(
        ((exact - torch.from_numpy(rows).double()).abs() <= scale.double() / 2 + torch.from_numpy(rounding)).all()
    )
    spread = torch.from_numpy(rows.max(1) - rows.min(1))
    if not half:
        torch.testing.assert_close(scale.squeeze(1), spread / (2**bits - 1))


def test_blocks_of_a_large_table_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(50, 4)
    whole = quantize(rows, 8, half=False)
    monkeypatch.setattr("embcomp.serving.quantize._BLOCK", 12)
    for part, expected in zip(quantize(rows, 8, half=False), whole, strict=True):
        assert torch.equal(part, expected)


@pytest.mark.parametrize(("value", "bits", "half"), [(1e6, 4, True), (3e38, 8, False)])
def test_what_does_not_fit_is_refused(value: float, bits: int, half: bool) -> None:
    with pytest.raises(OverflowError):
        quantize(torch.tensor([[-value, value]]), bits, half)
