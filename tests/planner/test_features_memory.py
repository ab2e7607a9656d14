"""`rank_features` on a log of many times its memory: what it holds follows from the values, not from the rows."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

ROWS, FILES = 1 << 19, 16
RANK = """
import resource, sys, embcomp
ranking = embcomp.rank_features(sys.argv[1])
print(ranking.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    """Files of one batch of rows each, in columns of 8 bytes that do not compress well."""
    folder = tmp_path_factory.mktemp("log")
    rng = np.random.default_rng(0)
    for k in range(FILES):
        columns = {f"f{i}": rng.integers(1000, size=ROWS) * 999_999_937 for i in range(4)}
        pl.DataFrame({**columns, "label": rng.integers(2, size=ROWS)}).write_parquet(folder / f"{k:02}.parquet")
    return folder


def measured(clicks: Path) -> tuple[int, int]:
    """The rows, and the most bytes that the process held."""
    done = subprocess.run([sys.executable, "-c", RANK, str(clicks)], capture_output=True, text=True, check=True)
    rows, kilobytes = map(int, done.stdout.split())
    return rows, kilobytes * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux alone")
def test_memory_does_not_grow_with_the_rows(log, tmp_path):
    (tmp_path / "few").mkdir()
    for path in sorted(log.glob("*.parquet"))[:6]:
        (tmp_path / "few" / path.name).hardlink_to(path)
    (few, small), (many, large) = measured(tmp_path / "few"), measured(log)
    assert (few, many) == (6 * ROWS, FILES * ROWS)
    raw = (many - few) * 5 * 8
    assert large - small < raw / 4, (small, large, raw)
