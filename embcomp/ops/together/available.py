"""The choice between the form in torch and that in Triton."""

import functools
import importlib
import os
import shutil
from types import ModuleType

import torch
from torch import Tensor

from embcomp.ops.checks import is_recorded


@functools.cache
def kernels() -> ModuleType | None:
    """Return the kernels; None with `EMBCOMP_TRITON=0`, or where Triton or the C compiler that it needs is missing."""
    if os.environ.get("EMBCOMP_TRITON") == "0":
        return None
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return None
    try:
        return importlib.import_module("embcomp.ops.together.kernels")
    except ImportError:
        return None


def serves(ids: Tensor) -> bool:
    """Return whether the kernels encode these ids: on a GPU, where operations are done, not recorded."""
    return not torch.compiler.is_compiling() and ids.is_cuda and not is_recorded(ids) and kernels() is not None
