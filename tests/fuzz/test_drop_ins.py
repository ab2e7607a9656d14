"""Calls of the plain drop-ins, right and wrong, against bags pooled by hand."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import embcomp
from embcomp.nn import CompressedEmbedding, CompressedEmbeddingBag
from tests.fuzz.fuzzing import Tally, fuzz
from tests.fuzz.values import damaged, spoil_numbers

N, D = 9, 4
METHODS = [
    embcomp.Full(),
    embcomp.HashingTrick(rows=5),
    embcomp.DoubleHash(rows=5),
    embcomp.MultiHash(rows=5, combine="concat"),
    embcomp.HashEmbedding(rows=5),
    embcomp.QuotientRemainder(),
    embcomp.UnifiedEmbedding(rows=7, chunk_dim=2),
    embcomp.HashingTrick(rows=20, balanced=True),
]


@dataclass
class Case:
    """A module and the arguments of a call, by name."""

    module: CompressedEmbedding | CompressedEmbeddingBag
    args: dict[str, Any]
    spoilt: str


@st.composite
def modules(draw: st.DrawFn) -> CompressedEmbedding | CompressedEmbeddingBag:
    method = draw(st.sampled_from(METHODS))
    dtype = draw(st.sampled_from([None, None, None, torch.float64, torch.bfloat16]))
    common = {"padding_idx": draw(st.sampled_from([None, 0, 3, -1])), "dtype": dtype}
    torch.manual_seed(0)
    if draw(st.integers(0, 2)) == 0:
        return CompressedEmbedding(N, D, method, **common)
    mode, last = draw(st.sampled_from(["sum", "mean", "max"])), draw(st.booleans())
    return CompressedEmbeddingBag(N, D, method, mode, last, **common)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    module = draw(modules())
    ids = st.integers(0, N - 1)
    kind = draw(st.sampled_from([torch.int64] * 4 + [torch.int32, torch.uint8]))
    args: dict[str, Any] = {}
    if isinstance(module, CompressedEmbedding):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        args["input"] = torch.tensor(
            draw(st.lists(ids, min_size=(n := torch.Size(shape).numel()), max_size=n)), dtype=kind
        ).reshape(shape)
    elif draw(st.booleans()):
        rows, length = draw(st.integers(0, 3)), draw(st.integers(0, 4))
        args["input"] = torch.tensor(
            draw(st.lists(ids, min_size=rows * length, max_size=rows * length)), dtype=kind
        ).reshape(rows, length)
    else:
        args["input"] = torch.tensor(draw(st.lists(ids, max_size=8)), dtype=kind)
        number = args["input"].numel()
        rest = sorted(draw(st.lists(st.integers(0, number), max_size=4)))
        offsets = [0, *rest] if module.include_last_offset or number or draw(st.booleans()) else []
        args["offsets"] = torch.tensor(offsets, dtype=draw(st.sampled_from([torch.int64, torch.int32])))
    if isinstance(module, CompressedEmbeddingBag) and module.mode == "sum" and draw(st.booleans()):
        weights = torch.linspace(-1, 2, args["input"].numel()).reshape(args["input"].shape)
        args["per_sample_weights"] = weights.to(draw(st.sampled_from([torch.float32, torch.float64, torch.float16])))
    spoilt = draw(st.sampled_from(["", "", "tensor", "numbers", "dtype", "more"]))
    name = draw(st.sampled_from(sorted(args)))
    if spoilt == "tensor":
        args[name] = draw(damaged(args[name]))
    elif spoilt == "numbers" and not args[name].is_floating_point():
        args[name] = draw(spoil_numbers(args[name]))
    elif spoilt == "dtype":
        kinds = [torch.float32, torch.bool, torch.complex64, torch.int16, torch.uint16, torch.int64]
        args[name] = args[name].to(draw(st.sampled_from(kinds)))
    elif spoilt == "more":
        extra = {"offsets": torch.tensor([0]), "per_sample_weights": torch.ones(args["input"].shape)}
        args = {**extra, **args} if isinstance(module, CompressedEmbeddingBag) else args
    return Case(module, args, f"{spoilt} {name}")


def bags_of(module: CompressedEmbeddingBag, args: dict[str, Any]) -> list[tuple[list[int], list[float]]]:
    """The ids and weights of each bag."""
    ids = args["input"]
    weights = args.get("per_sample_weights")
    weights = torch.ones(ids.shape, dtype=torch.float64) if weights is None else weights.double()
    if ids.dim() == 2:
        return list(zip(ids.tolist(), weights.tolist(), strict=True))
    bounds = args["offsets"].tolist() + ([] if module.include_last_offset else [ids.numel()])
    return [(ids[a:b].tolist(), weights[a:b].tolist()) for a, b in itertools.pairwise(bounds)]


def pooled(module: CompressedEmbeddingBag, vectors: Tensor, ids: list[int], weights: list[float]) -> Tensor:
    kept = [(vectors[i], w) for i, w in zip(ids, weights, strict=True) if i != module.padding_idx]
    if not kept:
        return torch.zeros(D, dtype=torch.float64)
    stacked = torch.stack([vector * w for vector, w in kept])
    if module.mode == "max":
        return stacked.max(0).values
    return stacked.sum(0) if module.mode == "sum" else stacked.mean(0)


def table_of(module: CompressedEmbedding | CompressedEmbeddingBag) -> Tensor:
    """Every id's vector, from the stores by the encoder's rows: [N, D] in float64."""
    encoded = module.encoder(torch.arange(N))
    chunks = []
    for i, (rows, weights) in enumerate(encoded):
        each = module.stores[module.reads[i]].weight.detach().double()[rows]
        chunks.append((each if weights is None else each * weights.unsqueeze(-1)).sum(1))
    return module.combiner(chunks)


def check(case: Case, tally: Tally) -> None:
    module, args = case.module, case.args
    found = tally.attempt(lambda: module(**args))
    if found is None:
        return
    vectors = table_of(module)
    if isinstance(module, CompressedEmbedding):
        expected = vectors[args["input"].long()]
        if module.padding_idx is not None:
            expected = expected.masked_fill((args["input"] == module.padding_idx).unsqueeze(-1), 0.0)
    else:
        rows = [pooled(module, vectors, *bag) for bag in bags_of(module, args)]
        expected = torch.stack(rows) if rows else torch.zeros(0, D, dtype=torch.float64)
    assert found.dtype == module.stores[0].weight.dtype
    exact = {"rtol": 3e-2, "atol": 3e-2} if found.dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found.detach().double(), expected, **exact)
    tally.is_right()


def test_calls(record_property) -> None:
    fuzz(record_property, "nn drop-ins", cases(), check, tries=1200)
