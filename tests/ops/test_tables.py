"""Pooled look-ups, their gradients and fused updates: compiled kernels and torch forms against loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchrec.optim import RowWiseAdagrad

from embcomp.ops import native, tables
from embcomp.ops.grid import RowGrid, snap_reference
from embcomp.ops.tables import Bags, FusedOptimizerSettings, SumBags

WIDTHS = [1, 3, 4, 8, 16, 30, 32, 64, 100, 128]
OPTIMIZERS = ["sgd", "adagrad", "rowwise_adagrad"]


@pytest.fixture(params=["native", "torch"])
def form(request, monkeypatch):
    """Compiled kernels, and what serves without a compiler."""
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no compiler: the torch form is tested")
    return request.param


@st.composite
def requests(draw: st.DrawFn) -> dict:
    """What features ask of one table: rows of other tables stand before and after, columns of others between."""
    features, batch = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    rows = draw(st.sampled_from([1, 2, 5, 300]))
    return {
        "features": features,
        "batch": batch,
        "rows": rows,
        "before": draw(st.integers(0, 3)),
        "longest": draw(st.sampled_from([0, 1, 1, 3, 9])),
        "hot": draw(st.integers(1, rows)),
        "weighted": draw(st.booleans()),
        "seed": draw(st.integers(0, 999)),
    }


def make(dim: int, request: dict) -> tuple[Tensor, Bags, int]:
    """A table, bags over it, and the width of the output."""
    random = torch.Generator().manual_seed(request["seed"])
    features, batch = request["features"], request["batch"]
    lengths = torch.randint(0, request["longest"] + 1, (features * batch,), generator=random)
    if request["longest"] == 1 and request["seed"] % 2:
        lengths.fill_(1)  # the usual case, for which kernels have a path of their own
    offsets = request["before"] + torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    total = int(offsets[-1])
    ids = torch.randint(0, request["hot"], (total + 2,), generator=random)
    ids[: request["before"]] = ids[total:] = request["rows"] + 7  # of other tables: not to be touched
    weights = torch.randn(total + 2, generator=random) if request["weighted"] else None
    places = torch.randperm(features, generator=random)
    columns = places * (dim + 2) + 1
    table = torch.randn(request["rows"], dim, generator=random)
    return table, Bags(ids, offsets, weights, columns), features * (dim + 2) + 1


def looks(bags: Bags):
    """Each look-up: bag in the batch, first column, row, weight."""
    for f, column in enumerate(bags.columns.tolist()):
        for b in range(bags.batch):
            start, stop = bags.offsets[f * bags.batch + b : f * bags.batch + b + 2].tolist()
            for j in range(start, stop):
                yield b, column, int(bags.rows[j]), 1.0 if bags.weights is None else float(bags.weights[j])


def summed_gradient(table: Tensor, bags: Bags, grad: Tensor) -> Tensor:
    total = torch.zeros(table.shape, dtype=torch.float64)
    for b, column, row, weight in looks(bags):
        total[row] += weight * grad[b, column : column + table.shape[1]].double()
    return total


@pytest.mark.parametrize("dim", WIDTHS)
@settings(max_examples=6)
@given(request=requests())
def test_pooling(dim, request):
    table, bags, width = make(dim, request)
    expected = torch.full((bags.batch, width), 7.0, dtype=torch.float64)
    for column in bags.columns.tolist():
        expected[:, column : column + dim] = 0.0
    for b, column, row, weight in looks(bags):
        expected[b, column : column + dim] += weight * table[row].double()
    for pool in (tables.pool_bags, tables.pool_bags_reference):
        out = torch.full((bags.batch, width), 7.0)  # columns of other tables keep what they hold
        pool(table, bags, out)
        torch.testing.assert_close(out, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", WIDTHS)
@settings(max_examples=6)
@given(request=requests())
def test_table_gradient(dim, request):
    table, bags, width = make(dim, request)
    grad = torch.randn(bags.batch, width)
    expected = summed_gradient(table, bags, grad).float()
    for gradient in (tables.table_gradient, tables.table_gradient_reference):
        torch.testing.assert_close(gradient(table.shape, bags, grad), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dim", WIDTHS)
@settings(max_examples=6)
@given(request=requests())
def test_weight_gradient(dim, request):
    table, bags, width = make(dim, request)
    grad = torch.randn(bags.batch, width)
    expected = [
        (grad[b, column : column + dim].double() @ table[row].double()).item() for b, column, row, _ in looks(bags)
    ]
    torch.testing.assert_close(
        tables.weight_gradient(table, bags, grad), torch.tensor(expected).float().reshape(-1), rtol=1e-4, atol=1e-4
    )


def slow_update(table: Tensor, state: Tensor, total: Tensor, touched: set[int], constants: FusedOptimizerSettings):
    """One step in float64, row by row, in place."""
    for row in touched:
        gradient = total[row] + constants.weight_decay * table[row]
        if constants.name == "sgd":
            table[row] -= constants.lr * gradient
        elif constants.name == "adagrad":
            state[row] += gradient**2
            table[row] -= constants.lr * gradient / (state[row].sqrt() + constants.eps)
        else:
            state[row] += (gradient**2).mean()
            table[row] -= constants.lr * gradient / (math.sqrt(state[row]) + constants.eps)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dim", WIDTHS)
@settings(max_examples=4)
@given(request=requests())
def test_update(dim, optimizer, weight_decay, request):
    start, bags, width = make(dim, request)
    constants = FusedOptimizerSettings(optimizer, lr=0.1, eps=1e-3, weight_decay=weight_decay)
    shape = tables.state_shape(optimizer, *start.shape)
    touched = {row for _, _, row, _ in looks(bags)}
    grads = [torch.randn(bags.batch, width) for _ in range(2)]
    slow, slow_state = start.double(), torch.zeros(shape, dtype=torch.float64)
    for grad in grads:
        slow_update(slow, slow_state, summed_gradient(start, bags, grad), touched, constants)
    for update in (tables.update_rows, tables.update_rows_reference):
        table, state = start.clone(), torch.zeros(shape)
        for grad in grads:
            update(table, state, bags, grad, constants)
        torch.testing.assert_close(table, slow.float(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(state, slow_state.float(), rtol=1e-3, atol=1e-4)
        others = [row for row in range(request["rows"]) if row not in touched]
        assert torch.equal(table[others], start[others])


@st.composite
def chunked(draw: st.DrawFn) -> dict:
    """Features whose ids repeat, each read in several chunks side by side, as a Unified Embedding asks for them."""
    return {
        "chunks": draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)),
        "batch": draw(st.sampled_from([1, 2, 8, 33, 64, 200])),
        "ids": draw(st.sampled_from([1, 2, 5, 30, 1000])),
        "rows": draw(st.sampled_from([1, 3, 40, 5000])),
        "astray": draw(st.sampled_from([0, 0, 1, 3, 40])),
        "multi_hot": draw(st.sampled_from([False, False, True])),
        "gap": draw(st.sampled_from([0, 0, 3])),
        "weighted": draw(st.sampled_from([False, False, True])),
        "seed": draw(st.integers(0, 999)),
    }


def make_chunked(dim: int, request: dict) -> tuple[Tensor, Bags, int]:
    random = torch.Generator().manual_seed(request["seed"])
    batch, rows, offsets, columns = request["batch"], [], [torch.zeros(1, dtype=torch.int64)], []
    for chunks in request["chunks"]:
        lengths = torch.ones(batch, dtype=torch.int64)
        if request["multi_hot"]:
            lengths = torch.randint(0, 3, (batch,), generator=random)
        ids = torch.randint(0, request["ids"], (int(lengths.sum()),), generator=random)
        for _ in range(chunks):
            of_id = torch.randint(0, request["rows"], (request["ids"],), generator=random)[ids]
            places = torch.randint(0, max(1, ids.numel()), (min(request["astray"], ids.numel()),), generator=random)
            of_id[places] = torch.randint(0, request["rows"], (places.numel(),), generator=random)
            rows.append(of_id)
            offsets.append(offsets[-1][-1] + lengths.cumsum(0))
            columns.append(len(columns) * dim + request["gap"] * (len(columns) // 2))
    width = columns[-1] + dim
    flat = torch.cat(rows)
    weights = torch.randn(flat.numel(), generator=random) if request["weighted"] else None
    table = torch.randn(request["rows"], dim, generator=random)
    return table, Bags(flat, torch.cat(offsets), weights, torch.tensor(columns)), width


@pytest.mark.parametrize("dim", [1, 3, 8, 16])
@settings(max_examples=40)
@given(request=chunked())
def test_chunks_of_ids_that_repeat(dim, request):
    """Kernels may sum what an id's chunks have in common; the torch form, tested above, does not."""
    start, bags, width = make_chunked(dim, request)
    grad = torch.randn(request["batch"], width)
    for optimizer in OPTIMIZERS:
        constants = FusedOptimizerSettings(optimizer, lr=0.1, eps=1e-2, weight_decay=0.05)
        expected, sums = start.clone(), torch.zeros(tables.state_shape(optimizer, *start.shape))
        tables.update_rows_reference(expected, sums, bags, grad, constants)
        table, state = start.clone(), torch.zeros_like(sums)
        tables.update_rows(table, state, bags, grad, constants)
        torch.testing.assert_close(table, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(state, sums, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        tables.table_gradient(start.shape, bags, grad),
        tables.table_gradient_reference(start.shape, bags, grad),
        rtol=1e-3,
        atol=1e-4,
    )
    outs = [torch.zeros(request["batch"], width) for _ in range(2)]
    tables.pool_bags(start, bags, outs[0])
    tables.pool_bags_reference(start, bags, outs[1])
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [0, 1])
def test_outputs_too_large_for_a_cache(form, shift):
    """They may be written another way, where their columns stand on whole vectors."""
    dim, batch = 512, 8200
    table, rows = torch.randn(50, dim), torch.randint(0, 50, (2 * batch,))
    out = torch.zeros(batch, 2 * dim + 4)
    assert out.nbytes > 32 << 20
    columns = torch.tensor([shift, dim + shift])
    tables.pool_bags(table, Bags(rows, torch.arange(2 * batch + 1), None, columns), out)
    expected = torch.zeros_like(out)
    expected[:, shift : shift + 2 * dim] = torch.cat([table[rows[:batch]], table[rows[batch:]]], dim=1)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_update_is_that_of_the_torch_optimizer(form, optimizer):
    """Every row is read, so that weight decay means the same to both."""
    dim, rows = 5, 6
    weight = torch.nn.Parameter(torch.randn(rows, dim))
    table, state = weight.detach().clone(), torch.zeros(tables.state_shape(optimizer, rows, dim))
    kind = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rowwise_adagrad": RowWiseAdagrad}[optimizer]
    eps = {} if optimizer == "sgd" else {"eps": 1e-3}
    outside = kind([weight], lr=0.2, weight_decay=0.1, **eps)
    bags = Bags(torch.arange(12) % rows, torch.arange(0, 13, 2), None, torch.tensor([0, dim]))
    for _ in range(3):
        grad = torch.randn(3, 2 * dim)
        weight.grad = tables.table_gradient_reference(table.shape, bags, grad)
        outside.step()
        tables.update_rows(table, state, bags, grad, FusedOptimizerSettings(optimizer, 0.2, 1e-3, 0.1))
    torch.testing.assert_close(table, weight.detach())
    if optimizer != "sgd":
        torch.testing.assert_close(state, outside.state[weight]["sum"].reshape(state.shape))


@pytest.mark.parametrize("rows", [2**12, 2**12 + 1, 2**16, 2**20])
def test_many_rows_are_sorted_by_all_their_bits(form, rows):
    """Rows that agree in their low or high bits stay apart."""
    step = max(1, rows // 512)
    ids = torch.cat([torch.arange(0, rows, step), torch.arange(min(rows, 512)), torch.tensor([rows - 1, 0, rows - 1])])
    ids = ids[torch.randperm(ids.numel(), generator=torch.Generator().manual_seed(0))]
    bags = Bags(ids, torch.arange(ids.numel() + 1), None, torch.tensor([0]))
    table, grad = torch.zeros(rows, 1), torch.ones(ids.numel(), 1)
    tables.update_rows(table, torch.zeros(0), bags, grad, FusedOptimizerSettings("sgd", 1.0))
    torch.testing.assert_close(table.squeeze(1), -torch.bincount(ids, minlength=rows).float())


def test_updates_do_not_depend_on_what_came_before(form):
    """Memory that kernels keep between calls holds nothing of an earlier, larger call."""
    small = Bags(torch.tensor([1]), torch.tensor([0, 1]), None, torch.tensor([0]))
    settings_of = FusedOptimizerSettings("sgd", 1.0)
    for ids in (torch.arange(1000) % 50, torch.tensor([3])):
        large = Bags(ids, torch.arange(ids.numel() + 1), None, torch.tensor([0]))
        tables.update_rows(torch.zeros(50, 16), torch.zeros(0), large, torch.randn(ids.numel(), 16), settings_of)
        table = torch.zeros(4, 3)
        tables.update_rows(table, torch.zeros(0), small, torch.tensor([[1.0, 2.0, 3.0]]), settings_of)
        assert table.tolist() == [[0, 0, 0], [-1, -2, -3], [0, 0, 0], [0, 0, 0]]


# --- SumBags: the same with autograd ---


def sum_bags(table: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor | None = None, features: int = 1) -> Tensor:
    columns = [torch.arange(features, device="cpu") * table.shape[1]]
    return SumBags.apply(rows, offsets, weights, columns, table)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("weighted", [False, True])
def test_sum_bags_differentiates_as_torch(form, weighted):
    table = torch.randn(9, 6, requires_grad=True)
    rows, offsets = torch.randint(0, 9, (10,)), torch.tensor([0, 3, 3, 4, 10])
    weights = torch.randn(10, dtype=torch.float64, requires_grad=True) if weighted else None
    each = table[rows] if weights is None else table[rows] * weights.float().unsqueeze(1)
    bags = torch.stack([each[a:b].sum(0) for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)])
    expected = torch.cat([bags[:2], bags[2:]], dim=1)
    out = sum_bags(table, rows, offsets, weights, features=2)
    torch.testing.assert_close(out, expected)
    signal = torch.randn_like(out)
    wanted = [table] if weights is None else [table, weights]
    for a, b in zip(
        torch.autograd.grad(out, wanted, signal), torch.autograd.grad(expected, wanted, signal), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_sum_bags_of_several_tables(form):
    """Each table's features side by side, the gradient of each its own; weights between them."""
    wide, narrow = torch.randn(9, 4, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    frozen = torch.randn(2, 1)
    # Four features, batch 2: the second bags of the first three are empty.
    rows, offsets = torch.tensor([8, 0, 1, 4, 4, 0, 1]), torch.tensor([0, 2, 2, 3, 3, 5, 5, 6, 7])
    weights = torch.randn(7, requires_grad=True)
    columns = [torch.tensor([0, 4]), torch.tensor([8]), torch.tensor([11])]
    out = SumBags.apply(rows, offsets, weights, columns, wide, narrow, frozen)
    w = weights.unsqueeze(1)
    first = torch.cat([wide[8] * w[0] + wide[0] * w[1], wide[1] * w[2], (narrow[4] * w[3:5]).sum(0), frozen[0] * w[5]])
    second = torch.cat([torch.zeros(11), frozen[1] * w[6]])
    expected = torch.stack([first, second])
    torch.testing.assert_close(out, expected)
    wanted, signal = [wide, narrow, weights], torch.randn(2, 12)
    for a, b in zip(
        torch.autograd.grad(out, wanted, signal), torch.autograd.grad(expected, wanted, signal), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_sum_bags_reads_tables_of_any_layout(form):
    table = torch.randn(6, 9).t().requires_grad_()
    strided = torch.randn(9, 12)[:, ::2].requires_grad_()
    for weight in (table, strided):
        out = sum_bags(weight, torch.tensor([1, 8, 3, 99])[:3], torch.tensor([0, 2, 3]))
        torch.testing.assert_close(out, torch.stack([weight[1] + weight[8], weight[3]]))
        (gradient,) = torch.autograd.grad(out.sum(), weight)
        assert gradient.sum(1).tolist() == [0, 6, 0, 6, 0, 0, 0, 0, 6]


def test_a_table_may_change_between_forward_and_backward(form):
    """As with torch's bags: the gradient of an unweighted sum does not depend on the rows."""
    table = torch.randn(4, 3, requires_grad=True)
    first, second = (sum_bags(table, torch.tensor([row]), torch.tensor([0, 1])).sum() for row in (0, 1))
    first.backward()
    with torch.no_grad():
        table -= 0.1 * table.grad
    second.backward()
    assert table.grad.tolist() == [[1] * 3, [1] * 3, [0] * 3, [0] * 3]


def test_weights_gradient_notices_a_changed_table(form):
    table, weights = torch.randn(4, 3, requires_grad=True), torch.ones(1, requires_grad=True)
    out = sum_bags(table, torch.tensor([2]), torch.tensor([0, 1]), weights).sum()
    with torch.no_grad():
        table += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_second_derivatives_are_those_of_plain_torch(form):
    rows, offsets = torch.tensor([2, 1, 1, 0]), torch.tensor([0, 1, 4])
    found = []
    for plain in (True, False):
        table = torch.arange(12.0).view(4, 3).requires_grad_()
        weights = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
        each = table[rows] * weights.unsqueeze(1)
        bags = torch.stack([each[:1].sum(0), each[1:].sum(0)]) if plain else sum_bags(table, rows, offsets, weights)
        first = torch.autograd.grad(bags.pow(3).sum(), (table, weights), create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), (table, weights)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("wrong", [-1, 4, 2**40])
def test_rows_out_of_range(form, wrong):
    with pytest.raises(IndexError, match=rf"{wrong}.*4 rows"):
        sum_bags(torch.zeros(4, 3), torch.tensor([0, wrong]), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("shape", [(1,), (3, 5), (300_000, 4), (2_000_000,)])
def test_empty_tables_are_writable(shape):
    table = tables.empty_table(*shape)
    assert table.shape == shape
    assert table.dtype == torch.float32
    table.fill_(3.0)
    assert table.sum().item() == 3.0 * math.prod(shape)


@pytest.mark.parametrize("setting", ["dtype", "device"])
def test_defaults_of_torch_do_not_reach_the_kernels(form, setting):
    """Under them, new tensors would be float64, or have no memory."""
    table, rows, offsets = torch.randn(9, 6, requires_grad=True), torch.arange(8), torch.tensor([0, 3, 3, 8, 8])
    weights = torch.rand(8, requires_grad=True)
    signal = torch.randn(2, 12)
    state = torch.zeros(9)

    def everything() -> list[Tensor]:
        out = sum_bags(table, rows, offsets, weights, features=2)
        gradients = torch.autograd.grad(out, [table, weights], signal)
        fresh, sums = tables.empty_table(9, 6).copy_(table.detach()), state.clone()
        bags = Bags(rows, offsets, weights.detach(), rows[:2] * 6)
        tables.update_rows(fresh, sums, bags, signal, FusedOptimizerSettings("rowwise_adagrad", 0.1))
        return [out, *gradients, fresh, sums]

    expected = everything()
    before = torch.get_default_dtype()
    if setting == "dtype":
        try:
            torch.set_default_dtype(torch.float64)
            actual = everything()
        finally:
            torch.set_default_dtype(before)
    else:
        with torch.device("meta"):
            actual = everything()
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


@settings(max_examples=15)
@given(
    request=requests(), dim=st.sampled_from([1, 3, 16, 30]), bits=st.integers(1, 8), shared=st.sampled_from([0, 1, 3])
)
def test_rows_that_are_rounded_while_they_are_read(request, dim, bits, shared):
    """Against autograd through the plain rounding; both the compiled and the torch form."""
    start, bags, width = make(dim, request)
    steps = torch.rand(-(-len(start) // shared) if shared else 1) * 4 / 2**bits + 0.01
    constants, grad = FusedOptimizerSettings("rowwise_adagrad", lr=0.1, eps=1e-3), torch.randn(bags.batch, width)
    table, step = start.double().requires_grad_(), steps.double().requires_grad_()
    each = step[torch.arange(len(start)) // shared] if shared else step.expand(len(start))
    rounded = snap_reference(table, each.unsqueeze(-1), bits, scale=0.3)
    expected = torch.zeros(bags.batch, width, dtype=torch.float64)
    for b, column, row, weight in looks(bags):
        expected[b, column : column + dim] += weight * rounded[row]
    of_rows, of_steps = (
        torch.autograd.grad(expected, (table, step), grad.double(), materialize_grads=True)
        if (expected.requires_grad)
        else (torch.zeros_like(table), torch.zeros_like(step))
    )
    touched = {row for _, _, row, _ in looks(bags)}
    slow, slow_state = start.double(), torch.zeros(len(start), dtype=torch.float64)
    slow_update(slow, slow_state, of_rows, touched, constants)
    grid = RowGrid(steps, shared, bits, scale=0.3)
    forms = [(tables.pool_bags, tables.update_rows), (tables.pool_bags_reference, tables.update_rows_reference)]
    for pool, update in forms:
        out, mine, state = torch.zeros(bags.batch, width), start.clone(), torch.zeros(len(start))
        pool(mine, bags, out, grid)
        torch.testing.assert_close(out, expected.detach().float(), rtol=1e-4, atol=1e-5)
        got = update(mine, state, bags, grad, constants, grid)
        torch.testing.assert_close(got, of_steps.float(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(mine, slow.float(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(state, slow_state.float(), rtol=1e-3, atol=1e-4)
