import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embcomp import QuotientRemainder
from embcomp.methods import Table
from embcomp.methods.quotient_remainder import smallest_pair
from embcomp.nn import CompressedEmbedding
from embcomp.testing.drop_ins import randomize


@pytest.mark.parametrize("combine", ["mul", "sum", "concat"])
@pytest.mark.parametrize("rows", [None, 1, 7, 50, 80])
def test_formula(combine: str, rows: int | None) -> None:
    module = randomize(CompressedEmbedding(50, 6, QuotientRemainder(rows=rows, combine=combine)))
    quotient, remainder = module.parameters()
    r = rows or smallest_pair(50)
    assert (len(quotient), len(remainder)) == (-(-50 // r), r)
    for id in range(50):
        q, m = quotient[id // r], remainder[id % r]
        expected = {"mul": lambda: q * m, "sum": lambda: q + m, "concat": lambda: torch.cat([q, m])}[combine]()  # noqa: B023
        torch.testing.assert_close(module(torch.tensor(id)), expected)


@given(st.integers(1, 400), st.sampled_from(["mul", "sum", "concat"]), st.integers(1, 450) | st.none())
def test_every_id_has_a_vector_of_its_own(n: int, combine: str, rows: int | None) -> None:
    module = randomize(CompressedEmbedding(n, 4, QuotientRemainder(rows=rows, combine=combine), dtype=torch.float64))
    pairs = list(zip(*(chunk.rows.flatten().tolist() for chunk in module.encoder(torch.arange(n))), strict=True))
    assert len(set(pairs)) == n
    assert len(torch.unique(module.materialize().detach().round(decimals=12), dim=0)) == n


@given(st.integers(1, 20_000))
def test_the_smallest_pair_is_the_smallest(n: int) -> None:
    r = smallest_pair(n)
    assert r + -(-n // r) == min(s + -(-n // s) for s in range(1, n + 1))


def test_a_product_starts_with_the_variance_of_a_plain_table() -> None:
    values = CompressedEmbedding(10_000, 64, QuotientRemainder()).materialize().detach()
    assert abs(float(values.var()) - 1) < 0.1


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="combine must be 'mul', 'sum' or 'concat', got 'max'"):
        QuotientRemainder(combine="max")
    with pytest.raises(ValueError, match="table 't': embedding_dim 7 is odd"):
        QuotientRemainder(combine="concat").plan([Table("t", 10, 7)])
    with pytest.raises(ValueError, match=r"QuotientRemainder: rows must be an integer .* got 0"):
        QuotientRemainder(rows=0).plan([Table("t", 10, 4)])
    with pytest.raises(ValueError, match="'t_quotient', the name of another table"):
        QuotientRemainder().plan([Table("t", 10, 4), Table("t_quotient", 10, 4)])


@given(st.integers(1, 5000), st.integers(0, 12_000))
def test_a_budget_goes_to_the_remainder(n: int, rows: int) -> None:
    """The most remainder rows that fit: no more than ids exist, for no id would read them."""
    table, total = Table("t", n, 4), max(rows, smallest_pair(n) + -(-n // smallest_pair(n)))
    method = QuotientRemainder.for_budget([table], 16 * total)
    fitting = [r for r in range(smallest_pair(n), n + 1) if r + -(-n // r) <= total]
    assert method.rows == max(fitting)
