"""What every method keeps in plain torch (tests/test_matrix.py runs it for all of them): one function for each promise.

A check takes an `Example` (experiments/examples.py), so a method that a test or a user defines can be held to the
same contract: `for check in CHECKS: check(Example("Mine", lambda tables: Mine(rows=7)))`.
"""

import copy
import dataclasses
import io
import pickle
import re
import warnings
from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from hypothesis import example as always
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import embcomp
from embcomp.methods import Full, GraphHash, LowRank, QuotientRemainder, Table
from embcomp.nn import CompressedEmbedding, CompressedEmbeddingBag
from experiments.examples import Example
from tests.drop_ins import D, N, assert_all_close, bag, embedding, gradients, is_coded, randomize, singles

CHECKS: list[Callable[[Example], None]] = []


def check(function: Callable[[Example], None]) -> Callable[[Example], None]:
    CHECKS.append(function)
    return function


@check
def vectors_do_not_depend_on_the_shape_or_type_of_the_ids(example: Example) -> None:
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
    ids = torch.tensor([[3, 1, 39], [39, 0, 3]])
    for padding, place in ((3, 3), (-1, N - 1), (-N, 0)):
        plain, module = embedding(example), embedding(example, padding_idx=padding)
        assert module.padding_idx == torch.nn.Embedding(N, D, padding_idx=padding).padding_idx == place
        expected = singles(plain).index_fill(0, torch.tensor(place), 0.0)
        assert torch.equal(module.materialize(), expected)
        assert torch.equal(module(ids), expected[ids])
        factors = torch.randn(2, 3, D)
        kept = (ids != place).unsqueeze(-1)
        assert_all_close(
            gradients(module, (module(ids) * factors).sum()), gradients(plain, (plain(ids) * factors * kept).sum())
        )
    for wrong in (N, -N - 1):
        with pytest.raises(ValueError, match=f"padding_idx {wrong}.*{N}"):
            embedding(example, padding_idx=wrong)


BAGS = st.lists(st.lists(st.integers(0, N - 1), max_size=4), max_size=5)


def pooled(
    vectors: Tensor, bags: list[list[int]], mode: str, weights: list[list[float]], padding: int | None
) -> Tensor:
    """The definition, id by id."""
    out = torch.zeros(len(bags), vectors.shape[1], dtype=vectors.dtype)
    for b, ids in enumerate(bags):
        counted = [weights[b][i] * vectors[id] for i, id in enumerate(ids) if id != padding]
        if counted:
            total = torch.stack(counted)
            out[b] = {"sum": total.sum(0), "mean": total.mean(0), "max": total.amax(0)}[mode]
    return out


@check
def a_bag_is_the_pooled_single_vectors(example: Example) -> None:
    """Against the definition, and, gradients too, against torch's own function on the materialised table."""
    for mode, weighted in (("sum", False), ("mean", False), ("max", False), ("sum", True)):
        for padding in (None, 5):
            _bags_are_pooled(example, mode, weighted, padding)


def _bags_are_pooled(example: Example, mode: str, weighted: bool, padding: int | None) -> None:
    @settings(max_examples=3)
    @given(BAGS, st.booleans())
    @always([[5, 3, 5], [], [5], [7, 7, 0, 39, 11]], True)
    def inner(bags: list[list[int]], last: bool) -> None:
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

    inner()


@check
def a_row_of_ids_is_a_bag(example: Example) -> None:
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


@check
def gradients_are_those_of_finite_differences(example: Example) -> None:
    """Where nothing is rounded; tests/ops/test_grid.py has the gradients of what is."""
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
    """torch.func: vmap over grad, as differential privacy asks for, against one sample after the other."""
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
        assert_all_close([each[name][sample] for name in parameters], expected)


@check
def sparse_gradients_hold_the_same_numbers(example: Example) -> None:
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
def wrong_ids_are_refused_by_name_and_value(example: Example) -> None:
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


@check
def a_state_dict_makes_the_same_module_elsewhere(example: Example) -> None:
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
    holder = nn.ModuleDict({"films": nn.Embedding(N, D)})
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


@check
def bytes_count_every_parameter_and_buffer(example: Example) -> None:
    module = embedding(example)
    tensors = [*module.parameters(), *module.buffers()]
    assert embcomp.nbytes(module) == sum(t.numel() * t.element_size() for t in tensors)
    tables = [Table("embedding", N, D)]
    assert embcomp.nbytes(module) == example.make(tables).plan(tables).nbytes()
    assert embcomp.nbytes(module) == embcomp.nbytes(embedding(example, device="meta"))
    half = embedding(example, dtype=torch.float16)
    rows = sum(parameter.nbytes for parameter in module.parameters())
    assert embcomp.nbytes(half) == embcomp.nbytes(module) - rows // 2
    state = sum(t.nbytes for name, t in module.state_dict().items() if not name.endswith("_extra_state"))
    assert state <= embcomp.nbytes(module)


@check
def training_moves_the_vectors_that_were_read(example: Example) -> None:
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


TABLES = st.lists(st.tuples(st.integers(1, 3000), st.sampled_from([8, 16])), min_size=1, max_size=3)


@check
def budgets_are_filled_and_never_exceeded(example: Example) -> None:
    """Served bytes of the built model, not of the plan. A gap of one row for each table is allowed: rows are whole.

    `Full` has one size, `LowRank` one for each rank. `QuotientRemainder` has no size below its smallest pair and none
    above its largest; between them one more remainder row may need fewer quotient rows. `GraphHash` and those of its
    kind have the size of the clusters that they are given (tests/methods/test_graphhash.py fills budgets from edges).
    """

    @settings(max_examples=8)
    @given(TABLES, st.floats(0.01, 1.2), st.floats(1.0, 2.0))
    def inner(sizes: list[tuple[int, int]], share: float, more: float) -> None:
        tables = [Table(f"t{i}", n, dim) for i, (n, dim) in enumerate(sizes)]
        method = example.make(tables)
        fixed = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.name != "rows"}
        full = sum(n * dim * 4 for n, dim in sizes)

        def built(budget: int) -> int:
            found = type(method).for_budget(tables, budget, **fixed)
            assert found.sizes(tables) == found.plan(tables).sizes  # numbers alone, and those of the plan
            if isinstance(found, Full):
                return found.plan(tables).served_nbytes()
            model = nn.ModuleDict({t.name: nn.Embedding(t.num_embeddings or 0, t.embedding_dim) for t in tables})
            report = embcomp.compress_(model, {"*": found})
            assert report.bytes_after == embcomp.nbytes(model) == found.plan(tables).nbytes()
            assert embcomp.served_nbytes(model) == found.plan(tables).served_nbytes()
            return embcomp.served_nbytes(model)

        with pytest.raises(ValueError, match=r"budget of 0 bytes is too small.* \d+ bytes") as refused:
            built(0)
        least = int(re.findall(r"(\d+) bytes", str(refused.value))[-1])
        assert built(least) == least
        with pytest.raises(ValueError, match=f"budget of {least - 1} bytes.*{least} bytes"):
            built(least - 1)
        budget = max(least, int(share * full))
        stored = built(budget)
        assert stored <= budget
        assert stored <= built(int(budget * more))
        chain = [method]  # and what wrappers are around
        while hasattr(chain[-1], "of"):
            chain.append(chain[-1].of)
        one_size = any(isinstance(each, GraphHash) and getattr(each, "rows", None) is None for each in chain)
        if not one_size and not any(isinstance(each, Full | QuotientRemainder | LowRank) for each in chain):
            row = sum(16 * 4 + 16 for _ in tables)  # the widest row, and the place of an owned id
            assert budget - stored <= max(0.02 * budget, row)

    inner()
