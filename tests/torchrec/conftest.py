"""What serves behind `fuse_`."""

import pytest

from embcomp.ops import native
from embcomp.torchrec.fused.engines import FbgemmEngine, NativeEngine


@pytest.fixture(params=["native", "torch", "fbgemm"])
def engine(request, monkeypatch):
    """All that can serve: compiled kernels, their torch form, FBGEMM."""
    kind = FbgemmEngine if request.param == "fbgemm" else NativeEngine
    monkeypatch.setattr("embcomp.torchrec.fused.tables.make_engine", kind)
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif request.param == "native" and native.library() is None:
        pytest.skip("no compiler: the torch form is tested")
    return request.param
