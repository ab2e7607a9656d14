"""The two engines behind `fuse_`: they agree, and each refuses what it cannot do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embcomp.ops import native
from embcomp.ops.optimizers import FusedOptimizerSettings
from embcomp.torchrec.fused.engines import FbgemmEngine, NativeEngine, make_engine

OPTIMIZERS = ["sgd", "adagrad", "rowwise_adagrad"]


def tables(*shapes: tuple[int, int], **settings) -> dict[str, torch.Tensor]:
    return {f"t{i}": torch.randn(*shape, **settings) for i, shape in enumerate(shapes)}


def offsets_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@settings(max_examples=15)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 30), st.sampled_from([4, 8, 12, 64, 100])), min_size=1, max_size=3),
    batch=st.integers(1, 6),
    weighted=st.booleans(),
    data=st.data(),
)
def test_engines_agree(optimizer, shapes, batch, weighted, data):
    features = [data.draw(st.integers(1, 3)) for _ in shapes]
    bags = sum(features) * batch
    lengths = data.draw(st.lists(st.integers(0, 4), min_size=bags, max_size=bags))
    constants = FusedOptimizerSettings(optimizer, lr=0.1, eps=1e-4)
    sources = tables(*shapes)
    engines = [NativeEngine(sources, features, constants), FbgemmEngine(sources, features, constants)]
    sizes = torch.tensor([rows for (rows, _), number in zip(shapes, features, strict=True) for _ in range(number)])
    for _ in range(2):
        ids = (
            torch.rand(sum(lengths)) * sizes.repeat_interleave(batch).repeat_interleave(torch.tensor(lengths))
        ).long()
        weights = [torch.rand(sum(lengths)).requires_grad_() if weighted else None] * 2
        weights = [w if w is None else w.detach().clone().requires_grad_() for w in weights]
        outs = [engine(ids, offsets_of(lengths), w) for engine, w in zip(engines, weights, strict=True)]
        torch.testing.assert_close(outs[0], outs[1])
        signal = torch.randn_like(outs[0])
        for out in outs:
            (out * signal).sum().backward()
        if weighted and lengths and sum(lengths):
            torch.testing.assert_close(weights[0].grad, weights[1].grad)
    for mine, theirs in zip(engines[0].weights, engines[1].weights, strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach())
    for mine, theirs in zip(engines[0].states, engines[1].states, strict=True):
        assert list(mine) == list(theirs)
        for name, state in theirs.items():
            torch.testing.assert_close(mine[name].reshape(state.shape), state)


def test_row_wise_weight_decay_joins_the_gradient():
    """FBGEMM's L2 mode: the decayed gradient enters the sum of squares, and only rows that are read decay."""
    sources = {"t": torch.tensor([[3.0, -1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]])}
    engine = NativeEngine(sources, [1], FusedOptimizerSettings("rowwise_adagrad", lr=0.5, eps=0.0, weight_decay=0.1))
    engine(torch.tensor([0]), torch.tensor([0, 1]), None).sum().backward()
    gradient = torch.tensor([1.3, 0.9, 1.2, 1.0])
    square = gradient.square().mean()
    torch.testing.assert_close(engine.states[0]["sum"], torch.stack([square, torch.tensor(0.0)]))
    torch.testing.assert_close(engine.weights[0][0], sources["t"][0] - 0.5 * gradient / square.sqrt())
    assert torch.equal(engine.weights[0][1], sources["t"][1])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weight_decay_that_fbgemm_would_ignore_is_refused(optimizer):
    constants = FusedOptimizerSettings(optimizer, lr=0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match="weight_decay"):
        FbgemmEngine(tables((3, 4)), [1], constants)


@pytest.mark.parametrize("compiler", [True, False])
def test_the_engine_that_serves(compiler, monkeypatch):
    if compiler and native.library() is None:
        pytest.skip("no compiler here")
    if not compiler:
        monkeypatch.setattr(native, "library", lambda: None)
    plain, decay = FusedOptimizerSettings("rowwise_adagrad", 0.1), FusedOptimizerSettings("sgd", 0.1, weight_decay=0.1)
    assert type(make_engine(tables((3, 8)), [1], plain)) is (NativeEngine if compiler else FbgemmEngine)
    assert type(make_engine(tables((3, 8), (3, 6)), [1, 1], plain)) is NativeEngine
    assert type(make_engine(tables((3, 8)), [1], decay)) is NativeEngine
    assert type(make_engine(tables((3, 8), dtype=torch.float16), [1], plain)) is FbgemmEngine


def test_what_fbgemm_cannot_read():
    constants = FusedOptimizerSettings("sgd", 0.1)
    with pytest.raises(ValueError, match=r"multiple of 4.*'t1': 6"):
        FbgemmEngine(tables((3, 8), (3, 6)), [1, 1], constants)
    mixed = {"a": torch.randn(3, 4), "b": torch.randn(3, 4, dtype=torch.float16)}
    with pytest.raises(ValueError, match="share a data type"):
        make_engine(mixed, [1, 1], constants)


@pytest.mark.parametrize("kind", [NativeEngine, FbgemmEngine])
def test_sources_are_copied(kind):
    sources = tables((3, 4))
    engine = kind(sources, [1], FusedOptimizerSettings("sgd", 1.0))
    before = sources["t0"].clone()
    engine(torch.tensor([1]), torch.tensor([0, 1]), None).sum().backward()
    assert torch.equal(sources["t0"], before)
    torch.testing.assert_close(engine.weights[0].detach(), before - torch.tensor([[0.0], [1.0], [0.0]]))


@pytest.mark.parametrize("kind", [NativeEngine, FbgemmEngine])
@pytest.mark.parametrize("grad", [False, True])
def test_inference_mode_with_weights(kind, grad):
    engine = kind(tables((3, 4)), [1], FusedOptimizerSettings("sgd", 1.0))
    weights = torch.tensor([2.0, 3.0]).requires_grad_(grad)
    with torch.inference_mode():
        ids = torch.tensor([1, 2])
        out = engine(ids, torch.tensor([0, 2]), weights)
        torch.testing.assert_close(out[0], 2 * engine.weights[0][1] + 3 * engine.weights[0][2])
