"""What is special about product codes: nearest codes, books, gradients, bytes, k-means on trained tables, hot rows."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor, nn

import embcomp
from embcomp import ProductCodes, Table
from embcomp.codecs.product import bits_of
from embcomp.holders import coded_tables
from embcomp.methods.moved_rows import MovedRows, Place
from embcomp.nn import CompressedEmbedding
from embcomp.ops.packed_rows import pack_rows
from embcomp.ops.product_codes import decode, nearest_codes, nearest_codes_reference
from embcomp.serving.swap import swap


def books_by_hand(weight: Tensor, codec: nn.Module) -> np.ndarray:
    """mean(rows) + deviation(rows) * books, [parts, codes, width]."""
    values, books = weight.detach().double(), codec.books.detach().double()
    books = values.mean() + values.std(correction=0) * books
    return books.view(codec.product.parts, codec.product.codes, -1).numpy()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), st.booleans(), st.integers(0, 2**31))
def test_nearest_codes_by_brute_force(parts: int, codes: int, width: int, few: bool, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    values, books = (torch.randn(*shape, generator=draw) for shape in ((2, 7, parts * width), (parts, codes, width)))
    allowed = torch.randint(1, codes + 1, (2, 7), generator=draw) if few else None
    found = nearest_codes(values, books, allowed)
    assert torch.equal(found, nearest_codes_reference(values, books, allowed))
    assert torch.equal(found, nearest_codes(values.double(), books.double(), allowed))  # not compiled
    for place in np.ndindex(2, 7):
        for part in range(parts):
            own = values[place][part * width : (part + 1) * width].double()
            most = codes if allowed is None else int(allowed[place])
            distances = (books[part, :most].double() - own).square().sum(1)
            assert distances[found[(*place, part)]] <= distances.min() + 1e-6


def test_vectors_are_those_of_the_nearest_codes() -> None:
    torch.manual_seed(0)
    module = CompressedEmbedding(50, 12, ProductCodes(parts=4, codes=5))
    ((weight, codec),) = coded_tables(module)
    books, vectors = books_by_hand(weight, codec), module.materialize().detach().numpy()
    for row, vector in zip(weight.detach().double().numpy(), vectors, strict=True):
        for part in range(4):
            own = slice(3 * part, 3 * part + 3)
            nearest = books[part][np.square(books[part] - row[own]).sum(1).argmin()]
            np.testing.assert_allclose(vector[own], nearest, rtol=1e-5, atol=1e-6)


def test_gradients_go_straight_through_to_rows_and_to_the_codes_of_each() -> None:
    """Chen et al. 2020, DPQ-VQ: the derivative for a row is that of its vector; a code sums those of its rows."""
    torch.manual_seed(1)
    module = CompressedEmbedding(20, 6, ProductCodes(parts=3, codes=4)).double()
    ((weight, codec),) = coded_tables(module)
    ids, grad = torch.tensor([3, 7, 3, 0]), torch.randn(4, 6, dtype=torch.float64)
    for_rows, for_books = torch.autograd.grad(module(ids), (weight, codec.books), grad)
    torch.testing.assert_close(for_rows, torch.zeros(20, 6, dtype=torch.float64).index_add_(0, ids, grad))
    codes, expected = codec.code(weight).codes.long(), torch.zeros(3, 4, 2, dtype=torch.float64)
    for i, each in zip(ids.tolist(), grad, strict=True):
        for part in range(3):
            expected[part, codes[i, part]] += each[2 * part : 2 * part + 2] * weight.std(correction=0)
    torch.testing.assert_close(for_books, expected.view(12, 2).detach())


def test_bytes_of_both_forms() -> None:
    tables = [Table("a", 1000, 16)]
    plan = ProductCodes(parts=8, codes=32).plan(tables)
    assert plan.training_nbytes() == 4 * (1000 * 16 + 32 * 16)
    assert plan.served_nbytes() == 1000 * 5 + 4 * 32 * 16  # 8 codes of 5 bits
    hot = ProductCodes(parts=8, codes=128, hot=0.1, cold_codes=64, counts=torch.arange(1000))
    maps = 16 * 12  # a bit for each row, in words of 64, and 4 bytes for each word
    assert hot.plan(tables).served_nbytes() == 1000 * 6 + 100 * 1 + 4 * 128 * 16 + maps
    assert hot.plan(tables).sizes == hot.sizes(tables)
    unified = ProductCodes(parts=2, codes=16, of=embcomp.UnifiedEmbedding(rows=100, chunk_dim=4))
    assert unified.plan([Table("a", 50, 8), Table("b", 70, 12)]).served_nbytes() == 100 * 1 + 4 * 16 * 4 + 8 * 5


def test_books_of_all_tables() -> None:
    sizes = {"user": 60, "item": 40, "gender": 2}
    model = nn.ModuleDict({name: nn.Embedding(number, 8) for name, number in sizes.items()})
    report = embcomp.compress_(model, {"*": ProductCodes(parts=4, codes=16, share_books="all")})
    ((weight, _),) = coded_tables(model)
    assert weight.shape == (102, 8)
    assert report.served_nbytes == embcomp.served_nbytes(model) == 102 * 2 + 4 * 16 * 8
    read = [table.encoder(torch.arange(table.num_embeddings))[0].rows for table in model.values()]
    assert sorted(torch.cat(read).flatten().tolist()) == list(range(102))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=200), st.integers(0, 9), st.integers(0, 9))
def test_hot_rows_lie_in_front(hot: list[bool], first_hot: int, first: int) -> None:
    table, full = Table("a", len(hot), 4), embcomp.Full()
    inner = full.plan([table]).tables[0].encoder
    place = Place(first, torch.tensor(hot), first_hot)
    rows = MovedRows(inner, {}, table, {"a": place}, ["a"])(torch.arange(len(hot)))[0].rows.flatten().tolist()
    expected = [first_hot + sum(hot[:i]) if hot[i] else first + i - sum(hot[:i]) for i in range(len(hot))]
    assert rows == expected


def test_rarely_read_rows_have_fewer_codes() -> None:
    torch.manual_seed(2)
    counts = torch.randint(1000, (300,)).float()
    method = ProductCodes(parts=2, codes=32, hot=0.2, cold_codes=4, counts=counts)
    model = nn.Sequential(CompressedEmbedding(300, 8, method))
    vectors = model[0].materialize().detach()
    assert embcomp.served_nbytes(model) == 300 // 2 + 60 * 6 // 8 + 4 * 32 * 8 + 12 * 5
    cold = counts.argsort(descending=True, stable=True)[60:]
    for part in (slice(0, 4), slice(4, 8)):
        assert len(vectors[cold, part].unique(dim=0)) <= 4 < len(vectors[:, part].unique(dim=0))
    store = swap(model, "int8").model[0].stores[0]
    low, high = (int.from_bytes(packed.numpy().tobytes(), "little") for packed in (store.table, store.more))
    codes = np.array([[low >> 2 * (2 * row + part) & 3 for part in (0, 1)] for row in range(300)])
    codes[:60] += 4 * np.array([[high >> 3 * (2 * row + part) & 7 for part in (0, 1)] for row in range(60)])
    by_hand = np.concatenate([store.books[part].numpy()[codes[:, part]] for part in (0, 1)], 1)
    rows = model[0].encoder(torch.arange(300))[0].rows.flatten()
    np.testing.assert_array_equal(by_hand[rows], vectors.numpy())


class Drops(nn.Module):
    """Books of two tables, hot rows that are added up, and a multi-hot bag."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        shared, counts = ProductCodes(parts=2, codes=12, share_books="all"), torch.arange(50)
        self.tables = nn.ModuleDict({"a": nn.Embedding(50, 8), "b": nn.Embedding(3, 8)})
        embcomp.compress_(self.tables, {"*": shared})
        of = embcomp.MultiHash(rows=20, num_hashes=2)
        hot = ProductCodes(parts=4, codes=7, of=of, hot=0.3, cold_codes=3, counts=counts)
        self.bag = embcomp.nn.CompressedEmbeddingBag(50, 8, hot, mode="mean")

    def forward(self, ids: Tensor, offsets: Tensor) -> list[Tensor]:
        return [self.tables["a"](ids), self.tables["b"](ids % 3), self.bag(ids, offsets)]


def test_programs_hold_packed_codes_and_books(tmp_path: Path) -> None:
    model, call = Drops().eval(), (torch.arange(9), torch.tensor([0, 2, 2]))
    report = embcomp.export(model, tmp_path / "m.pt2", call)
    assert report.needs == ("torch",)
    assert report.bytes_exported == embcomp.served_nbytes(model)
    assert report.bytes_trained == embcomp.training_nbytes(model)
    program = torch.export.load(report.path).module()
    ids = torch.randint(50, (30,))
    for answer, wanted in zip(
        program(ids, torch.tensor([0, 1, 20])), model(ids, torch.tensor([0, 1, 20])), strict=True
    ):
        torch.testing.assert_close(answer, wanted, rtol=1e-6, atol=1e-6)


def test_fitted_books_are_as_good_as_those_of_scikit_learn() -> None:
    torch.manual_seed(3)
    trained = torch.randn(500, 8) * torch.linspace(0.2, 2.0, 8) + torch.randn(1, 8)
    model = nn.ModuleDict({"a": nn.Embedding.from_pretrained(trained.clone())})
    report = embcomp.compress_(model, {"a": ProductCodes(parts=4, codes=16)}, init="fit")
    assert report.served_nbytes == 500 * 2 + 4 * 16 * 8
    lost = float((model["a"].materialize().detach() - trained).square().sum())
    parts = trained.numpy().reshape(500, 4, 2)
    theirs = sum(KMeans(16, n_init=4, random_state=0).fit(parts[:, part]).inertia_ for part in range(4))
    assert lost <= 1.05 * theirs


def test_parts_with_fewer_different_values_than_codes_are_exact() -> None:
    trained = torch.randint(3, (90, 4)).float()
    model = nn.ModuleDict({"a": nn.Embedding.from_pretrained(trained.clone())})
    embcomp.compress_(model, {"a": ProductCodes(parts=2, codes=32)}, init="fit")
    torch.testing.assert_close(model["a"].materialize(), trained)


def test_books_keep_up_with_rows_whoever_wrote_them() -> None:
    module = CompressedEmbedding(60, 8, ProductCodes(parts=4, codes=8))
    before = module.materialize().detach()
    with torch.no_grad():
        module.stores[0].weight.mul_(2.0**-9)
    torch.testing.assert_close(module.materialize(), before * 2.0**-9)


def test_codes_do_not_die() -> None:
    """Rows that start small learn vectors a hundred times larger; almost all codes are used, before and after."""
    torch.manual_seed(0)
    target = torch.randn(300, 8)
    model = nn.ModuleDict({"a": nn.Embedding(300, 8)})
    nn.init.normal_(model["a"].weight, std=0.01)
    embcomp.compress_(model, {"a": ProductCodes(parts=4, codes=16)})
    module = model["a"]
    ((weight, codec),) = coded_tables(module)
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-2)
    assert all(len(part.unique()) >= 14 for part in codec.code(weight).codes.t())
    for _ in range(200):
        optimizer.zero_grad()
        (module(torch.arange(300)) - target).square().mean().backward()
        optimizer.step()
    assert all(len(part.unique()) >= 14 for part in codec.code(weight).codes.t())
    assert float((module.materialize().detach() - target).square().mean()) < 0.25


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"parts": 3}, r"table 'a': parts=3 does not divide its rows of 8 values; choose a divisor of 8"),
        ({"codes": 21}, r"table 'a': 21 codes for its 20 rows are more codes than rows; choose fewer codes"),
        ({"codes": 257}, "codes must be an integer from 1 to 256, got 257"),
        ({"of": embcomp.LowBit(bits=4)}, r"table 'a': its rows are coded already \(Grid"),
        ({"hot": 0.5}, "hot=0.5 and cold_codes=None belong together"),
        ({"hot": 0.5, "cold_codes": 2}, "hot=0.5 needs the counts"),
        ({"hot": 0.5, "cold_codes": 9, "counts": torch.ones(20)}, "cold_codes=9 must be at most codes=4"),
        ({"hot": 0.1, "cold_codes": 1, "counts": torch.ones(20)}, r"4 codes for its 2 hot and 18 cold rows"),
        ({"hot": 0.5, "cold_codes": 2, "counts": torch.ones(9)}, r"table 'a': counts must have shape \[20\]"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(settings: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ProductCodes(**{"parts": 2, "codes": 4, **settings}).plan([Table("a", 20, 8)])


def test_few_rows_are_refused_with_a_remedy_that_is_left() -> None:
    tables = [Table("a", 3, 8), Table("b", 4, 8)]
    settings: dict = {"parts": 2, "codes": 8}
    with pytest.raises(ValueError, match=r"table 'a': 8 codes for its 3 rows .*, leave it out, share the books"):
        ProductCodes(**settings).plan(tables)
    with pytest.raises(ValueError, match=r"tables \['a', 'b'\]: 8 codes for their 7 rows .*leave them out, or take sm"):
        ProductCodes(**settings, share_books="all").plan(tables)
    with pytest.raises(ValueError, match=r"table 'a': 8 codes for its 3 rows .*leave it out, or take small='cap'"):
        ProductCodes(**settings, share_books="all").plan(tables[:1])
    unified = embcomp.UnifiedEmbedding(rows=7, chunk_dim=4)
    with pytest.raises(ValueError, match=r"8 codes for its 7 rows .*leave it out, or take small='cap'"):
        ProductCodes(**settings, of=unified).plan(tables)
    assert ProductCodes(**settings, share_books="all", small="cap").plan(tables).stores


def test_hot_rows_around_shared_ones_are_refused() -> None:
    unified = embcomp.UnifiedEmbedding(rows=30, chunk_dim=4)
    method = ProductCodes(parts=2, codes=4, of=unified, hot=0.5, cold_codes=2, counts=torch.ones(20))
    with pytest.raises(ValueError, match="those of UnifiedEmbedding share theirs; leave hot"):
        method.plan([Table("a", 20, 8)])


def test_what_learns_nothing_beside_its_rows_cannot_be_fitted() -> None:
    model = nn.ModuleDict({"a": nn.Embedding(50, 8), "b": nn.Embedding(50, 8)})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    methods = {"a": ProductCodes(parts=2, codes=4), "b": embcomp.HashingTrick(rows=20)}
    with pytest.raises(ValueError, match=r"table 'b': HashingTrick only learns rows.*init='warm'"):
        embcomp.compress_(model, methods, init="fit")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", [embcomp.LowBit(bits=4), embcomp.LowRank(rank=3)])
def test_other_methods_are_fitted_as_they_are_warmed(method: embcomp.Method) -> None:
    trained = torch.randn(80, 8)
    found = []
    for init in ("fit", "warm"):
        model = nn.ModuleDict({"a": nn.Embedding.from_pretrained(trained.clone(), freeze=False)})
        embcomp.compress_(model, {"a": method}, init=init)
        found.append(model["a"].materialize().detach())
    assert torch.equal(*found)


def test_budgets_choose_codes_or_rows() -> None:
    tables = [Table("a", 5000, 16), Table("b", 20, 16)]
    method = ProductCodes.for_budget(tables, 30_000, parts=8)
    more = dataclasses.replace(method, codes=method.codes + 1)
    assert method.plan(tables).served_nbytes() <= 30_000 < more.plan(tables).served_nbytes()
    hashed = ProductCodes.for_budget(tables, 20_000, parts=8, codes=16, of="HashingTrick")
    assert 20_000 - 8 < hashed.plan(tables).served_nbytes() <= 20_000
    trained = ProductCodes.for_budget(tables, 20_000, count="training", parts=8, codes=16, of="HashingTrick")
    assert 20_000 - 80 < trained.plan(tables).training_nbytes() <= 20_000
    with pytest.raises(ValueError, match=r"ProductCodes: a budget of 10 bytes is too small.* \d+ bytes"):
        ProductCodes.for_budget(tables, 10, parts=8)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 300), st.integers(0, 2**31))
def test_packed_codes_are_decoded_by_hand(parts: int, size: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    size = min(size, 256)
    codes, books = torch.randint(size, (11, parts), generator=draw), torch.randn(parts, size, 2, generator=draw)
    packed, rows = pack_rows(codes.to(torch.uint8), bits_of(size)), torch.randint(11, (6,), generator=draw)
    by_hand = torch.stack([torch.cat([books[p, codes[row, p]] for p in range(parts)]) for row in rows.tolist()])
    assert torch.equal(decode(packed, (bits_of(size), 0), books, rows), by_hand)
    weights, offsets = torch.rand(6, generator=draw), torch.tensor([0, 2, 2, 6])
    sums = torch.stack([part.sum(0) for part in (by_hand * weights.unsqueeze(1)).split([2, 0, 4])])
    torch.testing.assert_close(decode(packed, (bits_of(size), 0), books, rows, None, offsets, weights), sums)
    with pytest.raises((IndexError, RuntimeError), match=r"out of range|index out of"):
        decode(packed, (bits_of(size), 0), books, torch.tensor([99]))
