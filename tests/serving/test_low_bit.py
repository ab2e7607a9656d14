"""Tables that were trained in few bits, as they are served: decoded by hand from the bytes of the file."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor

import embcomp
from embcomp import LowBit
from embcomp.holders import coded_tables
from embcomp.nn import CompressedEmbedding, CompressedEmbeddingBag
from embcomp.ops import grid_rows
from embcomp.ops.grid_rows import grid_bags, grid_bags_by_torch, grid_bags_reference
from embcomp.ops.packed_rows import pack_rows, packed_nbytes, read_rows
from embcomp.serving.report import table_lines
from embcomp.serving.swap import swap
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection, fuse_


def by_hand(table: Tensor, bits: int, dim: int, steps: list[float], shared: int) -> Tensor:
    """Value j of row i: step * (code + 1/2 - 2^(bits-1)), the code bits from (i * dim + j) * bits of the stream."""
    rows, stream = [], int.from_bytes(bytes(table.flatten().tolist()), "little")
    for i in range(table.numel() * 8 // (dim * bits)):
        codes = [(stream >> ((i * dim + j) * bits)) % 2**bits for j in range(dim)]
        rows.append(
            [np.float32(steps[i // shared if shared else 0]) * np.float32(c + 0.5 - 2 ** (bits - 1)) for c in codes]
        )
    return torch.from_numpy(np.array(rows, dtype=np.float32).reshape(-1, dim))


WIDTHS = st.one_of(st.integers(1, 37), st.sampled_from([16, 32, 48, 64, 80, 112, 128, 168]))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), WIDTHS, st.sampled_from([0, 1, 3]), st.booleans(), st.integers(0, 2**31))
@example(3, 5, 0, True, 0)
@example(4, 16, 0, False, 1)
@example(2, 128, 1, True, 2)
@example(4, 120, 0, False, 3)  # blocks of 64, 32, 16 values, and what is left
@example(2, 124, 0, False, 4)
@example(1, 120, 0, False, 5)
def test_packed_rows_and_their_bags(bits: int, dim: int, shared: int, weighted: bool, seed: int) -> None:
    random, count = torch.Generator().manual_seed(seed), 7
    codes = torch.randint(2**bits, (count, dim), generator=random).to(torch.uint8)
    packed = pack_rows(codes, bits)
    together = next(n for n in (1, 2, 4, 8) if n * dim * bits % 8 == 0)
    assert packed.numel() == packed_nbytes(count, dim, bits) == -(-count // together) * together * dim * bits // 8
    assert torch.equal(read_rows(packed, bits, dim, torch.arange(count)), codes)
    step = torch.rand(1 if shared == 0 else -(-count // shared), generator=random)
    held = by_hand(packed, bits, dim, [*step.tolist()] * 9, shared)[:count]
    rows = torch.randint(count, (45,), generator=random)
    weights = torch.rand(45, generator=random) if weighted else None
    each = held[rows] if weights is None else held[rows] * weights.unsqueeze(1)
    offsets = torch.tensor([0, 0, 1, 9, 45])
    sums = torch.stack([part.double().sum(0) for part in each.split([0, 1, 8, 36])]).float()
    for form in (grid_bags, grid_bags_reference):
        found = form(packed, bits, dim, step, shared, rows, None, weights)
        assert torch.equal(found, each) if weights is None else torch.allclose(found, each)
        close = {"rtol": 1e-5, "atol": 1e-5 * 2**bits}
        torch.testing.assert_close(form(packed, bits, dim, step, shared, rows, offsets, weights), sums, **close)
        if weights is None:
            mean = sums / torch.tensor([[1], [1], [8], [36]])
            torch.testing.assert_close(
                form(packed, bits, dim, step, shared, rows, offsets, None, "mean"), mean, **close
            )
            most = torch.stack([part.amax(0) if len(part) else part.sum(0) for part in each.split([0, 1, 8, 36])])
            assert torch.equal(form(packed, bits, dim, step, shared, rows, offsets, None, "max"), most)
        with pytest.raises((IndexError, RuntimeError), match=r"out of range|index out of"):
            form(packed, bits, dim, step, shared, torch.tensor([0, -(-count // together) * together]))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([2, 4]), st.integers(1, 20), st.sampled_from([0, 1, 3]), st.booleans(), st.integers(0, 2**31))
def test_torchs_own_kernel_for_bags_is_the_same(bits: int, bytes_: int, shared: int, weighted: bool, seed: int) -> None:
    random, dim = torch.Generator().manual_seed(seed), 8 // bits * bytes_
    codes = torch.randint(2**bits, (50, dim), generator=random).to(torch.uint8)
    packed, step = pack_rows(codes, bits), torch.rand(1 if shared == 0 else 50, generator=random)
    rows = torch.randint(50, (45,), generator=random)
    weights = torch.randn(45, generator=random) if weighted else None
    for mode in ("sum",) if weighted else ("sum", "mean"):
        given_ = (packed, bits, dim, step, shared, rows, torch.tensor([0, 0, 1, 9, 45]), weights, mode)
        torch.testing.assert_close(grid_bags_by_torch(*given_), grid_bags_reference(*given_), rtol=1e-5, atol=1e-4)
    alone = (packed, bits, dim, step, shared, rows, None, weights)
    torch.testing.assert_close(grid_bags_by_torch(*alone), grid_bags_reference(*alone), rtol=1e-6, atol=1e-6)
    with pytest.raises((IndexError, RuntimeError), match=r"out of range|index out of"):
        grid_bags_by_torch(packed, bits, dim, step, shared, torch.tensor([0, 50]), torch.tensor([0, 2]))


@pytest.mark.parametrize("shared", [0, 1])
def test_torchs_own_kernel_takes_scattered_memory_and_refuses_what_does_not_fit(shared: int) -> None:
    """The kernel itself reads weights as if they lay side by side, and beyond their end."""
    packed, step = pack_rows(torch.randint(16, (20, 8)).to(torch.uint8), 4), torch.rand(20 if shared else 1)
    rows, offsets, weights = torch.arange(20)[::2], torch.tensor([0, 9, 3, 9, 8, 9])[::2], torch.randn(20)
    for own in (None, weights[::2], weights[:1].expand(10)):
        given_ = (packed, 4, 8, step, shared, rows, offsets, own)  # two look-ups are in no bag
        torch.testing.assert_close(grid_bags_by_torch(*given_), grid_bags_reference(*given_))
    for wrong in (weights[:7], weights[:10].double()):
        with pytest.raises(ValueError, match="weights must be contiguous"):
            grid_bags_by_torch(packed, 4, 8, step, shared, rows, offsets, wrong)
    for bounds in ([0, 3, 12], [0, 5, 3, 10]):
        with pytest.raises(ValueError, match="offsets must rise from 0 to at most 10"):
            grid_bags_by_torch(packed, 4, 8, step, shared, rows, torch.tensor(bounds))


@pytest.mark.parametrize("bounds", [[0, 3, 12], [0, 5, 3, 10], [-1, 4]])
def test_bags_that_reach_beyond_the_look_ups_are_refused(bounds: list[int]) -> None:
    packed, rows = pack_rows(torch.ones(20, 8, dtype=torch.uint8), 4), torch.arange(10)
    with pytest.raises(ValueError, match="offsets must rise from 0 to at most 10"):
        grid_bags(packed, 4, 8, torch.ones(1), 0, rows, torch.tensor(bounds))
    with pytest.raises(ValueError, match="not be empty"):
        grid_bags(packed, 4, 8, torch.ones(1), 0, rows, torch.tensor([], dtype=torch.long))
    with pytest.raises(IndexError, match="row 20 is out of range, the table has 20 rows"):
        grid_bags(packed, 4, 8, torch.ones(20), 1, rows + 11)
    with pytest.raises(IndexError, match="row 6 is out of range"):  # its step is missing
        grid_bags(packed, 4, 8, torch.ones(2), 3, rows)


def test_the_memory_that_torchs_kernel_reads_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """In inference mode or not, for more rows and fewer, in two threads at once, beyond what is kept."""
    random = torch.Generator().manual_seed(0)
    monkeypatch.setattr(grid_rows, "_LINES", grid_rows._Lines())
    monkeypatch.setattr(grid_rows, "_KEPT", 2000)
    tables = [(bits, dim, torch.randint(2**bits, (50, dim), generator=random)) for bits in (2, 4) for dim in (32, 64)]
    packed = [(pack_rows(codes.to(torch.uint8), bits), bits, dim) for bits, dim, codes in tables]

    def holds(seed: int, count: int) -> bool:
        own = torch.Generator().manual_seed(seed)
        rows, offsets = torch.randint(50, (count,), generator=own), torch.tensor([0, count // 2, count])
        given_ = [(*each, torch.rand(1, generator=own), 0, rows, offsets) for each in packed]
        found = [grid_bags_by_torch(*each) for each in given_]  # all before the first comparison
        return all(torch.allclose(f, grid_bags_reference(*g), atol=1e-4) for f, g in zip(found, given_, strict=True))

    with torch.inference_mode():
        assert holds(0, 10)
    assert all(holds(seed, count) for seed, count in enumerate((8, 20, 3, 500, 11)))
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(holds, range(200), [7, 13] * 100))


@pytest.mark.parametrize("bits", [2, 4])
def test_bags_that_begin_later_leave_the_first_look_ups_out(bits: int) -> None:
    packed, step = pack_rows(torch.randint(2**bits, (20, 8)).to(torch.uint8), bits), torch.rand(1)
    rows, offsets = torch.randint(20, (12,)), torch.tensor([3, 5, 5, 10])
    for mode in ("sum", "mean"):
        cut = grid_bags_reference(packed, bits, 8, step, 0, rows[3:10], offsets - 3, None, mode)
        for form in (grid_bags, grid_bags_by_torch):
            torch.testing.assert_close(form(packed, bits, 8, step, 0, rows, offsets, None, mode), cut)


@pytest.mark.parametrize("dim", [8, 16, 32, 24])
def test_look_ups_in_packed_rows_compile_as_a_whole(dim: int) -> None:
    packed, step = pack_rows(torch.randint(16, (20, dim)).to(torch.uint8), 4), torch.rand(1)
    rows, offsets = torch.randint(20, (12,)), torch.tensor([0, 5, 12])
    compiled = torch.compile(lambda r, o: grid_bags(packed, 4, dim, step, 0, r, o), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(rows, offsets), grid_bags(packed, 4, dim, step, 0, rows, offsets))


def test_lines_that_do_not_begin_at_a_word_are_read() -> None:
    """A table may be a part of a larger buffer, as files that are read at once give it."""
    for width, count in ((4, 5), (8, 5), (16, 5), (24, 2**19)):  # the last beyond what is taken for the cache
        buffer = torch.randint(256, (3 + count * width,), dtype=torch.uint8)
        packed, rows = buffer[3:].view(count, width), torch.tensor([4, 0])
        found = read_rows(packed, 8, width, rows), grid_bags(packed, 8, width, torch.ones(1), 0, rows)
        assert torch.equal(found[0], packed[rows])
        assert torch.equal(found[1], packed[rows] - 127.5)


def test_without_compiled_functions_bags_go_by_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, rows, bounds = pack_rows(torch.ones(5, 8, dtype=torch.uint8), 4), torch.tensor([1, 4]), torch.tensor([0, 2])
    expected = grid_bags(packed, 4, 8, torch.tensor([0.5]), 0, rows, bounds)
    calls = []
    monkeypatch.setattr("embcomp.ops.native.library", lambda: None)
    monkeypatch.setattr(grid_rows, "grid_bags_by_torch", lambda *a: calls.append(1) or grid_bags_by_torch(*a))
    assert torch.equal(grid_rows.grid_bags(packed, 4, 8, torch.tensor([0.5]), 0, rows, bounds), expected)
    assert calls == [1]


class Drops(nn.Module):
    """A drop-in for each number of bits, kind of step and combiner, odd widths among them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        of = {"own": embcomp.Full(), "sum": embcomp.MultiHash(rows=30), "qr": embcomp.QuotientRemainder()}
        settings = [
            (bits, ("table", "row", 7)[bits % 3], list(of)[bits % 3 - 1], (5, 8, 11)[bits % 3]) for bits in range(1, 9)
        ]
        self.bags = nn.ModuleList(
            CompressedEmbeddingBag(90, dim, LowBit(bits=bits, step=step, of=of[inner]), mode=mode)  # pyright: ignore
            for (bits, step, inner, dim), mode in zip(settings, ("sum", "mean", "max") * 3, strict=False)
        )
        self.rows = CompressedEmbedding(
            90, 6, LowBit(bits=3, of=embcomp.UnifiedEmbedding(rows=40, chunk_dim=3)), padding_idx=4
        )

    def forward(self, ids: Tensor, offsets: Tensor) -> list[Tensor]:
        return [bag(ids, offsets) for bag in self.bags] + [self.rows(ids)]


def test_programs_of_drop_ins(tmp_path: Path) -> None:
    model = Drops().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = embcomp.export(model, tmp_path / "m.pt2", (torch.arange(5), torch.tensor([0, 2, 2])))
    assert report.needs == ("torch",)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert report.bytes_exported == embcomp.served_nbytes(model)
    assert report.bytes_trained == embcomp.training_nbytes(model)
    assert [table.dtypes for table in report.tables[:3]] == [("1 bit",), ("2 bits",), ("3 bits",)]
    program = torch.export.load(report.path)
    held = [*program.state_dict.values(), *(c for c in program.constants.values() if isinstance(c, Tensor))]
    assert sum(t.nbytes for t in {t.data_ptr(): t for t in held if t.numel()}.values()) == report.bytes_exported
    operators = {
        node.target.namespace for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)
    }
    assert operators == {"aten"}
    eager = swap(model, "int8").model
    for ids, offsets in ((torch.randint(90, (9,)), [0, 1, 1, 5]), (torch.randint(90, (0,)), [0, 0])):
        call = (ids, torch.tensor(offsets))
        for wanted, answer, mine in zip(model(*call), program.module()(*call), eager(*call), strict=True):
            torch.testing.assert_close(answer, wanted, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_programs_of_collections(fused: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    keys = ["user", "item", "seen"]

    def configs(kind: type) -> list:
        return [kind(name="user", num_embeddings=50, embedding_dim=8, feature_names=["user"]),
                kind(name="item", num_embeddings=70, embedding_dim=8, feature_names=["item", "seen"])]  # fmt: skip

    methods = {"user": LowBit(bits=3, of=embcomp.DoubleHash(rows=20)), "item": LowBit(bits=4, step="row")}
    model = nn.ModuleList([
        CompressedEmbeddingBagCollection(configs(EmbeddingBagConfig), methods, is_weighted=True),
        CompressedEmbeddingCollection(configs(EmbeddingConfig), {"user": methods["user"], "*": embcomp.Full()}),
        CompressedEmbeddingBagCollection(
            configs(EmbeddingBagConfig), {"*": LowBit(bits=2, of=embcomp.QuotientRemainder())}
        ),
    ])  # fmt: skip

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, batch: KeyedJaggedTensor) -> list[Tensor]:
            found = [part(batch) for part in self.parts]
            return [found[0].values(), *[found[1][key].values() for key in keys], found[2].values()]

    whole = Model()
    if fused:
        fuse_(whole, optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 0.1})
    batch = KeyedJaggedTensor(
        keys, torch.randint(50, (9,)), weights=torch.rand(9), lengths=torch.tensor([1, 1, 2, 0, 3, 2])
    )
    report = embcomp.export(whole.eval(), tmp_path / "m.pt2", (batch,), dtype="float32")
    assert report.bytes_exported == embcomp.served_nbytes(whole)
    assert report.bytes_trained == embcomp.training_nbytes(whole)
    program = torch.export.load(report.path).module()
    answers = program((batch.values(), batch.lengths().view(3, 2), batch.weights()))
    for answer, wanted in zip(answers, whole(batch), strict=True):
        torch.testing.assert_close(answer, wanted, rtol=1e-5, atol=1e-6)


def test_dtype_is_for_tables_of_floats() -> None:
    low = CompressedEmbedding(30, 8, LowBit(bits=2))
    model = nn.ModuleDict({"low": low, "plain": nn.Embedding(30, 8)})
    for dtype in ("int4", {"*": "int4"}, {"plain": "int4"}, {"[lp]*": "int4"}):
        served = swap(model, dtype).model  # pyright: ignore
        assert (served["low"].stores[0].kind, served["plain"].stores[0].kind) == ("2 bits", "int4")
    with pytest.raises(ValueError, match=r"pattern 'low' matches \['low'\], which are served in the bits"):
        swap(model, {"low": "int8"})
    assert swap(nn.Sequential(low.half()), "int8").model[0](torch.arange(3)).dtype == torch.float16


def test_what_cannot_be_served_is_named(tmp_path: Path) -> None:
    model, example = nn.ModuleDict({"user": CompressedEmbedding(30, 8, LowBit(bits=2))}), (torch.arange(3),)
    ((weight, codec),) = coded_tables(model)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = model

        def forward(self, ids: Tensor) -> Tensor:
            return self.tables["user"](ids)

    report = embcomp.export(Model(), tmp_path / "m.pt2", example)
    content = bytearray(report.path.read_bytes())
    packed = swap(model, "int8").model["user"].stores[0].table.numpy().tobytes()
    content[content.index(packed) + 7] ^= 4  # one code of the table
    (tmp_path / "changed.pt2").write_bytes(content)
    with pytest.raises(ValueError, match=r"changed\.pt2"):
        embcomp.serving.load(tmp_path / "changed.pt2")
    with torch.no_grad():
        codec.growth.fill_(float("inf"))  # pyright: ignore
        with pytest.raises(ValueError, match=r"table 'tables\.user': its step is not finite"):
            embcomp.export(Model(), tmp_path / "m.pt2", example)
        weight[7, 3] = float("nan")
        with pytest.raises(ValueError, match=r"table 'tables\.user' holds NaN"):
            embcomp.export(Model(), tmp_path / "m.pt2", example)


def test_what_a_combiner_learns_counts_as_served() -> None:
    for method in (embcomp.LowRank(rank=5), LowBit(bits=3, of=embcomp.LowRank(rank=5))):
        model = nn.ModuleDict({"a": nn.Embedding(77, 24), "b": nn.EmbeddingBag(30, 24)})
        embcomp.compress_(model, method)
        tables = table_lines(swap(model, "float32"))
        assert sum(table.bytes_exported for table in tables) == embcomp.served_nbytes(model)
        assert sum(table.bytes_trained for table in tables) == embcomp.training_nbytes(model)
