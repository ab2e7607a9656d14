"""Derivatives of every order and kind, against those of the same arithmetic on the whole table."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

from embcomp.methods import Table
from embcomp.ops.bags import pool_rows
from embcomp.testing.drop_ins import N, bag, embedding, is_coded
from embcomp.testing.example import Example
from embcomp.testing.examples import EXAMPLES
from embcomp.torchrec import CompressedEmbeddingBagCollection

IDS = torch.tensor([1, 4, 1, 0, 5, 39])
OFFSETS = torch.tensor([0, 2, 2, 5])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_rows_against_finite_differences(mode: str, weighted: bool) -> None:
    """First and second derivatives, in both directions, as gradcheck measures them."""
    if weighted and mode != "sum":
        return
    rows, offsets = torch.tensor([0, 3, 3, 1, 0, 2]), torch.tensor([0, 2, 2, 6])
    table = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(6, dtype=torch.float64, requires_grad=True) if weighted else None

    def run(table: Tensor, *weights: Tensor) -> Tensor:
        return pool_rows(table, rows, offsets, *weights, mode=mode)

    inputs = [table, *([] if weights is None else [weights])]
    expected = F.embedding_bag(rows, table, offsets, mode=mode, per_sample_weights=weights, include_last_offset=True)
    torch.testing.assert_close(run(*inputs), expected)
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=mode != "max")
    assert torch.autograd.gradgradcheck(run, inputs)


def penalty(module: nn.Module, *args: object) -> list[Tensor]:
    """The gradient of a gradient penalty: what `create_graph=True` is for."""
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.grad = None
    first = torch.autograd.grad(module(*args).pow(3).sum(), parameters, create_graph=True)
    return list(torch.autograd.grad(sum(g.pow(2).sum() for g in first), parameters))


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_second_derivatives_and_transforms_of_the_drop_ins(example: Example) -> None:
    """Double backward, jvp, forward mode, vmap over hessian-vector products; of single ids and of bags."""
    for module, args in (
        (embedding(example, padding_idx=4, dtype=torch.float64), (IDS,)),
        (bag(example, mode="sum", dtype=torch.float64), (IDS, OFFSETS)),
        (bag(example, mode="mean", dtype=torch.float64), (IDS, OFFSETS)),
    ):
        names = [name for name, _ in module.named_parameters()]
        values = tuple(p.detach() for p in module.parameters())
        tangents = tuple(torch.randn_like(value) for value in values)

        def run(*values: Tensor, module=module, names=names, args=args) -> Tensor:
            return torch.func.functional_call(module, dict(zip(names, values, strict=True)), args)

        def loss(*values: Tensor, run=run) -> Tensor:
            return run(*values).pow(3).sum()

        out, moved = torch.func.jvp(run, values, tangents)
        torch.testing.assert_close(out, module(*args))
        step = 1e-6
        if is_coded(module):  # differences of what is rounded are no gradients
            step = 0.0
        ahead, behind = (run(*(v + s * step * t for v, t in zip(values, tangents, strict=True))) for s in (1, -1))
        if step:
            torch.testing.assert_close(moved, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(v, t) for v, t in zip(values, tangents, strict=True)]
            torch.testing.assert_close(forward_ad.unpack_dual(run(*duals)).tangent, moved)
        # The gradient of |grad|^2 is twice the Hessian times the gradient: once by each kind of derivative.
        gradient = torch.func.grad(loss, argnums=tuple(range(len(values))))
        grads = gradient(*values)
        _, product = torch.func.jvp(gradient, values, grads)
        for ours, theirs in zip(penalty(module, *args), product, strict=True):
            torch.testing.assert_close(ours, 2 * theirs)


def test_a_hessian() -> None:
    """Of a sum of two rows: the Hessian of |e|^2 is twice the product of what is read, worked out by hand."""
    (example,) = (e for e in EXAMPLES if e.name == "DoubleHash")
    module = embedding(example, dtype=torch.float64)
    (weight,) = module.parameters()
    (encoded,) = module.encoder(IDS[:1])

    def loss(values: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"stores.0.weight": values}, (IDS[:1],)).pow(2).sum()

    reads = torch.zeros(weight.shape[0], dtype=torch.float64).index_add_(
        0, encoded.rows[0], torch.ones(2, dtype=torch.float64)
    )
    dim = weight.shape[1]
    expected = 2 * torch.einsum("r,s,de->rdse", reads, reads, torch.eye(dim, dtype=torch.float64))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        torch.testing.assert_close(torch.func.hessian(loss)(weight.detach()), expected)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_second_derivatives_of_torchrec_collections(example: Example) -> None:
    tables = [
        EmbeddingBagConfig(name=name, num_embeddings=N, embedding_dim=8, feature_names=[f"f_{name}", f"g_{name}"])
        for name in ("a", "b")
    ]
    method = example.make([Table("a", N, 8), Table("b", N, 8)])
    for weighted in (False, True):
        collection = CompressedEmbeddingBagCollection(tables, {"*": method}, is_weighted=weighted)
        lengths = torch.tensor([2, 1, 0, 3, 1, 1, 2, 0])
        ids, factors = torch.randint(N, (10,)), torch.rand(10, requires_grad=weighted)
        keys = ["f_a", "g_a", "f_b", "g_b"]
        batch = KeyedJaggedTensor(keys, ids, factors if weighted else None, lengths)

        class Values(nn.Module):
            def __init__(self, inner: nn.Module) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, batch: KeyedJaggedTensor) -> Tensor:
                return self.inner(batch).values()

        module = Values(collection)
        values = {name: p.detach() for name, p in module.named_parameters()}
        plain = KeyedJaggedTensor(keys, ids, factors.detach() if weighted else None, lengths)

        def loss(values: dict[str, Tensor], module=module, plain=plain) -> Tensor:
            return torch.func.functional_call(module, values, (plain,)).pow(3).sum()

        gradient = torch.func.grad(loss)
        grads = gradient(values)
        _, product = torch.func.jvp(gradient, (values,), (grads,))
        for ours, theirs in zip(penalty(module, batch), product.values(), strict=True):
            torch.testing.assert_close(ours, 2 * theirs, rtol=1e-3, atol=1e-4)
        if weighted:  # a second derivative with respect to the weights of the ids
            (first,) = torch.autograd.grad(module(batch).pow(3).sum(), factors, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), factors)
            assert second.shape == factors.shape
