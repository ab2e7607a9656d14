import subprocess
import sys

import pytest

from tests.fuzz import sanitizers


def test_compiled_code_on_a_build_with_sanitizers() -> None:
    """Deliberate faults are reported, and no test of `ops`, its fuzzer, SDIM and torchrec gives a report."""
    try:
        sanitizers.environment()
    except RuntimeError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "tests.fuzz.sanitizers", "--short"]
    run = subprocess.run(command, cwd=sanitizers.ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-3000:]
    assert "4 of 4 deliberate faults are reported" in run.stdout
    assert " passed" in run.stdout
