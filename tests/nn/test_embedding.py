"""What `CompressedEmbedding` adds to the contract: settings, starting values, sharing."""

import pytest
import torch
from torch import nn

import embcomp
from embcomp.methods import Table
from embcomp.nn import CompressedEmbedding
from embcomp.nn.table import CompressedTable, make_stores

COUNTS = torch.arange(10_000)


@pytest.mark.parametrize(
    "method",
    [
        embcomp.Full(),
        embcomp.HashingTrick(rows=2000),
        embcomp.MultiHash(rows=2000, num_hashes=3),
        embcomp.MultiHash(rows=2000, num_hashes=4, combine="concat"),
        embcomp.HashEmbedding(rows=2000, num_hashes=5),
        embcomp.QuotientRemainder(),
        embcomp.QuotientRemainder(combine="sum"),
        embcomp.QuotientRemainder(combine="concat"),
        embcomp.FrequencyHash(rows=2000, counts=COUNTS),
        embcomp.FrequencyHash(rows=2000, counts=COUNTS, hot_share=0.1, tail="double"),
        embcomp.UnifiedEmbedding(rows=2000, chunk_dim=8),
    ],
)
def test_vectors_start_as_those_of_an_embedding(method: embcomp.Method) -> None:
    """N(0, 1) in each coordinate, whatever is added up or multiplied, so that a model trains as with nn.Embedding."""
    values = CompressedEmbedding(10_000, 64, method).materialize().detach()
    assert abs(float(values.mean())) < 0.05
    assert abs(float(values.var()) - 1) < 0.12


def test_seeds_decide_what_is_drawn() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(CompressedEmbedding(50, 4, embcomp.HashEmbedding(rows=9)).materialize())
    assert torch.equal(*drawn)


def test_tables_may_share_stores() -> None:
    method = embcomp.UnifiedEmbedding(rows=9, chunk_dim=4)
    plan = method.plan([Table("user", 50, 8), Table("film", 30, 4)])
    stores = make_stores(plan, False, None, None)
    user, film = (CompressedEmbedding.from_plan(plan, part, stores) for part in plan.tables)
    assert user.stores[0] is film.stores[0]
    model = nn.ModuleList([user, film])
    assert embcomp.nbytes(model) == 9 * 4 * 4 + 8 * 3
    user(torch.tensor([1])).sum().backward()
    assert film.stores[0].weight.grad.any()
    with pytest.raises(IndexError, match="table 'film': id 30"):
        film(torch.tensor([30]))


def test_weight_is_computed_and_differentiable() -> None:
    """Tied outputs: logits = h @ emb.weight.T trains the rows."""
    module = CompressedEmbedding(50, 4, embcomp.QuotientRemainder())
    logits = torch.randn(3, 4) @ module.weight.T
    assert logits.shape == (3, 50)
    logits.square().sum().backward()
    assert all(parameter.grad.any() for parameter in module.parameters())
    with pytest.raises(KeyError, match="weight"):
        module.weight = nn.Parameter(torch.zeros(50, 4))


def test_it_is_not_built_without_a_table() -> None:
    with pytest.raises(ValueError, match="num_embeddings must be at least 1, got 0"):
        CompressedEmbedding(0, 4, embcomp.HashingTrick(rows=5))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.complex64, "float32"])
@pytest.mark.parametrize("method", [embcomp.LowBit(bits=4), embcomp.Full()], ids=str)
def test_dtypes_that_rows_cannot_be_trained_in_are_refused_by_name(dtype, method) -> None:
    with pytest.raises(ValueError, match=rf"dtype must be one of torch\.float32, .*, got '?{dtype}"):
        CompressedEmbedding(10, 4, method, dtype=dtype)


def test_it_is_an_embedding_table() -> None:
    assert issubclass(CompressedEmbedding, CompressedTable)
