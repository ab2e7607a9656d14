"""A method written by somebody else, in one file, works in all places and keeps the contract."""

import ast
import importlib.util
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor

import embcomp
from embcomp.methods import authoring
from embcomp.methods.authoring import (
    METHODS,
    Chunk,
    Combiner,
    Encoder,
    Method,
    Plan,
    Rows,
    Store,
    Table,
    TablePlan,
    largest_within,
)
from embcomp.testing.checks import CHECKS
from embcomp.testing.drop_ins import N, embedding, randomize
from embcomp.testing.example import Example
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection

PAGE = Path(__file__).parent.parent / "docs" / "add-a-method.md"


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[ModuleType]:
    """The method of docs/add-a-method.md, its first block of code, as a file of its own."""
    code = PAGE.read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "signed.py").write_text(code)
    spec = importlib.util.spec_from_file_location("signed_of_the_page", tmp_path / "signed.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["signed_of_the_page"] = module  # pickling looks it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["signed_of_the_page"]


class ResidueEncoder(Encoder):
    """id -> (id mod rows, id mod (rows + 1))."""

    def __init__(self, table: Table, config: dict[str, Any], rows: int) -> None:
        super().__init__(table, config)
        self.rows = rows

    def encode(self, ids: Tensor) -> list[Rows]:
        return [Rows((ids % self.rows).unsqueeze(-1)), Rows((ids % (self.rows + 1)).unsqueeze(-1))]


class Larger(Combiner):
    """The larger of two vectors in each coordinate: not linear, and of no known kind."""

    linear = False

    def __call__(self, chunks: Sequence[Tensor]) -> Tensor:
        return torch.maximum(chunks[0], chunks[1])

    def dim(self, dims: Sequence[int]) -> int:
        return dims[0]


def residues() -> type[Method]:
    """Two tables, a combiner of its own, stores shared by a group. Defined (and registered) when this is called."""

    @dataclass(frozen=True, kw_only=True, eq=False)
    class Residues(Method):
        shares_store = True
        rows: int

        def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
            (dim,) = {table.embedding_dim for table in tables}
            first, second = f"{group}_p", f"{group}_q"
            stores = {first: Store(self.rows, dim), second: Store(self.rows + 1, dim)}
            chunks = (Chunk(first), Chunk(second))
            return Plan(
                stores,
                [
                    TablePlan(table, ResidueEncoder(table, self.config(), self.rows), chunks, Larger())
                    for table in tables
                ],
            )

        @classmethod
        def for_budget(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Self:
            return largest_within(tables, nbytes, lambda rows: cls(rows=rows, **fixed))

    return Residues


def test_the_page_imports_from_the_module_for_authors_alone(page: ModuleType) -> None:
    tree = ast.parse(Path(str(page.__file__)).read_text())
    taken = {
        node.module: [alias.name for alias in node.names] for node in tree.body if isinstance(node, ast.ImportFrom)
    }
    ours = [module for module in taken if str(module).startswith("embcomp")]
    assert ours == ["embcomp.methods.authoring"]
    assert set(taken[ours[0]]) <= set(authoring.__all__)


def test_defining_it_registers_it(page: ModuleType) -> None:
    assert METHODS["SignedHash"] is page.SignedHash
    cls = residues()
    assert METHODS["Residues"] is cls


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_method_of_the_page_keeps_the_contract(check, page: ModuleType) -> None:
    check(Example("SignedHash", lambda tables: page.SignedHash(rows=7)))


# Its one store has one width, and that check asks for budgets of tables of several widths.
@pytest.mark.parametrize(
    "check", [check for check in CHECKS if check.__name__ != "budgets_are_filled_and_never_exceeded"],
    ids=lambda check: check.__name__,
)  # fmt: skip
def test_a_method_with_a_combiner_of_its_own_keeps_the_contract(check) -> None:
    cls = residues()
    check(Example("Residues", lambda tables: cls(rows=5)))


def test_the_formula_of_the_page(page: ModuleType) -> None:
    module = embedding(Example("SignedHash", lambda tables: page.SignedHash(rows=7, num_hashes=3)))
    ((rows, signs),) = module.encoder(torch.arange(N))
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    (table,) = module.parameters()
    expected = (signs.unsqueeze(-1) * table[rows]).sum(1)
    torch.testing.assert_close(module.materialize(), expected)


def models() -> list[Method]:
    return [METHODS["SignedHash"](rows=20), residues()(rows=20)]


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("init", ["fresh", "warm"])
def test_compress(which: int, init: str) -> None:
    method = models()[which]
    model = nn.ModuleDict({"user": nn.Embedding(60, 8), "film": nn.Embedding(N, 8), "tags": nn.EmbeddingBag(30, 8)})
    before = embcomp.nbytes(model)
    report = embcomp.compress_(model, {"*": method}, init=init)
    assert before - embcomp.nbytes(model) == report.bytes_before - report.bytes_after
    assert {table.method for table in report.tables} == {type(method).__name__}
    assert (model["user"].stores[0] is model["film"].stores[0]) == method.shares_store
    model["user"](torch.arange(60)).sum().backward()


def test_a_warm_start_reaches_least_squares(page: ModuleType) -> None:
    """Signs are weights: a mean that took them for counts would divide by what cancels."""
    vectors = torch.randn(60, 4, dtype=torch.float64)
    for k in (1, 2):
        model = nn.ModuleDict({"t": nn.Embedding.from_pretrained(vectors.float())})
        embcomp.compress_(model, {"t": page.SignedHash(rows=15, num_hashes=k)}, init="warm")
        ((rows, signs),) = model["t"].encoder(torch.arange(60))
        design = torch.zeros(60, 15, dtype=torch.float64)
        design.scatter_add_(1, rows, signs.double())
        best = design @ torch.linalg.lstsq(design, vectors, driver="gelsd").solution
        got = model["t"].materialize().detach().double()
        assert (got - vectors).square().sum() < 1.001 * (best - vectors).square().sum()


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize("which", [0, 1])
def test_torchrec(which: int) -> None:
    """Bags, weighted bags and sequences equal what the encoder and the stores say, table by table."""
    method = models()[which]
    names = ["user", "film"]
    batch = KeyedJaggedTensor(
        keys=names, values=torch.tensor([1, 2, 3, 3, 0, 29]), lengths=torch.tensor([2, 0, 1, 2, 1, 0]),
        weights=torch.tensor([1.0, 2, 3, 4, 5, 6]),
    )  # fmt: skip
    plain = KeyedJaggedTensor(keys=names, values=batch.values(), lengths=batch.lengths())

    def vectors(ids: Tensor, name: str, stores: dict[str, Tensor]) -> Tensor:
        part = method.plan([Table(n, 30, 8) for n in names]).tables[names.index(name)]
        read = part.encoder(ids)
        chunks = [
            (stores[chunk.store][rows] * (1 if weights is None else weights.unsqueeze(-1))).sum(1)
            for chunk, (rows, weights) in zip(part.chunks, read, strict=True)
        ]
        return part.combiner(chunks)

    def stores_of(collection: nn.Module) -> dict[str, Tensor]:
        return {key.split(".")[-2]: value for key, value in collection.named_parameters()}

    for weighted in (False, True):
        configs = [EmbeddingBagConfig(name=n, num_embeddings=30, embedding_dim=8, feature_names=[n]) for n in names]
        collection = randomize(CompressedEmbeddingBagCollection(configs, {"*": method}, is_weighted=weighted))
        out = collection(batch if weighted else plain).to_dict()
        for name in names:
            each = vectors(batch[name].values(), name, stores_of(collection))
            if weighted:
                each = each * batch[name].weights().unsqueeze(-1)
            offsets = batch[name].offsets().tolist()
            expected = torch.stack([each[a:b].sum(0) for a, b in itertools.pairwise(offsets)])
            torch.testing.assert_close(out[name], expected)
    sequences = [EmbeddingConfig(name=n, num_embeddings=30, embedding_dim=8, feature_names=[n]) for n in names]
    collection = randomize(CompressedEmbeddingCollection(sequences, {"*": method}))
    for name, jagged in collection(plain).items():
        torch.testing.assert_close(jagged.values(), vectors(batch[name].values(), name, stores_of(collection)))
    assert embcomp.nbytes(collection) == method.plan([Table(n, 30, 8) for n in names]).nbytes()


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize("which", [0, 1])
def test_budget_compile_and_export(which: int) -> None:
    cls = type(models()[which])
    tables = [Table("embedding", 5000, 8)]
    method = cls.for_budget(tables, 20_000)
    module = embcomp.nn.CompressedEmbeddingBag(5000, 8, method, mode="mean")
    assert 0.98 * 20_000 <= embcomp.nbytes(module) <= 20_000
    ids, offsets = torch.randint(5000, (9,)), torch.tensor([0, 4, 4])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids, offsets), module(ids, offsets))
    many = torch.export.Dim("ids", min=2)
    exported = torch.export.export(module, (ids, offsets), dynamic_shapes=({0: many}, None)).module()
    torch.testing.assert_close(exported(ids[:5], offsets), module(ids[:5], offsets))
