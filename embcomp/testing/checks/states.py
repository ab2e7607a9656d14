"""The checks that state dicts, copies, conversions and the meta device keep the vectors."""

import copy
import io
import pickle
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import embcomp
from embcomp.methods import Full, Table
from embcomp.nn import CompressedEmbedding, CompressedEmbeddingBag
from embcomp.testing.checks.check import check
from embcomp.testing.drop_ins import D, N, bag, embedding, is_coded, randomize
from embcomp.testing.example import Example


@check
def a_state_dict_makes_the_same_module_elsewhere(example: Example) -> None:
    """Check that a state dict, saved by torch or safetensors, makes another module equal."""
    source, ids = embedding(example), torch.arange(N)
    expected, state = source(ids), source.state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    states = [state, torch.load(buffer, weights_only=True), safetensors.torch.load(safetensors.torch.save(state))]
    for saved in states:
        for target in (randomize(embedding(example), 1), randomize(bag(example, mode="sum"), 1)):
            assert list(target.state_dict()) == list(state)
            assert target.load_state_dict(saved).missing_keys == []
            assert torch.equal(target.materialize(), expected)


@check
def a_state_carries_the_name_that_its_hashes_come_from(example: Example) -> None:
    """Check that the name of a table is part of its state, as hashes depend on it."""
    holder: Any = nn.ModuleDict({"films": nn.Embedding(N, D)})
    embcomp.compress_(holder, {"films": example.make([Table("films", N, D)])})
    if isinstance(holder["films"], nn.Embedding):
        assert example.name == "Full"
        return
    source = randomize(holder["films"], 3)
    target = embedding(example)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.materialize(), source.materialize())
    with pytest.raises(IndexError, match="films"):
        target(torch.tensor([N]))


@check
def a_state_of_another_configuration_is_refused_whole(example: Example) -> None:
    """Check that a state of other sizes or of another method raises, names the difference, and changes nothing."""
    target, other = embedding(example), embedding(example, n=N + 1)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(ValueError, match=f"table 'embedding'.*num_embeddings: saved {N + 1}, here {N}"):
        target.load_state_dict(other.state_dict())
    wider = embedding(example, dim=2 * D)
    with pytest.raises(ValueError, match=f"embedding_dim: saved {2 * D}, here {D}"):
        target.load_state_dict(wider.state_dict())
    if example.name != "Full":
        full = CompressedEmbedding(N, D, Full())
        with pytest.raises(ValueError, match=f"method: saved 'Full', here '{example.method.__name__}'"):
            target.load_state_dict(full.state_dict())
    after = target.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(target.materialize(), embedding(example).materialize())


@check
def copies_and_conversions_keep_the_rows(example: Example) -> None:
    """Check that `deepcopy`, pickling, dtypes and devices keep the vectors."""
    module = embedding(example, padding_idx=4).eval()
    expected = module.materialize()
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), embedding(example, padding_idx=4)):
        assert torch.equal(twin.materialize(), expected)
        assert list(twin.state_dict()) == list(module.state_dict())
    twin = copy.deepcopy(module)
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert torch.equal(module.materialize(), expected)
    double = copy.deepcopy(module).double().materialize()
    for other, tolerance in ((double.float(), 1e-5), (copy.deepcopy(module).half().materialize().float(), 1e-2)):
        close = torch.isclose(other, expected, rtol=tolerance, atol=tolerance)
        assert close.float().mean() >= (0.9 if is_coded(module) else 1.0)  # a value may round to the next level
    assert torch.equal(copy.deepcopy(module).to("cpu", torch.float64).materialize(), double)
    assert repr(N) in repr(module)
    assert example.method.__name__ in repr(module)


@check
def meta_modules_have_shapes_and_become_real(example: Example) -> None:
    """Check that modules on the meta device give shapes, and become real by loading or by `to_empty`."""
    source, ids = embedding(example), torch.arange(N)
    expected = source(ids)
    on_meta = torch.empty(2, 3, dtype=torch.int64, device="meta")
    method = example.make([Table("embedding", N, D)])
    for made_on_meta in (True, False):
        if made_on_meta:
            with torch.device("meta"):
                module = CompressedEmbedding(N, D, method)
                pooling = CompressedEmbeddingBag(N, D, method, mode="sum")
        else:
            module = CompressedEmbedding(N, D, method, device="meta")
            pooling = CompressedEmbeddingBag(N, D, method, mode="sum", device="meta")
        assert all(parameter.is_meta for parameter in module.parameters())
        assert (module(on_meta).shape, pooling(on_meta).shape) == ((2, 3, D), (2, D))
        assigned = copy.deepcopy(module)
        assigned.load_state_dict(source.state_dict(), assign=True)
        assert torch.equal(assigned(ids), expected)
        filled = module.to_empty(device="cpu")
        for tensor in filled.parameters():  # keys and maps stay
            tensor.data.fill_(77)
        filled.reset_parameters()
        assert 0 < float(filled(ids).detach().std()) < 3
        for mine, theirs in zip(filled.parameters(), source.parameters(), strict=True):
            mine.data.copy_(theirs)
        assert torch.equal(filled(ids), expected)
        moved = copy.deepcopy(source).to("meta")
        moved.load_state_dict(source.state_dict(), assign=True)
        assert torch.equal(moved(ids), expected)
    with torch.device("meta"):  # a default device is for what is made, not for what is there already
        assert torch.equal(source(ids), expected)
