"""What `bench compress` measures, on a small model."""

import sys

import pytest

from experiments.bench import compress


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked how much memory was held")
def test_peak_time_and_result_of_a_call():
    found = compress.in_process("HashingTrick", "warm", tables=3, ids=200_000)
    assert found.result == 3 * (20_000 * 16 * 4 + 8)  # rows, and a key each
    assert found.seconds > 0
    assert found.one_pass > 0
    assert 3 * 20_000 * 16 * 4 < found.peak < 60 * 2**20
