"""What all tests share: one thread, fixed seeds, the folder of real data."""

import gc
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from experiments.processes.processes import Processes

# The garbage collector took half of the time of collecting tests: it looked through all that was imported.
gc.set_threshold(100_000, 50, 100)
torch.set_num_threads(1)

# Tests change the working directory, which a relative path would not survive.
if os.environ.get("EMBCOMP_DATA"):
    os.environ["EMBCOMP_DATA"] = str(Path(os.environ["EMBCOMP_DATA"]).resolve())

# What is compiled is kept in one place, also for processes that start before a test sets a cache folder of its own.
_CACHES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("EMBCOMP_CACHE", str((_CACHES / "embcomp").resolve()))

# Derandomized: a failure seen once is seen again. No deadline: shared cores make any time limit a coin toss.
settings.register_profile(
    "embcomp",
    deadline=None,
    derandomize=True,
    print_blob=True,
    max_examples=int(os.environ.get("EMBCOMP_EXAMPLES", "100")),  # fewer where the same tests run a second time
)
settings.load_profile("embcomp")


def pytest_collection_finish() -> None:
    """Leave thousands of collected tests and the libraries out of every later pass of the garbage collector."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The fuzzers' counts by area."""
    from tests.fuzz.fuzzing import summary

    if lines := summary(terminalreporter.getreports("passed")):
        terminalreporter.write_sep("=", "fuzzers")
        terminalreporter.write_line("\n".join(lines))


@pytest.fixture(scope="session")
def pair() -> Iterator["Processes"]:
    """Two processes joined by gloo, started once for all tests; a test that ends one makes its own."""
    from experiments.processes.processes import Processes

    with Processes(2) as processes:
        yield processes


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    if torch.cuda.is_available():
        torch.manual_seed(0)
    torch.default_generator.manual_seed(0)  # without devices to seed, of which torch keeps a stack trace for each call


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that EMBCOMP_DATA names; the test is skipped where it names none."""
    root = os.environ.get("EMBCOMP_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs real data: set EMBCOMP_DATA to a folder that holds it")
    return Path(root)


@pytest.fixture
def dataset(data_root: Path, request: pytest.FixtureRequest) -> Path:
    """One data set's folder, named by `@pytest.mark.dataset("ml-1m")`; skipped where EMBCOMP_DATA lacks it."""
    marker = request.node.get_closest_marker("dataset")
    assert marker, "a test that takes `dataset` names it: @pytest.mark.dataset('ml-1m')"
    folder = data_root / marker.args[0]
    if not folder.is_dir():
        pytest.skip(f"needs real data: EMBCOMP_DATA has no folder {marker.args[0]!r}")
    return folder
