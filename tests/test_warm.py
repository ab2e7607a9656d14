"""Warm starts against brute force: means for one row per id, least squares for sums of rows."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import embcomp
from embcomp import compress_
from embcomp.methods import Table
from embcomp.testing.example import Example
from embcomp.testing.examples import EXAMPLES
from embcomp.trained import BLOCK

N, D = 60, 8


def trained(n: int = N, seed: int = 0, scale: float = 1.0) -> nn.Embedding:
    """Vectors with structure (a few directions), so that there is something for shared rows to keep."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(n, 3, generator=generator) @ torch.randn(3, D, generator=generator)
    return nn.Embedding.from_pretrained(scale * (base + 0.3 * torch.randn(n, D, generator=generator)), freeze=False)


COUNTS = (torch.arange(N) * 37 % 11).float() ** 2


def warm(
    method: embcomp.Method, counts: Tensor | None = None, table: nn.Embedding | None = None, **kwargs
) -> nn.Module:
    model = nn.ModuleDict({"t": table or trained()})
    compress_(model, {"t": method}, init="warm", counts=None if counts is None else {"t": counts}, **kwargs)
    return model["t"]


def error(module: nn.Module, counts: Tensor | None = None, table: nn.Embedding | None = None) -> float:
    """sum_id counts[id] |vector - trained vector|^2."""
    gap = (module.materialize() - (table or trained()).weight).detach().square().sum(1)
    return float((gap if counts is None else gap * counts).sum())


def rows_of(module: nn.Module, n: int = N) -> list[list[list[int]]]:
    """[chunk][id] -> rows."""
    return [chunk.rows.tolist() for chunk in module.encoder(torch.arange(n))]


ONE_ROW = [
    embcomp.HashingTrick(rows=7),
    embcomp.MultiHash(rows=7, num_hashes=1),
    embcomp.FrequencyHash(rows=20, counts=COUNTS),
    embcomp.HashEmbedding(rows=7, num_hashes=1),
    embcomp.QuotientRemainder(rows=9),
    embcomp.UnifiedEmbedding(rows=9, chunk_dim=8),
]
SIDE_BY_SIDE = [
    embcomp.MultiHash(rows=7, num_hashes=2, combine="concat"),
    embcomp.QuotientRemainder(rows=7, combine="concat"),
    embcomp.UnifiedEmbedding(rows=9, chunk_dim=4),
    embcomp.UnifiedEmbedding(rows=9, chunk_dim=2),
]
SUMMED = [
    embcomp.DoubleHash(rows=15),
    embcomp.MultiHash(rows=15, num_hashes=3),
    embcomp.QuotientRemainder(rows=7, combine="sum"),
    embcomp.HashEmbedding(rows=15),
    embcomp.FrequencyHash(rows=20, counts=COUNTS, tail="double"),
]


def name(method: embcomp.Method) -> str:
    return type(method).__name__


@pytest.mark.parametrize("counts", [None, COUNTS])
@pytest.mark.parametrize("method", ONE_ROW, ids=name)
def test_a_row_is_the_weighted_mean_of_its_ids(method: embcomp.Method, counts: Tensor | None) -> None:
    module, table = warm(method, counts), trained().weight.detach()
    weigh = torch.ones(N) if counts is None else counts
    rows = [row for (row,) in rows_of(module)[-1]]
    for id in range(N):
        same = [other for other in range(N) if rows[other] == rows[id]]
        weights = [float(weigh[other]) for other in same]
        if not sum(weights):
            weights = [1.0] * len(same)  # ids without a count alone: their plain mean
        mean = sum(w * table[other] for w, other in zip(weights, same, strict=True)) / sum(weights)
        torch.testing.assert_close(module(torch.tensor(id)), mean)


@pytest.mark.parametrize("counts", [None, COUNTS])
@pytest.mark.parametrize("method", SIDE_BY_SIDE, ids=name)
def test_columns_side_by_side_are_means_of_columns(method: embcomp.Method, counts: Tensor | None) -> None:
    """A row of a store collects the columns of all chunks that read it."""
    module, table = warm(method, counts), trained().weight.detach()
    weigh = torch.ones(N) if counts is None else counts
    width = D // len(module.reads)
    sums: dict[tuple[int, int], Tensor] = {}
    plain: dict[tuple[int, int], Tensor] = {}
    for c, read in enumerate(rows_of(module)):
        for id, (row,) in enumerate(read):
            columns = torch.cat([table[id, c * width : (c + 1) * width], torch.ones(1)])
            key = (module.reads[c], row)
            sums[key] = sums.get(key, 0) + weigh[id] * columns
            plain[key] = plain.get(key, 0) + columns
    for c, read in enumerate(rows_of(module)):
        for id, (row,) in enumerate(read):
            key = (module.reads[c], row)
            total = sums[key] if sums[key][-1] else plain[key]
            got = module(torch.tensor(id))[c * width : (c + 1) * width]
            torch.testing.assert_close(got, total[:-1] / total[-1])


def least_squares(module: nn.Module, counts: Tensor | None) -> float:
    """The smallest error that any rows could give: a dense solver on the design matrix, [ids, rows of all stores]."""
    design = torch.zeros(N, sum(len(parameter) for parameter in module.parameters()), dtype=torch.float64)
    starts, start = [], 0
    for parameter in module.parameters():
        starts.append(start)
        start += len(parameter)
    skip = 1 if isinstance(module.combiner, embcomp.methods.base.WeightedSum) else 0
    for place, chunk in list(zip(module.reads, module.encoder(torch.arange(N)), strict=True))[skip:]:
        weights = torch.ones_like(chunk.rows, dtype=torch.float64) if chunk.weights is None else chunk.weights.double()
        for id in range(N):
            for row, weight in zip(chunk.rows[id].tolist(), weights[id].tolist(), strict=True):
                design[id, starts[place] + row] += weight
    root = (torch.ones(N) if counts is None else counts).double().sqrt().unsqueeze(1)
    target = trained().weight.detach().double()
    best = torch.linalg.lstsq(root * design, root * target, driver="gelsd").solution
    return float((root * (design @ best - target)).square().sum())


@pytest.mark.parametrize("counts", [None, COUNTS])
@pytest.mark.parametrize("method", SUMMED, ids=name)
def test_sums_of_rows_come_close_to_least_squares(method: embcomp.Method, counts: Tensor | None) -> None:
    module = warm(method, counts)
    best = least_squares(module, counts)
    assert best <= error(module, counts) * (1 + 1e-5)
    assert error(module, counts) < 1.05 * best + 1e-3


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_any_scale_of_vectors_and_counts(scale: float) -> None:
    """A stopping rule with an absolute bound would give up early on small vectors."""
    method, table = embcomp.DoubleHash(rows=15), trained(scale=scale)
    plain = warm(method)
    scaled = warm(method, scale**2 * torch.ones(N), table=trained(scale=scale))
    torch.testing.assert_close(scaled.materialize() / scale, plain.materialize(), rtol=1e-2, atol=1e-2)
    assert error(scaled, table=table) < error(plain) * scale**2 * 1.02


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_a_warm_start_is_closer_than_a_fresh_one_and_than_nothing(example: Example) -> None:
    if example.name == "Full":
        return
    method = example.make([Table("t", N, D)])
    fresh = nn.ModuleDict({"t": trained()})
    compress_(fresh, {"t": method})
    nothing = float(trained().weight.detach().square().sum())
    assert error(warm(method)) < min(nothing, error(fresh["t"]))


def test_enough_rows_give_the_table_back() -> None:
    """Least squares with as many unknowns as numbers: a quotient table of one row, or a row for each id."""
    torch.testing.assert_close(warm(embcomp.QuotientRemainder(rows=N)).materialize(), trained().weight)
    counts = torch.arange(N) + 1.0
    owned = embcomp.FrequencyHash(rows=2 * N, counts=counts, hot_share=0.6)
    torch.testing.assert_close(warm(owned).materialize(), trained().weight)


@pytest.mark.parametrize("method", [*ONE_ROW[:2], *SUMMED[:1]], ids=name)
def test_padding_counts_for_nothing(method: embcomp.Method) -> None:
    """The vector at padding_idx never comes from the rows, so it must not pull at them, with counts or without."""
    for counts in (None, COUNTS + 1):
        modules = []
        for value in (0.0, 1e6):
            table = trained()
            table.padding_idx = 5
            with torch.no_grad():
                table.weight[5] = value
            modules.append(warm(method, counts, table))
        other = torch.arange(N) != 5
        assert torch.equal(modules[0].materialize()[other], modules[1].materialize()[other])
        assert not modules[0](torch.tensor(5)).any()
        assert modules[1](torch.tensor(5)).eq(1e6).all()


def test_rows_that_no_id_reads_keep_their_random_start() -> None:
    torch.manual_seed(0)
    module = warm(embcomp.HashingTrick(rows=500), table=trained(20))
    read = torch.unique(module.encoder(torch.arange(20))[0].rows)
    rest = torch.ones(500, dtype=torch.bool).index_fill(0, read, False)
    expected = float(trained(20).weight.detach().std())
    assert float(module.stores[0].weight[rest].detach().std()) == pytest.approx(expected, rel=0.1)


def unified_model() -> nn.ModuleDict:
    return nn.ModuleDict({"a": trained(30, 1), "b": trained(N, 2)})


def test_a_shared_store_is_fitted_to_all_its_tables() -> None:
    model, old = unified_model(), unified_model()
    counts = {"b": COUNTS}
    compress_(model, {"*": embcomp.UnifiedEmbedding(rows=11, chunk_dim=4)}, init="warm", counts=counts)
    store = model["a"].stores[0].weight
    sums, weights = torch.zeros(11, 4), torch.zeros(11)
    for key, weigh in (("a", torch.ones(30)), ("b", COUNTS)):
        vectors = old[key].weight.detach()
        for c, chunk in enumerate(model[key].encoder(torch.arange(len(vectors)))):
            for id, row in enumerate(chunk.rows.flatten().tolist()):
                sums[row] += weigh[id] * vectors[id, 4 * c : 4 * c + 4]
                weights[row] += weigh[id]
    torch.testing.assert_close(store.detach(), sums / weights.unsqueeze(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    table = trained().to(dtype)
    module = warm(embcomp.DoubleHash(rows=15), table=table)
    assert module.stores[0].weight.dtype == dtype
    torch.testing.assert_close(
        module.materialize().float(), warm(embcomp.DoubleHash(rows=15)).materialize(), rtol=0.05, atol=0.05
    )


def test_integer_counts_and_counts_of_nothing() -> None:
    for counts in (COUNTS.long(), COUNTS.bool(), COUNTS.to(torch.uint8)):
        module = warm(embcomp.HashingTrick(rows=7), counts)
        torch.testing.assert_close(
            module.materialize(), warm(embcomp.HashingTrick(rows=7), counts.float()).materialize()
        )
    none = warm(embcomp.HashingTrick(rows=7), torch.zeros(N))
    torch.testing.assert_close(none.materialize(), warm(embcomp.HashingTrick(rows=7)).materialize())


def test_bags_start_warm_too_and_keep_what_they_pool() -> None:
    def outputs(kind: Sequence[nn.Module]) -> Tensor:
        return kind[0](torch.arange(N).view(12, 5))

    old = nn.ModuleList([nn.EmbeddingBag.from_pretrained(trained().weight.detach(), mode="mean")])
    new = nn.ModuleList([nn.EmbeddingBag.from_pretrained(trained().weight.detach(), mode="mean")])
    compress_(new, {"*": embcomp.QuotientRemainder(rows=N)}, init="warm")
    torch.testing.assert_close(outputs(new), outputs(old))
    assert not any(parameter.requires_grad for parameter in new.parameters())


@pytest.mark.parametrize("init", ["fresh", "warm"])
def test_nothing_as_large_as_the_table_is_made(init) -> None:
    """Rows, or what belongs to a block of ids, are the largest tensors."""
    ids, rows = 5 * BLOCK, 50_000
    model = nn.ModuleDict({"t": nn.Embedding(ids, D)})

    class Largest(TorchDispatchMode):
        values = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made, given = func(*args, **(kwargs or {})), [each for each in args if isinstance(each, Tensor)]
            if isinstance(made, Tensor) and not any(
                made.untyped_storage()._cdata == each.untyped_storage()._cdata for each in given
            ):
                self.values = max(self.values, made.numel())
            return made

    with Largest() as largest:
        compress_(model, embcomp.HashingTrick(rows=rows), init=init)
    assert largest.values <= max(rows, BLOCK) * D


def test_more_ids_than_a_block() -> None:
    """Vectors are read in blocks of 65 536 ids."""
    n = 70_000
    table = nn.Embedding(n, 2)
    module = warm(embcomp.HashingTrick(rows=3), table=nn.Embedding.from_pretrained(table.weight.detach().clone()))
    rows = module.encoder(torch.arange(n))[0].rows.flatten()
    for row in range(3):
        torch.testing.assert_close(
            module.stores[0].weight[row], table.weight[rows == row].mean(0), atol=1e-4, rtol=1e-4
        )
