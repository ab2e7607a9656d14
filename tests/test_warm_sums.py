"""The column-by-column fit against the one that uses a combiner's derivatives alone, and the memory that it takes."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import embcomp
from embcomp.compress import warm_sums
from embcomp.compress.warm import warm_start
from embcomp.methods.base import Concat, Method, Product, Sum, Table, TablePlan, WeightedSum
from embcomp.testing.examples import EXAMPLES
from embcomp.trained import BLOCK, Trained

N, D = 200, 8

COUNTS = (torch.arange(N) * 37 % 11).float() ** 2
METHODS = [
    embcomp.DoubleHash(rows=60),
    embcomp.MultiHash(rows=60, num_hashes=3),
    embcomp.HashEmbedding(rows=60),
    embcomp.QuotientRemainder(rows=20, combine="sum"),
    embcomp.QuotientRemainder(rows=20),
    embcomp.FrequencyHash(rows=90, counts=COUNTS, tail="double"),
]


def unknown(plan: TablePlan) -> TablePlan:
    """The plan with a combiner that does the same, but is of a class that the library does not know."""
    kind = type(plan.combiner)
    made = type("Unknown", (kind,), {"forward": lambda self, chunks: kind.forward(self, chunks)})()
    return dataclasses.replace(plan, combiner=made)


def problem(method: Method, ids: int = N) -> tuple[TablePlan, dict[str, Tensor], Tensor]:
    plan = method.plan([Table("t", ids, D)])
    generator = torch.Generator().manual_seed(0)
    stores = {name: torch.randn(store.rows, store.dim, generator=generator) for name, store in plan.stores.items()}
    return plan.tables[0], stores, torch.randn(ids, D, generator=generator)


def fitted(plan: TablePlan, stores: dict[str, Tensor], vectors: Tensor, counts: Tensor, steps: int) -> Tensor:
    """The vectors of the compressed table after a warm start of copies of the stores."""
    stores = {name: store.clone() for name, store in stores.items()}
    warm_start([Trained(plan, vectors, counts)], stores, steps)
    return vectors_of(plan, stores)


def vectors_of(plan: TablePlan, stores: dict[str, Tensor]) -> Tensor:
    read = plan.encoder(torch.arange(N))
    chunks = []
    for chunk, rows in zip(plan.chunks, read, strict=True):
        weights = torch.ones(rows.rows.shape) if rows.weights is None else rows.weights
        chunks.append((stores[chunk.store][rows.rows] * weights.unsqueeze(-1)).sum(1))
    return plan.combiner(chunks)


def name(method: Method) -> str:
    return type(method).__name__


@pytest.mark.parametrize("counts", [torch.ones(N), COUNTS], ids=["even", "counts"])
@pytest.mark.parametrize("method", METHODS, ids=name)
def test_the_fit_by_columns_is_as_close_as_the_fit_by_derivatives(method: Method, counts: Tensor) -> None:
    plan, stores, vectors = problem(method)
    assert type(plan.combiner) in (Concat, Sum, Product, WeightedSum)

    def error(by: TablePlan, steps: int) -> float:
        missed = fitted(by, stores, vectors, counts, steps) - vectors
        return float((counts.unsqueeze(1) * missed.square()).double().sum())

    for steps in (1, 3, 20):
        assert error(plan, steps) <= error(unknown(plan), steps) * (1 + 1e-5)
    assert error(plan, 200) == pytest.approx(error(unknown(plan), 200), rel=1e-4)


def test_the_fits_meet_where_one_solution_is_best() -> None:
    """Three rows of many ids are determined well: both fits end at the same vectors, to the rounding of floats."""
    plan, stores, vectors = problem(embcomp.FrequencyHash(rows=90, counts=COUNTS, tail="double"))
    both = [fitted(by, stores, vectors, torch.ones(N), 200) for by in (plan, unknown(plan))]
    torch.testing.assert_close(*both, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_the_number_of_columns_at_once_changes_nothing(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, stores, vectors = problem(method)
    found = []
    for at_once in (1, 3, D):
        monkeypatch.setattr(warm_sums, "_at_once", lambda rows, width, at_once=at_once: at_once)
        found.append(fitted(plan, stores, vectors, COUNTS, 5))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_first_columns_describe_the_combiner(example) -> None:
    """The vector is the sum of its learned chunks at these columns, and the others are at their neutral values."""
    plan = example.make([Table("t", 60, D)]).plan([Table("t", 60, D)])
    table, widths = plan.tables[0], {name: store.dim for name, store in plan.stores.items()}
    trained = Trained(table, torch.zeros(60, D), torch.ones(60))
    places = trained.first_columns(widths)
    if places is None:
        return
    chunks = [torch.randn(5, widths[chunk.store]) for chunk in table.chunks]
    for number, value in table.combiner.neutral.items():
        chunks[number].fill_(value)
    expected = torch.zeros(5, D)
    for (number, _), place in zip(trained.learned, places, strict=True):
        expected[:, place : place + chunks[number].shape[1]] += chunks[number]
    torch.testing.assert_close(table.combiner(chunks), expected)


def test_stores_of_different_widths_and_tables_that_share_them() -> None:
    """Side by side, each store's fit is that of its own columns alone."""
    double = embcomp.DoubleHash(rows=60)
    plan, _, vectors = problem(double)
    narrow = double.plan([Table("n", N, 2)]).tables[0]
    wide = dataclasses.replace(
        plan,
        encoder=_Pair(plan.encoder, narrow.encoder),
        chunks=(*plan.chunks, *narrow.chunks),
    )
    more = torch.cat([vectors, torch.randn(N, 2, generator=torch.Generator().manual_seed(1))], 1)
    stores = {"t": torch.zeros(60, D), "n": torch.zeros(60, 2)}
    warm_start([Trained(wide, more, torch.ones(N))], stores, 200)
    apart = {"t": torch.zeros(60, D), "n": torch.zeros(60, 2)}
    warm_start([Trained(plan, vectors, torch.ones(N)), Trained(narrow, more[:, D:], torch.ones(N))], apart, 200)
    for store in stores:
        torch.testing.assert_close(stores[store], apart[store], rtol=1e-3, atol=1e-3)


class _Pair(embcomp.methods.base.Encoder):
    """The rows of one encoder, then those of another."""

    def __init__(self, *encoders: embcomp.methods.base.Encoder) -> None:
        super().__init__(encoders[0].table, {"method": "Pair"})
        self.each = encoders

    def encode(self, ids: Tensor):
        return [rows for encoder in self.each for rows in encoder.encode(ids)]


def test_what_is_made_beside_the_rows_has_a_column_of_them_or_belongs_to_a_block() -> None:
    ids, rows = 3 * BLOCK, 2 * BLOCK
    plan = embcomp.DoubleHash(rows=rows).plan([Table("t", ids, D)])
    stores = {"t": torch.zeros(rows, D)}
    trained = Trained(plan.tables[0], torch.randn(ids, D), torch.ones(ids))

    class Largest(TorchDispatchMode):
        values = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made, given = func(*args, **(kwargs or {})), [each for each in args if isinstance(each, Tensor)]
            held = {each.untyped_storage()._cdata for each in given}
            if isinstance(made, Tensor) and made.untyped_storage()._cdata not in held:
                self.values = max(self.values, made.numel())
            return made

    with Largest() as largest:
        warm_start([trained], stores, 2)
    assert largest.values <= max(rows, 2 * BLOCK * D)  # two rows are read for each id of a block
