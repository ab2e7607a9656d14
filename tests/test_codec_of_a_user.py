"""A codec written by somebody else, in one file with its method, is trained and served, and keeps the contract."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import embcomp
from embcomp.methods import METHODS, Table, authoring
from embcomp.methods.authoring import CODINGS
from embcomp.nn import CompressedEmbedding, CompressedEmbeddingBag
from embcomp.serving.swap import swap
from embcomp.testing.checks import CHECKS
from embcomp.testing.drop_ins import D, N, bag, embedding, randomize
from embcomp.testing.example import Example
from embcomp.torchrec import CompressedEmbeddingBagCollection

PAGE = Path(__file__).parent.parent / "docs" / "add-a-method.md"
NAME = "byte_rows_of_the_page"


@pytest.fixture
def page(tmp_path: Path) -> Iterator[ModuleType]:
    """The codec of docs/add-a-method.md as a file of its own; what it registers is gone after the test."""
    before = dict(METHODS), dict(CODINGS)
    (code,) = (block for block in PAGE.read_text().split("```python\n")[1:] if "class ByteRows(" in block)
    (tmp_path / "byte_rows.py").write_text(code.split("```")[0])
    spec = importlib.util.spec_from_file_location(NAME, tmp_path / "byte_rows.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module  # pickling looks it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[NAME]
    for registry, names in zip((METHODS, CODINGS), before, strict=True):
        registry.clear()
        registry.update(names)


def examples(page: ModuleType) -> list[Example]:
    """The method around one row for each id, several, and rows of their own."""
    return [
        Example("ByteRows", lambda tables: page.ByteRows(of=embcomp.HashingTrick(rows=7))),
        Example("ByteRows-sum", lambda tables: page.ByteRows(of=embcomp.MultiHash(rows=7, num_hashes=3))),
        Example("ByteRows-full", lambda tables: page.ByteRows(of=embcomp.Full()), open_ids=False),
    ]


def test_the_page_says_where_its_names_are(page: ModuleType) -> None:
    tree = ast.parse(Path(str(page.__file__)).read_text())
    taken = {
        str(node.module): {alias.name for alias in node.names} for node in tree.body if isinstance(node, ast.ImportFrom)
    }
    ours = {module: names for module, names in taken.items() if module.startswith("embcomp")}
    assert ours.pop("embcomp.methods.authoring") <= set(authoring.__all__)
    assert not ours


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check, which: int, page: ModuleType) -> None:
    check(examples(page)[which])


def test_the_formula_of_the_page(page: ModuleType) -> None:
    module = CompressedEmbedding(3, 4, page.ByteRows(of=embcomp.Full()))
    (rows, *_) = module.parameters()
    with torch.no_grad():
        rows[:] = torch.tensor([[127.0, -12.4, 12.6, 0.0], [-2.54, 0.009, 0.011, 2.54], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[127.0, -12.0, 13.0, 0.0], [-2.54, 0.0, 0.02, 2.54], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(module.materialize(), expected)
    factors = torch.randn(3, 4)
    (module(torch.arange(3)) * factors).sum().backward()
    assert torch.equal(rows.grad, factors)  # straight through


@pytest.mark.parametrize("which", [0, 1, 2])
def test_it_is_served_as_it_was_trained(which: int, page: ModuleType) -> None:
    """Compare rows bit for bit, and sums of rows but for their order; the bytes are those that were announced."""
    example, ids = examples(page)[which], torch.arange(N)
    module = embedding(example).eval()
    served = swap(module, "int8").model
    assert {store.kind for store in served.stores} == {"8 bits"}
    assert sum(buffer.nbytes for buffer in served.buffers()) == embcomp.served_nbytes(module)
    if which == 1:
        torch.testing.assert_close(served(ids), module(ids))
    else:
        assert torch.equal(served(ids), module(ids))
    offsets, weights = torch.tensor([0, 3, 3]), torch.rand(N)
    for mode in ("sum", "mean", "max"):
        pooled = bag(example, mode=mode, padding_idx=5).eval()
        served_bag = swap(pooled, "int8").model
        torch.testing.assert_close(served_bag(ids, offsets), pooled(ids, offsets))
        if mode == "sum":
            torch.testing.assert_close(served_bag(ids, offsets, weights), pooled(ids, offsets, weights))


def test_export_and_compile(page: ModuleType, tmp_path: Path) -> None:
    method = page.ByteRows(of=embcomp.HashingTrick(rows=50))
    module, ids = randomize(CompressedEmbeddingBag(1000, D, method, mode="mean")), torch.randint(1000, (9, 3))
    report = embcomp.export(nn.Sequential(module), tmp_path / "model.pt2", (ids,))
    assert report.bytes_exported == embcomp.served_nbytes(module) == 50 * (D + 4) + 8
    assert report.needs == ("torch",)
    program = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(program(ids[:4]), module(ids[:4]))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids), module(ids))


def test_torchrec(page: ModuleType) -> None:
    """Weighted bags are those of the rounded rows, and train the rows."""
    tables = [EmbeddingBagConfig(name="item", num_embeddings=30, embedding_dim=D, feature_names=["item"])]
    method = page.ByteRows(of=embcomp.HashingTrick(rows=9))
    collection = randomize(CompressedEmbeddingBagCollection(tables, {"*": method}, is_weighted=True))
    (rows,) = collection.parameters()
    ids, weights = torch.tensor([1, 2, 29]), torch.tensor([1.0, 2.0, 3.0])
    out = collection(KeyedJaggedTensor(["item"], ids, weights, torch.tensor([2, 1]))).values()
    (read,) = method.plan([Table("item", 30, D)]).tables[0].encoder(ids)
    scale = rows.abs().amax(1, keepdim=True) / 127
    vectors = ((rows / scale).round() * scale)[read.rows.squeeze(1)] * weights.unsqueeze(1)
    torch.testing.assert_close(out, torch.stack([vectors[0] + vectors[1], vectors[2]]))
    out.sum().backward()
    assert rows.grad is not None


def test_coded_rows_are_refused(page: ModuleType) -> None:
    with pytest.raises(ValueError, match="table 'item': its rows are coded already"):
        page.ByteRows(of=embcomp.LowBit(bits=4)).plan([Table("item", 30, D)])
