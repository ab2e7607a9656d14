"""What `CompressedEmbeddingBag` adds to the contract: its settings and calls against torch's own, wrong calls."""

import inspect

import pytest
import torch
from torch import nn

import embcomp
from embcomp.nn import CompressedEmbedding, CompressedEmbeddingBag

IDS = torch.arange(6)


def bag(**settings) -> CompressedEmbeddingBag:
    return CompressedEmbeddingBag(60, 8, embcomp.DoubleHash(rows=11), **settings)


def test_defaults_are_those_of_torch() -> None:
    for ours, theirs in ((CompressedEmbedding, nn.Embedding), (CompressedEmbeddingBag, nn.EmbeddingBag)):
        mine, torchs = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
        shared = set(mine) & set(torchs) - {"num_embeddings", "embedding_dim"}
        assert shared >= {"padding_idx", "sparse", "device", "dtype"}
        assert {name: mine[name].default for name in shared} == {name: torchs[name].default for name in shared}
        assert list(inspect.signature(ours.forward).parameters) == list(inspect.signature(theirs.forward).parameters)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (torch.tensor([1, 2]), r"rise from 0 to at most 6, the number of ids; got \[1, 2\]"),
        (torch.tensor([0, 7]), r"got \[0, 7\]"),
        (torch.tensor([0, 4, 2]), r"got \[0, 4, 2\]"),
        (torch.tensor([0, -2]), r"got \[0, -2\]"),
        (torch.tensor([0.0, 2.0]), r"offsets must be int64 or int32 \[B\], got torch.float32 \[2\]"),
        (torch.tensor([[0, 2]]), r"got torch.int64 \[1, 2\]"),
        (None, "offsets are needed"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(mode: str, offsets: torch.Tensor | None, message: str) -> None:
    """torch reads beside the ids for some of them."""
    for module in (bag(mode=mode), bag(mode=mode, padding_idx=3)):
        with pytest.raises(ValueError, match=message):
            module(IDS, offsets)


def test_other_wrong_calls_are_refused() -> None:
    offsets = torch.tensor([0, 3])
    for call, message in [
        (lambda: bag(mode="median"), "mode must be 'sum', 'mean' or 'max', got 'median'"),
        (
            lambda: bag()(IDS, offsets, torch.ones(6)),
            "per_sample_weights needs mode='sum', this module has mode='mean'",
        ),
        (lambda: bag(mode="sum")(IDS, offsets, torch.ones(5)), r"shape \[5\], but input has shape \[6\]"),
        (lambda: bag(mode="sum")(IDS.view(2, 3), None, torch.ones(6)), r"shape \[6\], but input has shape \[2, 3\]"),
        (lambda: bag()(IDS.view(2, 3), offsets), "offsets must be None when input is two-dimensional"),
        (lambda: bag()(IDS.view(1, 2, 3)), r"one or two dimensions, got shape \[1, 2, 3\]"),
        (lambda: bag()(torch.tensor(3)), r"one or two dimensions, got shape \[\]"),
        (lambda: bag(include_last_offset=True)(IDS, IDS[:0]), "offsets are empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_ids_after_the_last_offset_are_in_no_bag(mode: str) -> None:
    """torch divides by them, takes their maximum into the last bag, and faults where there are many."""
    offsets, ids = torch.tensor([0, 2, 2, 4]), torch.arange(60)
    for method in (embcomp.Full(), embcomp.DoubleHash(rows=11)):
        module = CompressedEmbeddingBag(60, 8, method, mode=mode, include_last_offset=True)
        each = module.materialize(ids)
        last = {"sum": each[2] + each[3], "mean": (each[2] + each[3]) / 2, "max": torch.maximum(each[2], each[3])}[mode]
        for call in (module, torch.compile(module, backend="eager", fullgraph=True)):
            out = call(ids, offsets)
            assert out.shape == (3, 8)
            torch.testing.assert_close(out[2], last)
            assert torch.equal(out[1], torch.zeros(8))


@pytest.mark.parametrize(
    "method", [embcomp.DoubleHash(rows=11), embcomp.QuotientRemainder(), embcomp.HashEmbedding(rows=5)]
)
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_weights_of_any_floating_type(method: embcomp.Method, padding_idx: int | None) -> None:
    module = CompressedEmbeddingBag(60, 8, method, mode="sum", padding_idx=padding_idx, dtype=torch.float64)
    offsets, weights = torch.tensor([0, 3]), torch.tensor([1.0, 2, 0.5, 4, 0, 1])
    expected = module(IDS, offsets, weights.double())
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        torch.testing.assert_close(module(IDS, offsets, weights.to(dtype)), expected)


def test_no_bags_and_empty_bags() -> None:
    none = torch.tensor([], dtype=torch.int64)
    for mode in ("sum", "mean", "max"):
        for module in (bag(mode=mode), bag(mode=mode, padding_idx=3)):
            assert module(none, none).shape == (0, 8)
            assert torch.equal(module(none, torch.tensor([0, 0])), torch.zeros(2, 8))
        only_padding = bag(mode=mode, padding_idx=3)(torch.tensor([3, 3, 3]), torch.tensor([0, 2]))
        assert torch.equal(only_padding, torch.zeros(2, 8))
