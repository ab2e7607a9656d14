"""MemoryLinear: the definition with all corners, its gradients, the variance of a fresh layer, refusals."""

import itertools

import pytest
import torch

from embcomp.nn import MemoryLinear


def by_hand(layer: MemoryLinear, x: torch.Tensor) -> torch.Tensor:
    """The softmax over all corners, part by part."""
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=layer.bits))).flip(1).to(x)  # the first bit low
    out = torch.zeros(len(x), layer.out_features).to(x)
    for n in range(len(x)):
        for k in range(layer.parts):
            z = x[n, k * layer.bits : (k + 1) * layer.bits]
            shares = torch.softmax(corners @ z, 0)
            chosen = int((corners @ z).argmax())
            out[n] += shares[chosen] * layer.weight[(k << layer.bits) + chosen]
    return out if layer.bias is None else out + layer.bias


@pytest.mark.parametrize(("bits", "bias"), [(1, True), (3, False), (4, True)])
def test_outputs_and_gradients_are_those_of_the_definition(bits: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = MemoryLinear(12, 5, bits=bits, bias=bias, dtype=torch.float64)
    x = torch.randn(6, 12, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(layer(x), by_hand(layer, x))
    torch.testing.assert_close(layer(x.view(2, 3, 12)), layer(x).view(2, 3, 5))
    factors = torch.randn(6, 5, dtype=torch.float64)
    mine = torch.autograd.grad((layer(x) * factors).sum(), [x, *layer.parameters()])
    theirs = torch.autograd.grad((by_hand(layer, x) * factors).sum(), [x, *layer.parameters()])
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("bits", [2, 8])
def test_a_fresh_layer_scales_as_torchs(bits: int) -> None:
    torch.manual_seed(1)
    x = torch.randn(4000, 64)
    layers = MemoryLinear(64, 40, bits=bits, bias=False), torch.nn.Linear(64, 40, bias=False)
    mine, theirs = (float(layer(x).detach().std()) for layer in layers)
    assert mine == pytest.approx(theirs, rel=0.1)


def test_compiled_and_exported_as_eager() -> None:
    layer, x = MemoryLinear(8, 3, bits=4), torch.randn(5, 8)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_impossible_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="bits=5 does not divide in_features=64"):
        MemoryLinear(64, 3, bits=5)
    for settings in ({"bits": 17}, {"bits": 0}):
        with pytest.raises(ValueError, match="bits"):
            MemoryLinear(64, 3, **settings)
    with pytest.raises(ValueError, match="out_features"):
        MemoryLinear(64, 0)
    with pytest.raises(ValueError, match=r"dtype must be one of torch\.float32, .*, got torch\.float8_e4m3fn"):
        MemoryLinear(64, 3, dtype=torch.float8_e4m3fn)


def test_an_input_of_another_width_is_named():
    with pytest.raises(ValueError, match=r"MemoryLinear: input must be \[\*, 64\], got \[8, 32\]"):
        MemoryLinear(64, 32, bits=4)(torch.randn(8, 32))
