"""Served tables against trained ones, eagerly and for every method."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import embcomp
from embcomp.nn import CompressedEmbedding
from embcomp.serving.swap import swap
from embcomp.testing.drop_ins import D, N, bag, embedding
from embcomp.testing.example import Example
from embcomp.testing.examples import EXAMPLES
from tests.serving.grids import combined, steps

every_method = pytest.mark.parametrize("example", EXAMPLES, ids=str)


def bounds(module: CompressedEmbedding, ids: torch.Tensor, dtype: str) -> torch.Tensor:
    """How far each value of a vector may be off: half a scale for each row that is read, times its weight."""
    held = [store.weight if store.codec is None else store.codec.decode_table(store.weight) for store in module.stores]
    grids = [steps(rows, "float32" if s.codec else dtype) for s, rows in zip(module.stores, held, strict=True)]
    chunks, errors = [], []
    for i, (rows, weights) in enumerate(module.encoder(ids)):
        factor = torch.ones(rows.shape) if weights is None else weights
        factor = factor.unsqueeze(-1).double()
        chunks.append((held[module.reads[i]].double()[rows] * factor).sum(1))
        errors.append((grids[module.reads[i]][rows] * factor.abs()).sum(1))
    return combined(module.combiner, chunks, errors, module.encoder.hand(ids)) + 1e-5


@every_method
def test_served_vectors_are_off_by_half_a_scale_a_look_up(example: Example) -> None:
    @settings(max_examples=3)
    @given(st.sampled_from(["int8", "int4", "float16", "float32"]), st.lists(st.integers(0, N - 1), max_size=9))
    def inner(dtype: str, given_ids: list[int]) -> None:
        module, ids = embedding(example).eval(), torch.tensor([*range(N), *given_ids])
        with torch.no_grad():
            limit = bounds(module, ids, dtype)
            served = swap(module, dtype).model  # pyright: ignore
            assert bool(((served(ids).double() - module(ids).double()).abs() <= limit).all())
            pooling = bag(example, mode="sum")
            offsets = torch.tensor([0, 0, len(given_ids)])
            pooled = swap(pooling, dtype).model(torch.tensor(given_ids, dtype=torch.int64), offsets[:2])  # pyright: ignore
            if given_ids:
                total = bounds(module, torch.tensor(given_ids), dtype).sum(0)
                eager = module(torch.tensor(given_ids)).double().sum(0)
                assert bool(((pooled[1].double() - eager).abs() <= total + 1e-5).all())
            assert not pooled[0].any()

    inner()


@every_method
def test_padding_modes_and_the_trained_model_stay(example: Example) -> None:
    ids, offsets = torch.tensor([3, 1, 3, 0, 5]), torch.tensor([0, 2, 2])
    for mode in ("sum", "mean", "max"):
        module = bag(example, mode=mode, padding_idx=3).eval()
        before = copy.deepcopy(module.state_dict())
        served = swap(module, "float32").model
        torch.testing.assert_close(served(ids, offsets), module(ids, offsets))
        assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
        assert served.materialize().shape == (N, D)


def test_torch_modules_are_served_as_they_behave() -> None:
    model = nn.ModuleDict({
        "plain": nn.Embedding(30, 8, padding_idx=2),
        "bag": nn.EmbeddingBag(30, 8, mode="mean", padding_idx=4, include_last_offset=True),
    })  # fmt: skip
    with torch.no_grad():
        model["plain"].weight[2] = 1.0  # a padding row that was loaded, say: torch returns it
    served = swap(model, "float32").model
    ids = torch.tensor([2, 4, 29, 4])
    assert torch.equal(served["plain"](ids), model["plain"](ids))
    bounds = torch.tensor([0, 2, 2, 4])
    torch.testing.assert_close(served["bag"](ids, bounds), model["bag"](ids, bounds))
    half = swap(nn.Sequential(nn.Embedding(9, 4, dtype=torch.bfloat16)), "int8").model
    assert half(ids[:1]).dtype == torch.bfloat16


def test_shared_rows_are_stored_once() -> None:
    model = nn.ModuleDict({name: nn.Embedding(500, 16) for name in ("user", "item")})
    embcomp.compress_(model, {"*": embcomp.UnifiedEmbedding(rows=64, chunk_dim=16)})
    served = swap(model, "int8")
    assert len(served.stores) == 1
    assert served.model["user"].stores[0] is served.model["item"].stores[0]


def test_patterns_choose_a_dtype_for_each_table() -> None:
    model = nn.ModuleDict({"user": embedding(EXAMPLES[1]), "item": nn.Embedding(9, 4), "other": nn.Embedding(9, 4)})
    served = swap(model, {"us*": "int4", "item": "float16"}).model
    assert served["user"].stores[0].kind == "int4"
    assert served["item"].stores[0].kind == "float16"
    assert type(served["other"]) is nn.Embedding


class Mine(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return -super().forward(input)


@pytest.mark.parametrize(
    ("model", "dtype", "text"),
    [
        (nn.Linear(2, 2), "int8", "no embedding table"),
        (nn.Sequential(nn.Embedding(9, 4)), "int2", "dtype of '\\*' must be one of int8, int4.*'int2'"),
        (nn.Sequential(nn.Embedding(9, 4)), {"user": "int8"}, r"pattern 'user' matches no table.*\['0'\]"),
        (nn.Sequential(Mine(9, 4)), "int8", "cannot export '0': Mine is a subclass with its own forward; leave it out"),
        (nn.Sequential(nn.Embedding(9, 4, max_norm=1.0)), "int8", "max_norm=1.0"),
        (nn.Sequential(nn.Embedding(9, 4, device="meta")), "int8", "'0' is on the meta device"),
    ],
)
def test_bad_input_is_named(model: nn.Module, dtype, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        swap(model, dtype)


def test_tables_on_one_store_have_one_dtype() -> None:
    model = nn.ModuleDict({name: nn.Embedding(50, 16) for name in ("user", "item")})
    embcomp.compress_(model, {"*": embcomp.UnifiedEmbedding(rows=64, chunk_dim=16)})
    for dtype in ({"user": "int8", "item": "int4"}, {"user": "int8"}):
        with pytest.raises(ValueError, match=r"'user' .int8. and 'item' .* read the same rows"):
            swap(model, dtype)


@pytest.mark.parametrize("method", [embcomp.TensorTrain(rank=2), embcomp.DeepHash(width=4, hashes=8)])
def test_large_batches_of_costly_vectors_are_served_alike(method: embcomp.Method) -> None:
    module, ids = CompressedEmbedding(N, D, method), torch.randint(N, (900,))
    torch.testing.assert_close(swap(module, "float32").model(ids), module(ids))
