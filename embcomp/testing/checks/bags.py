"""The checks that bags are the pooled vectors of their ids."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from embcomp.testing.checks.check import check
from embcomp.testing.drop_ins import D, N, assert_all_close, bag, gradients, singles
from embcomp.testing.example import Example

BAGS = st.lists(st.lists(st.integers(0, N - 1), max_size=4), max_size=5)


def pooled(
    vectors: Tensor, bags: list[list[int]], mode: str, weights: list[list[float]], padding: int | None
) -> Tensor:
    """Pool bags by the definition, id by id."""
    out = torch.zeros(len(bags), vectors.shape[1], dtype=vectors.dtype)
    for b, ids in enumerate(bags):
        counted = [weights[b][i] * vectors[id] for i, id in enumerate(ids) if id != padding]
        if counted:
            total = torch.stack(counted)
            out[b] = {"sum": total.sum(0), "mean": total.mean(0), "max": total.amax(0)}[mode]
    return out


KINDS = [(mode, False, padding) for mode in ("sum", "mean", "max") for padding in (None, 5)]
KINDS += [("sum", True, padding) for padding in (None, 5)]


@check
def a_bag_is_the_pooled_single_vectors(example: Example) -> None:
    """Compare with the definition and, gradients included, with torch's own function on the materialised table."""
    bags = [[5, 3, 5], [], [5], [7, 7, 0, 39, 11]]
    for mode, weighted, padding in KINDS:
        _bags_are_pooled(example, bags, True, mode, weighted, padding)

    @settings(max_examples=8)
    @given(BAGS, st.booleans(), st.sampled_from(KINDS))
    def inner(bags: list[list[int]], last: bool, kind: tuple[str, bool, int | None]) -> None:
        _bags_are_pooled(example, bags, last, *kind)

    inner()


def _bags_are_pooled(
    example: Example, bags: list[list[int]], last: bool, mode: str, weighted: bool, padding: int | None
) -> None:
    module = bag(example, mode=mode, include_last_offset=last, padding_idx=padding, dtype=torch.float64)
    ids = torch.tensor([id for ids in bags for id in ids], dtype=torch.int64)
    lengths = torch.tensor([len(ids) for ids in bags], dtype=torch.int64)
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    weights = torch.rand(ids.numel(), dtype=torch.float64, requires_grad=True) if weighted else None
    split = [
        w.tolist() for w in (torch.ones(len(ids)) if weights is None else weights.detach()).split(lengths.tolist())
    ]

    out = module(ids, bounds if last else bounds[:-1], weights)
    assert out.shape == (len(bags), D)
    torch.testing.assert_close(out, pooled(singles(module), bags, mode, split, module.padding_idx))

    reference = F.embedding_bag(
        ids, module.materialize(), bounds, mode=mode, per_sample_weights=weights, include_last_offset=True,
        padding_idx=module.padding_idx,
    )  # fmt: skip
    torch.testing.assert_close(out, reference)
    factors = torch.randn(out.shape, dtype=torch.float64)
    assert_all_close(gradients(module, (out * factors).sum()), gradients(module, (reference * factors).sum()))
    if weights is not None and bags:
        out, reference = module(ids, bounds if last else bounds[:-1], weights), reference.clone()
        (got,) = torch.autograd.grad((out * factors).sum(), weights)
        rows = module.materialize(ids).detach()
        bags_of_ids = torch.repeat_interleave(torch.arange(len(bags)), lengths)
        torch.testing.assert_close(got, (rows * factors[bags_of_ids]).sum(1))


@check
def a_row_of_ids_is_a_bag(example: Example) -> None:
    """Check that ids [B, n] are B bags, as with offsets, in every mode, weighted or not."""
    ids, weights = torch.randint(N, (4, 3)), torch.rand(4, 3)
    offsets = torch.arange(0, 12, 3)
    for mode in ("sum", "mean", "max"):
        module = bag(example, mode=mode, padding_idx=2)
        assert torch.equal(module(ids), module(ids.flatten(), offsets))
        assert torch.equal(module(ids.int()), module(ids.flatten(), offsets.int()))
        assert torch.equal(module(ids[:, :0]), torch.zeros(4, D))
        assert module(ids[:0]).shape == (0, D)
    module = bag(example, mode="sum")
    assert torch.equal(module(ids, per_sample_weights=weights), module(ids.flatten(), offsets, weights.flatten()))
