"""Triton's kernels for tests: on a GPU as they are, else on the CPU, in Triton's interpreter."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch

from embcomp.ops.together import available, launch

KERNELS = "embcomp.ops.together.kernels"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: it comes with torch's CUDA build, and with requirements/cpu.txt",
)


@contextmanager
def one_launch(serves: bool = True) -> Iterator[ModuleType]:
    """Encode by the kernels, or never by them; blocks are so small that few ids make several programs."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")  # what the first import of the kernels settles
        made = importlib.import_module(KERNELS)
        if DEVICE == "cpu" and type(made.digits_kernel).__name__ != "InterpretedFunction":  # another test imported them
            for name in [name for name in sys.modules if name.startswith(KERNELS)]:
                del sys.modules[name]
            made = importlib.import_module(KERNELS)
        patch.setattr(available, "kernels", lambda: made)
        patch.setattr(available, "serves", lambda ids: serves)
        patch.setattr(launch, "BLOCK", 16)
        yield made
