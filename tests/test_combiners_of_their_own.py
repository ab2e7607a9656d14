"""Combiners that no part of the library knows: warm starts by their derivatives, parameters that are the model's."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import embcomp
from embcomp.compress.warm import warm_start
from embcomp.methods.base import METHODS, Chunk, Combiner, Method, Plan, Store, Table, TablePlan
from embcomp.methods.quotient_remainder import QuotientRemainderEncoder
from embcomp.torchrec import CompressedEmbeddingBagCollection, fuse_
from embcomp.trained import Trained


class Difference(Combiner):
    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return chunks[0] - chunks[1]

    def dim(self, dims: Sequence[int]) -> int:
        return dims[0]


class Scaled(Difference):
    """The difference, each column times a learned factor."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.full((dim,), 0.5))

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return self.factors * (chunks[0] - chunks[1])


class Larger(Difference):
    linear = False

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return torch.maximum(chunks[0], chunks[1])


class Far(Difference):
    """Vectors that nothing brings close to zero."""

    linear = False

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return 100.0 + (chunks[0] * chunks[1]).sigmoid()


@pytest.fixture
def pairs():
    @dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
    class Pairs(Method):
        """Quotient and remainder, combined by what is asked for."""

        kind: Any

        def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
            stores, plans = {}, []
            for table in tables:
                stores |= {f"{table.name}_{part}": Store(8, table.embedding_dim, summands=2) for part in "qr"}
                config = {**self.config(), "kind": self.kind.__name__}
                encoder = QuotientRemainderEncoder(table, config, 8)
                chunks = tuple(Chunk(f"{table.name}_{part}") for part in "qr")
                combiner = self.kind(table.embedding_dim) if self.kind is Scaled else self.kind()
                plans.append(TablePlan(table, encoder, chunks, combiner))
            return Plan(stores, plans)

        @classmethod
        def for_budget(cls, tables: Any, nbytes: Any, **fixed: Any) -> Self:
            return cls(**fixed)

    yield Pairs
    del METHODS["Pairs"]


def relative_error(method: Method, trained: Tensor) -> float:
    model = nn.ModuleDict({"t": nn.Embedding.from_pretrained(trained.clone(), freeze=False)})
    embcomp.compress_(model, {"t": method}, init="warm")
    lost = (model["t"].materialize().detach() - trained).square().sum()
    return float(lost / trained.square().sum())


@pytest.mark.parametrize("kind", [Difference, Scaled])
def test_a_difference_is_fitted_as_least_squares_fits_it(pairs: Any, kind: type) -> None:
    """It ended at 2.03 where zeros give 1."""
    trained = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(60)
    matrix = torch.zeros(60, 16).index_put((ids, ids // 8), torch.ones(60))
    matrix = matrix.index_put((ids, 8 + ids % 8), -torch.ones(60))
    best = matrix @ torch.linalg.lstsq(matrix, trained, driver="gelsd").solution
    expected = float((best - trained).square().sum() / trained.square().sum())
    assert relative_error(pairs(kind=kind), trained) == pytest.approx(expected, rel=0.02)


def test_a_combiner_that_is_not_linear_comes_closer_than_its_start(pairs: Any) -> None:
    torch.manual_seed(1)
    trained = torch.maximum(torch.randn(8, 4)[torch.arange(60) // 8], torch.randn(8, 4)[torch.arange(60) % 8])
    assert relative_error(pairs(kind=Larger), trained) < 0.4  # a random start is at about 1.4


def test_what_is_fitted_worse_than_by_zeros_is_refused(pairs: Any) -> None:
    with pytest.raises(ValueError, match=r"tables \['t'\]: the warm start misses .*Far cannot be fitted so.*fresh"):
        relative_error(pairs(kind=Far), torch.randn(60, 4))


def test_half_precision_and_counts_of_nothing_stay_as_they_were(pairs: Any) -> None:
    plan = pairs(kind=Difference).plan([Table("t", 60, 4)])
    stores = {name: torch.randn(8, 4, dtype=torch.float16) for name in plan.stores}
    before = {name: store.clone() for name, store in stores.items()}
    warm_start([Trained(plan.tables[0], torch.randn(60, 4), torch.zeros(60))], stores)
    assert all(torch.equal(stores[name], before[name]) for name in stores)


def test_what_a_combiner_learns_belongs_to_the_collection(pairs: Any) -> None:
    """It was in neither `parameters()` nor the state dict, and was never trained."""
    tables = [EmbeddingBagConfig(name="t", num_embeddings=60, embedding_dim=4, feature_names=["x"])]
    collection = CompressedEmbeddingBagCollection(tables, {"*": pairs(kind=Scaled)})
    names = [name for name, _ in collection.named_parameters() if name.endswith("factors")]
    assert len(names) == 1
    assert names[0] in collection.state_dict()
    assert embcomp.nbytes(collection) == 4 * (16 * 4 + 4) == pairs(kind=Scaled).plan([Table("t", 60, 4)]).nbytes()
    batch = KeyedJaggedTensor.from_lengths_sync(["x"], torch.tensor([1, 9, 30]), torch.tensor([2, 1]))
    for model in (collection, fuse_(collection, optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 0.1})):
        model.zero_grad()
        model(batch).values().square().sum().backward()
        (factors,) = [p for name, p in model.named_parameters() if name.endswith("factors")]
        assert factors.grad is not None
        assert factors.grad.abs().sum() > 0
    model = nn.ModuleDict({"t": nn.Embedding(60, 4)})
    report = embcomp.compress_(model, {"t": pairs(kind=Scaled)})
    assert report.bytes_after == embcomp.nbytes(model) == 4 * (16 * 4 + 4)
