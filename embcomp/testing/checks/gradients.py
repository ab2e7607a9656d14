"""The checks that gradients are right, in every form, and train."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embcomp.testing.checks.check import check
from embcomp.testing.drop_ins import D, N, assert_all_close, bag, embedding, gradients, is_coded
from embcomp.testing.example import Example


@check
def gradients_are_those_of_finite_differences(example: Example) -> None:
    """Compare with finite differences if nothing is rounded; tests/ops/test_grid.py tests rounded rows."""
    ids, offsets = torch.tensor([1, 4, 1, 0, 5]), torch.tensor([0, 2, 2, 4])
    if is_coded(bag(example)):
        return
    for mode in ("sum", "mean", "max"):
        module = bag(example, n=6, mode=mode, dtype=torch.float64)
        names = [name for name, _ in module.named_parameters()]
        weights = torch.rand(5, dtype=torch.float64, requires_grad=True) if mode == "sum" else None

        def run(*values: Tensor, module: nn.Module = module, names: list[str] = names, weighted: bool = mode == "sum"):
            *parameters, last = (*values,) if weighted else (*values, None)
            return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (ids, offsets, last))

        inputs = [*(p.detach().requires_grad_() for p in module.parameters()), *([] if weights is None else [weights])]
        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@check
def gradients_of_single_samples(example: Example) -> None:
    """Compare vmap over grad, as differential privacy uses it, with one sample after the other."""
    module = embedding(example, padding_idx=2)
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def loss(values: dict[str, Tensor], ids: Tensor) -> Tensor:
        return torch.func.functional_call(module, values, ids).square().sum()

    ids = torch.tensor([[3, 2], [39, 3], [0, 0]])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, ids.t().contiguous().t())
        with pytest.raises(IndexError, match=f"id {N} "):
            torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, ids + 1)
    for sample in range(3):
        expected = gradients(module, module(ids[sample]).square().sum())
        # Sums over a network's units are taken in an order that depends on the processor.
        assert_all_close([each[name][sample] for name in parameters], expected, rtol=2e-5, atol=3e-5)


@check
def sparse_gradients_hold_the_same_numbers(example: Example) -> None:
    """Check that gradients are sparse with sparse=True, and equal to the dense ones."""
    ids = torch.tensor([[1, 4, 1], [0, 5, 39]])
    dense, sparse = embedding(example), embedding(example, sparse=True)
    factors = torch.randn(2, 3, D)
    assert_all_close(gradients(sparse, (sparse(ids) * factors).sum()), gradients(dense, (dense(ids) * factors).sum()))
    sparse(ids).sum().backward()
    rows = [p for name, p in sparse.named_parameters() if name.endswith("weight")]  # steps of a grid are few, and dense
    assert all(p.grad is not None and p.grad.is_sparse for p in rows)
    torch.optim.SparseAdam(rows).step()
    for mode in ("sum", "mean"):
        dense_bag, sparse_bag = bag(example, mode=mode), bag(example, mode=mode, sparse=True)
        assert_all_close(
            gradients(sparse_bag, (sparse_bag(ids) * factors[:, 0]).sum()),
            gradients(dense_bag, (dense_bag(ids) * factors[:, 0]).sum()),
        )


@check
def training_moves_the_vectors_that_were_read(example: Example) -> None:
    """Check that a few steps bring vectors near their targets."""
    module, ids = embedding(example), torch.tensor([1, 5, 5, 9])
    target = torch.randn(4, D)
    optimizer = torch.optim.Adagrad(module.parameters(), lr=0.3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.mse_loss(module(ids)[[0, 1, 3]], target[[0, 1, 3]])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
