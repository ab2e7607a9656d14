"""Batches of KeyedJaggedTensors, right and wrong, into compressed collections, plain and fused, against loops."""

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor, PoolingType

import embcomp
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection, fuse_
from tests.fuzz.fuzzing import Tally, fuzz
from tests.fuzz.values import damaged, spoil_numbers
from tests.torchrec.batches import look_ups, outputs_of

METHODS = [
    embcomp.Full(),
    embcomp.HashingTrick(rows=5),
    embcomp.DoubleHash(rows=5),
    embcomp.UnifiedEmbedding(rows=20, chunk_dim=4),
    embcomp.QuotientRemainder(),
    embcomp.HashEmbedding(rows=5),
]
IDS = {"users": 7, "films": 9}
KEYS = ["user", "friend", "film"]


@functools.cache
def collection(kind: str, number: int, fused: bool) -> tuple[Any, Any, dict[str, Tensor]]:
    """A collection, its tables' configurations and modules that look ids up in the same rows."""
    torch.manual_seed(number)
    sizes = {"users": ("user", "friend"), "films": ("film", "user")}
    if kind == "sequences":
        configs: Any = [
            EmbeddingConfig(name=name, num_embeddings=IDS[name], embedding_dim=8, feature_names=list(features))
            for name, features in sizes.items()
        ]
        made: Any = CompressedEmbeddingCollection(configs, {"*": METHODS[number]})
    else:
        pooling = {"users": PoolingType.SUM, "films": PoolingType.SUM if kind == "weighted" else PoolingType.MEAN}
        configs = [
            EmbeddingBagConfig(
                name=name,
                num_embeddings=IDS[name],
                embedding_dim=8,
                feature_names=list(features),
                pooling=pooling[name],
            )
            for name, features in sizes.items()
        ]
        made = CompressedEmbeddingBagCollection(configs, {"*": METHODS[number]}, is_weighted=kind == "weighted")
    if fused:
        fuse_(made, optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 0.01})
    return made, configs, look_ups(made, configs, METHODS[number])


@dataclass
class Case:
    """A collection by its settings, and the arguments of a KeyedJaggedTensor."""

    kind: str
    method: int
    fused: bool
    args: dict[str, Any]
    spoilt: str


@st.composite
def cases(draw: st.DrawFn) -> Case:
    keys = draw(st.permutations([*KEYS, "other"]))[: draw(st.sampled_from([4, 4, 4, 3]))]
    stride = draw(st.integers(0, 3))
    lengths = draw(st.lists(st.integers(0, 3), min_size=(n := len(keys) * stride), max_size=n))
    total = sum(lengths)
    ids = torch.tensor(draw(st.lists(st.integers(0, 6), min_size=total, max_size=total)), dtype=torch.int64)
    kind = draw(st.sampled_from(["bags", "bags", "weighted", "sequences"]))
    flat = torch.tensor(lengths, dtype=draw(st.sampled_from([torch.int64, torch.int32])))
    args: dict[str, Any] = {"keys": list(keys), "values": ids.to(draw(st.sampled_from([torch.int64, torch.int32])))}
    form = draw(st.sampled_from(["lengths", "lengths", "offsets", "both"]))
    if form != "offsets" or not keys:
        args["lengths"] = flat
    if form != "lengths":
        args["offsets"] = torch.cat([flat.new_zeros(1), flat.cumsum(0)]).to(flat.dtype)
    if kind == "weighted" or draw(st.booleans()):
        args["weights"] = torch.linspace(-1, 2, total).to(draw(st.sampled_from([torch.float32, torch.float64])))
    if draw(st.booleans()):
        args["stride"] = stride
    if draw(st.booleans()) and stride:
        args["length_per_key"] = [sum(lengths[i * stride : (i + 1) * stride]) for i in range(len(keys))]
    spoilt, name = draw(st.sampled_from(["", "tensor", "numbers", "numbers", "dtype", "more"])), ""
    tensors = sorted(name for name, value in args.items() if isinstance(value, Tensor))
    if spoilt in ("tensor", "numbers", "dtype"):
        name = draw(st.sampled_from(tensors))
    if spoilt == "tensor":
        args[name] = draw(damaged(args[name]))
    elif spoilt == "numbers" and not args[name].is_floating_point():
        args[name] = draw(spoil_numbers(args[name]))
    elif spoilt == "dtype":
        args[name] = args[name].to(draw(st.sampled_from([torch.float32, torch.bool, torch.int16, torch.complex64])))
    elif spoilt == "more":
        name = draw(st.sampled_from(["stride", "length_per_key", "keys", "twice"]))
        if name == "stride":
            args["stride"] = draw(st.integers(-1, 5))
        elif name == "length_per_key":
            args["length_per_key"] = draw(st.lists(st.integers(-1, 4), max_size=5))
        elif name == "keys":
            args["keys"] = args["keys"][:-1]
        else:
            args["keys"] = [*args["keys"][:-1], args["keys"][0]]
    return Case(kind, draw(st.integers(0, len(METHODS) - 1)), draw(st.booleans()), args, f"{spoilt} {name}")


def bags_of(args: dict[str, Any]) -> dict[str, list[tuple[list[int], list[float]]]]:
    """The ids and weights of each bag of each feature, from arguments that agree with each other."""
    values, keys = args["values"].tolist(), args["keys"]
    weights = args["weights"].tolist() if args.get("weights") is not None else [1.0] * len(values)
    assert len(weights) == len(values)
    offsets = None if args.get("offsets") is None else args["offsets"].tolist()
    if args.get("lengths") is not None:
        lengths = args["lengths"].tolist()
    else:
        lengths = [b - a for a, b in itertools.pairwise(offsets)]
    assert all(length >= 0 for length in lengths)
    assert sum(lengths) == len(values)
    assert len(lengths) % len(keys) == 0
    stride = len(lengths) // len(keys)
    assert args.get("stride", stride) == stride
    if offsets is not None:
        assert offsets == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    if args.get("length_per_key") is not None:
        assert args["length_per_key"] == [sum(lengths[i * stride : (i + 1) * stride]) for i in range(len(keys))]
    found: dict[str, Any] = {}
    start = 0
    for i, length in enumerate(lengths):
        bag = values[start : start + length], weights[start : start + length]
        found.setdefault((i // stride, keys[i // stride]), []).append(bag)
        start += length
    return {key: found.get((i, key), []) for i, key in enumerate(keys)}


def expected(case: Case, configs: Any, look_up: Any) -> dict[str, Tensor]:
    """The result, bag by bag, in float64; id by id for sequences."""
    with torch.no_grad():
        tables = {name: module(torch.arange(IDS[name])).double() for name, module in look_up.items()}
    bags, result = bags_of(case.args), {}
    for key, feature, number in outputs_of(configs):
        config, rows = configs[number], []
        for ids, weights in bags[feature]:
            each = tables[config.name][torch.tensor(ids, dtype=torch.int64)]
            if case.kind == "sequences":
                rows.append(each)
                continue
            if case.kind == "weighted":
                each = each * torch.tensor(weights, dtype=torch.float64).unsqueeze(-1)
            mean = config.pooling == PoolingType.MEAN
            rows.append((each.sum(0) / max(1, len(ids)) if mean else each.sum(0)).unsqueeze(0))
        result[key] = torch.cat(rows) if rows else torch.zeros(0, 8, dtype=torch.float64)
    return result


def check(case: Case, tally: Tally) -> None:
    made, configs, look_up = collection(case.kind, case.method, case.fused)
    try:
        batch = KeyedJaggedTensor(**case.args)
    except (AssertionError, AttributeError, RuntimeError):
        tally["refused by torchrec"] += 1  # before it reaches us
        return
    found = tally.attempt(lambda: made(batch))
    if found is None:
        return
    found = {key: value.values() for key, value in found.items()} if case.kind == "sequences" else found.to_dict()
    for key, value in expected(case, configs, look_up).items():
        torch.testing.assert_close(
            found[key].detach().double(), value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )
    total = sum(value.sum() for value in found.values())
    if total.requires_grad:
        total.backward()
        for parameter in made.parameters():
            parameter.grad = None
            assert parameter.isfinite().all()
    tally.is_right()


def test_batches(record_property) -> None:
    fuzz(record_property, "torchrec collections", cases(), check, tries=1200)
