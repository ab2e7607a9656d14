"""`.weight` of a compressed table reads like a tensor, and whoever writes to it is told."""

import copy
import io
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import embcomp
from embcomp.nn import CompressedEmbedding, CompressedEmbeddingBag
from embcomp.nn.weight import ComputedWeight

N, D = 12, 4
W = torch.ones(N, D)


def table() -> CompressedEmbedding:
    torch.manual_seed(0)
    return CompressedEmbedding(N, D, embcomp.DoubleHash(rows=5), padding_idx=2)


def item(emb: CompressedEmbedding) -> None:
    emb.weight[3] = 1


def slices(emb: CompressedEmbedding) -> None:
    emb.weight[2:5][1] += 1


def data(emb: CompressedEmbedding) -> None:
    emb.weight.data = W


def array(emb: CompressedEmbedding) -> None:
    emb.weight.detach().numpy()[3] = 1


def freeze(emb: CompressedEmbedding) -> None:
    emb.weight.requires_grad = False


def gradient(emb: CompressedEmbedding) -> None:
    emb.weight.grad = W


def times(emb: CompressedEmbedding) -> None:
    weight = emb.weight
    weight *= 2


def mask(emb: CompressedEmbedding) -> None:
    emb.weight[W > 0] = 0


WRITES: dict[str, Callable[[CompressedEmbedding], object]] = {
    "data.copy_": lambda emb: emb.weight.data.copy_(W),
    "data.uniform_": lambda emb: emb.weight.data.uniform_(-1, 1),
    "detach.zero_": lambda emb: emb.weight.detach().zero_(),
    "init.normal_": lambda emb: nn.init.normal_(emb.weight, std=0.1),
    "init.xavier_uniform_": lambda emb: nn.init.xavier_uniform_(emb.weight),
    "init.xavier_normal_ of data": lambda emb: nn.init.xavier_normal_(emb.weight.data),
    "init.constant_": lambda emb: nn.init.constant_(emb.weight, 0.0),
    "row": lambda emb: emb.weight[0].fill_(0),
    "padding row": lambda emb: emb.weight.data[emb.padding_idx].zero_(),
    "transposed": lambda emb: emb.weight.T.add_(1),
    "part": lambda emb: emb.weight.split(3)[1].zero_(),
    "unbind": lambda emb: emb.weight.unbind()[1].zero_(),
    "view": lambda emb: emb.weight.view(-1).mul_(2),
    "out": lambda emb: torch.add(W, W, out=emb.weight.data),
    "foreach": lambda emb: torch._foreach_mul_([emb.weight.data], 2.0),
    "renorm": lambda emb: F.embedding(torch.tensor([1]), emb.weight, max_norm=1e-3),
    "relu": lambda emb: F.relu(emb.weight, inplace=True),
    "index_copy_": lambda emb: emb.weight.data.index_copy_(0, torch.tensor([1]), W[:1]),
    "set_": lambda emb: emb.weight.data.set_(W),
    "requires_grad_": lambda emb: emb.weight.requires_grad_(False),
    **{write.__name__: write for write in (item, slices, data, array, freeze, gradient, times, mask)},
}


@pytest.mark.parametrize("write", WRITES)
def test_writing_raises_and_changes_nothing(write: str) -> None:
    emb = table()
    before = emb.materialize().detach().clone()
    error, message = (ValueError, "read-only") if write == "array" else (
        RuntimeError, "table 'embedding' is compressed: its weight .* would be lost.*compress_.*reset_parameters"
    )  # fmt: skip
    if write in ("part", "unbind"):
        message += "|output of a function that returns multiple views"  # torch forbids it while it records gradients
    for attempt in (WRITES[write], torch.no_grad()(WRITES[write]), torch.inference_mode()(WRITES[write])):
        with pytest.raises(error, match=message):
            attempt(emb)
    assert torch.equal(emb.materialize(), before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in emb.parameters())


READS: dict[str, Callable[[Tensor], Tensor]] = {
    "matmul": lambda w: torch.randn(3, D, generator=torch.Generator().manual_seed(0)) @ w.T,
    "linear": lambda w: F.linear(torch.ones(2, D), w),
    "rows": lambda w: w[torch.tensor([3, 1])],
    "embedding": lambda w: F.embedding(torch.tensor([3, 1]), w),
    "norm": lambda w: F.normalize(w, dim=1),
    "written afterwards": lambda w: (w * 2).add_(1),
    "clone": lambda w: w.clone().mul_(3),
    "into another": lambda w: torch.zeros(N, D).add_(w),
    "split": lambda w: torch.cat(w.split(5)),
    "chained": lambda w: w.T[1:3].contiguous().sum(0),
    "max": lambda w: w.max(dim=1).values,
}


@pytest.mark.parametrize("read", READS)
def test_reading_gives_ordinary_tensors_and_gradients(read: str) -> None:
    emb = table()
    got, expected = READS[read](emb.weight), READS[read](emb.materialize())
    assert type(got) is type(expected) is Tensor
    assert torch.equal(got, expected)
    grads = [torch.autograd.grad(out.square().sum(), emb.stores[0].weight)[0] for out in (got, expected)]
    assert torch.equal(*grads)


def test_what_else_reads() -> None:
    emb = table()
    full = emb.materialize().detach()
    assert isinstance(emb.weight, ComputedWeight)
    assert emb.weight.shape == (N, D)
    assert emb.weight.requires_grad
    assert emb.weight.device.type == "cpu"
    assert torch.equal(emb.weight, full)
    assert repr(full[0].tolist())[:5] in repr(emb.weight.tolist())
    assert (emb.weight.detach().numpy() == full.numpy()).all()
    assert torch.equal(copy.deepcopy(emb.weight.detach()), full)
    file = io.BytesIO()
    torch.save({"item": emb.weight.detach()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["item"]
    assert type(loaded) is Tensor
    assert torch.equal(loaded, full)
    with torch.no_grad():
        assert not emb.weight.requires_grad
    bag = CompressedEmbeddingBag(N, D, embcomp.DoubleHash(rows=5))
    with pytest.raises(RuntimeError, match="would be lost"):
        bag.weight.data.zero_()
    emb.double()
    assert emb.weight.dtype == torch.float64


class Scorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.item = table()

    def forward(self, ids: Tensor) -> Tensor:
        return self.item(ids) @ self.item.weight.T


def test_compiled_exported_and_transformed() -> None:
    model, ids = Scorer(), torch.tensor([1, 3])
    expected = model(ids)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(ids), expected)
    for strict in (True, False):
        program = torch.export.export(model, (ids,), strict=strict)
        torch.testing.assert_close(program.module()(ids), expected)
    names = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (ids,)).square().sum()

    grads = torch.func.grad(loss)({name: value.detach() for name, value in names.items()})
    for name, value in zip(names, torch.autograd.grad(expected.square().sum(), list(names.values())), strict=True):
        torch.testing.assert_close(grads[name], value)


def test_setting_and_loading_a_full_weight_names_the_remedy() -> None:
    emb = table()
    for value in (nn.Parameter(W), W, None):
        error = KeyError if isinstance(value, nn.Parameter) else AttributeError
        with pytest.raises(error, match=r"'embedding' is compressed.*set it before compress_.*warm"):
            emb.weight = value
    old, new = (nn.ModuleDict({"item": nn.Embedding(N, D), "out": nn.Linear(D, 1)}) for _ in range(2))
    embcomp.compress_(new, {"item": embcomp.DoubleHash(rows=5)})
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"table 'item' is compressed, but the state holds a full.*item.weight"):
            new.load_state_dict(old.state_dict(), strict=strict)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new.load_state_dict(new.state_dict())
