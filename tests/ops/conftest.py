import pytest

from embcomp.ops import native


@pytest.fixture(params=["native", "torch"])
def form(request, monkeypatch):
    """Compiled kernels, and what serves without a compiler."""
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no compiler: the torch form is tested")
    return request.param
