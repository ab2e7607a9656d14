"""Tied layers: an output that reads the weight of a compressed table, and modules with one weight."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import embcomp
from embcomp import DoubleHash, Full, HashingTrick, QuotientRemainder, compress_
from embcomp.nn import CompressedEmbedding, TiedLinear
from tests.recommender import nothing_changes


class NextItem(nn.Module):
    """Predicts the next item by a layer that holds the table's weight, as transformers do."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.item = nn.Embedding(60, 8, padding_idx=0)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 60, bias=bias)
        self.out.weight = self.item.weight
        self.out.marked = True

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.norm(self.item(ids)))


@pytest.mark.parametrize("bias", [True, False])
def test_a_tied_output_reads_and_trains_the_compressed_table(bias: bool) -> None:
    model, ids = NextItem(bias).eval(), torch.tensor([[1, 2, 0]])
    expected, old = model(ids), model.out
    report = compress_(model, {"*": QuotientRemainder(rows=60)}, init="warm")  # a row for each id: nothing changes
    torch.testing.assert_close(model(ids), expected)
    assert isinstance(model.out, TiedLinear)
    assert model.out.table is model.item
    assert model.out.bias is old.bias
    assert model.out.marked
    assert not model.out.training
    assert len(report.tables) == 1
    assert embcomp.nbytes(model) == report.bytes_after + (8 + 8 + 60 * bias) * 4
    assert torch.equal(model.out.weight, model.item.weight)
    rows = list(model.item.parameters())
    target = torch.tensor([5, 6, 7])
    loss = nn.functional.cross_entropy(model(ids)[0], target)
    grads = torch.autograd.grad(loss, rows)
    vectors = model.item.materialize()
    logits = model.norm(vectors[ids[0]]) @ vectors.T + (model.out.bias if bias else 0)
    for got, want in zip(grads, torch.autograd.grad(nn.functional.cross_entropy(logits, target), rows), strict=True):
        torch.testing.assert_close(got, want)
    again = copy.deepcopy(model)
    assert again.out.table is again.item
    other = NextItem(bias).eval()
    compress_(other, {"*": QuotientRemainder(rows=60)})
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(ids), model(ids))
    program = torch.export.export(model, (ids,))
    torch.testing.assert_close(program.module()(ids), model(ids))
    with pytest.raises(KeyError, match="table 'item' is compressed"):
        model.out.weight = nn.Parameter(torch.zeros(60, 8))


def test_two_modules_with_one_weight_become_one() -> None:
    model = nn.ModuleDict({"a": nn.Embedding(30, 8), "b": nn.Embedding(30, 8), "c": nn.Embedding(30, 8)})
    model["b"].weight = model["a"].weight
    report = compress_(model, {"b": HashingTrick(rows=5)})
    assert model["a"] is model["b"]
    assert isinstance(model["a"], CompressedEmbedding)
    assert [table.name for table in report.tables] == ["a"]
    assert type(model["c"]) is nn.Embedding


TIED: dict[str, tuple[Callable[[NextItem], object], str]] = {
    "another padding": (
        lambda m: m.register_module("twin", nn.Embedding(60, 8, _weight=m.item.weight)), "shares its weight with 'item'"
    ),
    "hooks": (lambda m: m.out.register_forward_hook(lambda *a: None), "its weight is also 'out.weight'"),
    "a buffer of its own": (
        lambda m: m.out.register_buffer("temperature", torch.ones(1)), "its weight is also 'out.weight'"
    ),
    "the layer in a list": (lambda m: setattr(m, "layers", [m.out]), "'item': 'layers' keeps it"),
    "another class": (lambda m: setattr(m.out, "__class__", type("Head", (nn.Linear,), {})), "also 'out.weight'"),
    "a twin with hooks": (
        lambda m: m.register_module("twin", nn.Embedding(60, 8, padding_idx=0)) or tie(m), "it has hooks"
    ),
}  # fmt: skip


def tie(model: NextItem) -> None:
    model.twin.weight = model.item.weight
    model.twin.register_forward_hook(lambda *a: None)


@pytest.mark.parametrize("trouble", TIED)
def test_other_ties_are_refused(trouble: str) -> None:
    disturb, message = TIED[trouble]
    model = NextItem(bias=False)
    disturb(model)
    with nothing_changes(model), pytest.raises(ValueError, match=message):
        compress_(model, {"*": HashingTrick(rows=5)})
    assert compress_(model, {"*": Full()}).tables == []


class Scaled(nn.Embedding):
    """As Spotlight draws its tables."""

    def reset_parameters(self) -> None:
        self.weight.data.normal_(0, 1.0 / self.embedding_dim)


class Zero(Scaled):
    def reset_parameters(self) -> None:
        self.weight.data.zero_()


class Drawn(nn.Embedding):
    """Draws in its constructor."""

    def __init__(self, ids: int) -> None:
        super().__init__(ids, 8)
        self.scale = 0.01
        nn.init.normal_(self.weight, std=self.scale)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale}"


def test_subclasses_that_only_draw_rows_are_swapped() -> None:
    model = nn.ModuleDict({"scaled": Scaled(2_000, 8), "zero": Zero(50, 1)})
    compress_(model, {"*": DoubleHash(rows=300)})
    assert float(model["scaled"].weight.detach().std()) == pytest.approx(1 / 8, rel=0.1)
    assert not model["zero"].weight.any()
    drawn = nn.ModuleDict({"item": Drawn(2_000)})
    report = compress_(drawn, {"*": DoubleHash(rows=300)})
    assert report.tables[0].method == "DoubleHash"
    assert float(drawn["item"].weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert drawn["item"].scale == 0.01
