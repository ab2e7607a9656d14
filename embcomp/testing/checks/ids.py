"""The checks of ids: accepted ones, their vectors, and refused ones."""

import pytest
import torch

from embcomp.methods import Table
from embcomp.testing.checks.check import check
from embcomp.testing.drop_ins import D, N, assert_all_close, bag, embedding, gradients, singles
from embcomp.testing.example import Example


@check
def vectors_do_not_depend_on_the_shape_or_type_of_the_ids(example: Example) -> None:
    """Check that ids of any shape, stride and integer dtype give the vectors of the single ids."""
    module = embedding(example)
    table = singles(module)
    assert table.shape == (N, D)
    assert torch.equal(module.materialize(), table)
    assert torch.equal(module.weight, table)
    for shape in [(), (0,), (5,), (2, 3), (2, 0, 3), (2, 3, 2)]:
        ids = torch.randint(N, shape)
        assert torch.equal(module(ids), table[ids])
        assert torch.equal(module.materialize(ids), table[ids])
    ids = torch.arange(N).view(5, 8)
    assert torch.equal(module(ids.t()), table[ids.t()])
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        assert torch.equal(module(ids.to(dtype)), table[ids])


@check
def dtypes_and_devices_are_those_asked_for(example: Example) -> None:
    """Check that parameters and outputs have the dtype and the device of the constructor."""
    ids, offsets = torch.tensor([3, 1, 3, 0]), torch.tensor([0, 1, 1])
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        module = embedding(example, dtype=dtype, device="cpu")
        assert module(ids).dtype == dtype
        assert {parameter.dtype for parameter in module.parameters()} == {dtype}
        for mode in ("sum", "mean", "max"):
            pooled = bag(example, dtype=dtype, mode=mode)(ids, offsets)
            assert (pooled.dtype, pooled.shape) == (dtype, (3, D))


@check
def the_padding_id_is_zero_and_gets_no_gradient(example: Example) -> None:
    """Check that the padding id gives zeros, and that all other gradients are as without it."""
    ids = torch.tensor([[3, 1, 39], [39, 0, 3]])
    for padding, row in ((3, 3), (-1, N - 1), (-N, 0)):
        plain, module = embedding(example), embedding(example, padding_idx=padding)
        assert module.padding_idx == torch.nn.Embedding(N, D, padding_idx=padding).padding_idx == row
        expected = singles(plain).index_fill(0, torch.tensor(row), 0.0)
        assert torch.equal(module.materialize(), expected)
        assert torch.equal(module(ids), expected[ids])
        factors = torch.randn(2, 3, D)
        kept = (ids != row).unsqueeze(-1)
        assert_all_close(
            gradients(module, (module(ids) * factors).sum()), gradients(plain, (plain(ids) * factors * kept).sum())
        )
    for wrong in (N, -N - 1):
        with pytest.raises(ValueError, match=f"padding_idx {wrong}.*{N}"):
            embedding(example, padding_idx=wrong)


@check
def wrong_ids_are_refused_by_name_and_value(example: Example) -> None:
    """Check that ids out of range or of another dtype raise, naming the table and the value, and change nothing."""
    for module, rest in ((embedding(example), ()), (bag(example), (torch.tensor([0, 1]),))):
        before = singles(module)
        for wrong in (-1, -(2**63), N, 2**62, 2**63 - 1):
            with pytest.raises(IndexError, match=rf"table 'embedding': id {wrong} is out of range.*{N}\)"):
                module(torch.tensor([1, wrong, 2]), *rest)
        for ids in (torch.tensor([0.0, 1.0]), torch.tensor([True, False]), torch.tensor([1j, 2])):
            with pytest.raises(ValueError, match=f"table 'embedding': ids must be integers, got {ids.dtype}"):
                module(ids, *rest)
        with pytest.raises(IndexError, match="table 'embedding': id -3"):
            module.materialize(torch.tensor([-3]))
        assert torch.equal(singles(module), before)


@check
def an_open_id_space_takes_any_id_or_is_refused(example: Example) -> None:
    """Check that with num_embeddings=None any non-negative int64 is an id, or the method raises."""
    if not example.open_ids:
        counted = example.make([Table("embedding", N, D)])
        with pytest.raises(ValueError, match=r"table 'embedding'.*num_embeddings, got None"):
            counted.plan([Table("embedding", None, D)])
        return
    module = embedding(example, n=None, padding_idx=7)
    ids = torch.tensor([0, 7, 2**31, 2**32 + 5, 2**62, 2**63 - 1])
    vectors = module(ids)
    assert torch.equal(vectors, torch.stack([module(id) for id in ids]))
    assert not vectors[1].any()
    assert vectors[[0, 2, 3, 4, 5]].abs().sum(1).all()
    torch.testing.assert_close(
        bag(example, n=None, mode="sum", padding_idx=7)(ids.view(2, 3)), vectors.view(2, 3, D).sum(1)
    )
    with pytest.raises(IndexError, match=r"table 'embedding': id -1 .*non-negative"):
        module(torch.tensor([5, -1]))
    with pytest.raises(ValueError, match="pass the ids"):
        module.materialize()
    with pytest.raises(ValueError, match="padding_idx -1"):
        embedding(example, n=None, padding_idx=-1)
    assert not hasattr(module, "weight")
