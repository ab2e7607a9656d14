import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import embcomp
from embcomp import Ngram, PrefixNgram, SemanticIds, SentencePieces, Unigram
from embcomp.methods import Table
from embcomp.methods.semantic.reading import Range, ranges_of
from embcomp.nn import CompressedEmbedding
from embcomp.semantic_ids import Vocabulary
from embcomp.testing.drop_ins import randomize
from tests import hash_spec

CODES = torch.cartesian_prod(torch.arange(4), torch.arange(4), torch.arange(2))  # 32 items
NONE = torch.tensor([[-1, -1, -1]])


def module(codes: Tensor, *args: Any, dim: int = 12, open_ids: bool = False, **settings: Any) -> CompressedEmbedding:
    method = SemanticIds(codes, *args, **settings)
    return randomize(CompressedEmbedding(None if open_ids else codes.shape[0], dim, method))


def rows_of(built: CompressedEmbedding, ids: Tensor) -> list[list[int]]:
    """The rows that count, of each id."""
    rows, weights = built.encoder.train(False)(ids)[0]
    used = torch.ones_like(rows) if weights is None else weights
    return [row[use > 0].tolist() for row, use in zip(rows, used, strict=True)]


def test_unigram_rows_by_hand() -> None:
    built = module(CODES, Unigram(), 12)
    for item, (a, b, c) in enumerate(CODES.tolist()):
        assert rows_of(built, torch.tensor([item])) == [[a, 4 + b, 8 + c]]
    (table,) = built.parameters()
    torch.testing.assert_close(built(torch.tensor([5])), table[[0, 6, 9]].sum(0, keepdim=True))


def test_prefixes_that_fit_own_rows_and_the_others_are_hashed() -> None:
    """4 prefixes of depth 1 own rows; those of depth 2 and 3 share the 14 rows that are left."""
    built = module(CODES, PrefixNgram(3), rows=18, seed=5)
    for item, (a, b, c) in enumerate(CODES.tolist()):
        two, three = 4 * a + b, 4 * (4 * a + b) + c
        expected = [
            a,
            4 + hash_spec.row(two, 5, "semantic_ids", 1, 14),
            4 + hash_spec.row(three, 5, "semantic_ids", 2, 14),
        ]
        assert rows_of(built, torch.tensor([item])) == [expected]


def test_concatenated_pieces_lie_side_by_side() -> None:
    built = module(CODES, Ngram(2), rows=64, combine="concat")
    (table,) = built.parameters()
    assert table.shape == (64, 6)
    out = built(torch.arange(32))
    for item, (a, b, c) in enumerate(CODES.tolist()):
        torch.testing.assert_close(out[item], torch.cat([table[4 * a + b], table[16 + c]]))


@given(st.integers(1, 100), st.integers(2, 9), st.integers(1, 5))
def test_ranges_never_overlap_and_stay_inside(rows: int, size: int, depth: int) -> None:
    spans = PrefixNgram(depth).spans(depth)
    found = ranges_of(spans, size, rows, one_namespace=False)
    taken = 0
    for span, part in zip(spans, found, strict=True):
        assert part.start + part.rows <= rows
        assert part.rows >= 1
        if part.key is None:
            assert (part.start, part.rows) == (taken, size ** len(span))
            taken += part.rows
        else:
            assert part.start == taken
    if sum(size**n for n in range(1, depth + 1)) <= rows:
        assert all(part.key is None for part in found)
    assert ranges_of(spans, size, rows, one_namespace=True)[0] == Range(0, rows, None if size <= rows else 0)


def test_prefixes_too_deep_for_64_bits_read_rows_too() -> None:
    codes = torch.randint(2048, (50, 8))
    built = module(codes, PrefixNgram(8), rows=100, codebook_size=2048)
    assert built(torch.arange(50)).shape == (50, 12)
    assert len({tuple(row) for row in rows_of(built, torch.arange(50))}) == 50


def test_pieces_without_support_are_left_out() -> None:
    counts = torch.ones(32)
    counts[16:24] = 0  # no training item has codes that begin with 2
    counts[1] = 0  # [0, 0, 1]: only its deepest prefix is its own
    built = module(CODES, PrefixNgram(3), rows=200, counts=counts, min_support=1)
    assert [len(row) for row in rows_of(built, torch.tensor([0, 1, 2]))] == [3, 2, 3]
    assert rows_of(built, torch.tensor([1])) == [rows_of(built, torch.tensor([0]))[0][:2]]
    # Items 16 .. 23 have no supported piece: as many hashed rows.
    for id in range(16, 24):
        assert rows_of(built, torch.tensor([id])) == [
            [hash_spec.row(id, 0, "semantic_ids/fallback", j, 200) for j in range(3)]
        ]
    assert built.encoder.fallbacks == 8
    all_in = module(CODES, PrefixNgram(3), rows=200, counts=counts, min_support=0)
    assert all(len(row) == 3 for row in rows_of(all_in, torch.arange(32)))


def test_new_items_leave_out_pieces_that_few_training_items_carry() -> None:
    """Item 0 is new; 1 training item has all its codes, 3 have the first two, 7 the first."""
    counts = torch.ones(32)
    counts[0] = 0
    codes = CODES.clone()
    codes[1] = codes[0]  # one training item with all its codes
    codes[2:4] = torch.tensor([0, 0, 1])

    def pieces(item, least):
        built = module(codes, PrefixNgram(3), rows=200, counts=counts, min_support=least)
        return len(rows_of(built, torch.tensor([item]))[0])

    assert [pieces(0, least) for least in (0, 1, 2, 3, 4, 7, 8, 100)] == [3, 3, 2, 2, 1, 1, 1, 1]
    assert [pieces(1, least) for least in (0, 1, 2, 8, 100)] == [3] * 5


def test_new_items_read_codes_that_many_carry() -> None:
    """Item 0 is new: 7 others share its first code, 7 or more each later code, one or none its longer prefixes."""
    counts = torch.ones(32)
    counts[0] = 0
    built = module(CODES, PrefixNgram(3, unigrams=True), rows=200, counts=counts, min_support=5)
    both = module(CODES, PrefixNgram(3, unigrams=True), rows=200, counts=counts, min_support=0)
    every = rows_of(both, torch.tensor([0]))[0]
    assert len(every) == 5
    assert rows_of(built, torch.tensor([0])) == [every[:3]]  # its three codes, without the two longer prefixes


def test_training_never_moves_what_an_unsupported_piece_would_read() -> None:
    counts = torch.ones(32)
    counts[1] = 0
    built = module(CODES, PrefixNgram(3), rows=200, counts=counts)
    built(torch.tensor([1])).sum().backward()
    (table,) = built.parameters()
    assert table.grad.abs().sum(1).nonzero().squeeze(1).tolist() == sorted(rows_of(built, torch.tensor([1]))[0])


def test_items_without_content_and_ids_beyond_the_codes_are_hashed_and_counted() -> None:
    codes = torch.cat([CODES, NONE])
    method = SemanticIds(codes, Unigram(), 12)
    report = method.report(Table("item", 33, 12))
    assert (report.items, report.without_content, report.unseen, report.fallback) == (33, 1, 0, 1)
    assert report.supported == (1.0, 1.0, 1.0)
    counts = torch.ones(33)
    counts[[0, 1, 16]] = 0
    counts[24:32] = 0  # all that begin with 3
    report = SemanticIds(codes, PrefixNgram(3), 200, counts=counts, min_support=1).report(Table("item", 33, 12))
    assert (report.items, report.without_content, report.unseen, report.fallback) == (33, 1, 11, 9)
    assert report.supported == (24 / 32, 22 / 32, 21 / 32)
    built = module(codes, Unigram(), 12, open_ids=True)
    for id in (32, 33, 2**62):
        assert rows_of(built, torch.tensor([id])) == [
            [hash_spec.row(id, 0, "semantic_ids/fallback", j, 12) for j in range(3)]
        ]
    assert "1 items on the fallback" in repr(built)


def test_new_items_read_what_the_recorded_support_allows() -> None:
    """A catalogue that grew: rows of old items stay, pieces that only new items carry stay out."""
    old, grown = CODES[:16], CODES
    vocabulary = Vocabulary.of(old, PrefixNgram(2), codebook_size=4)
    before = module(old, PrefixNgram(2), 30, codebook_size=4)
    after = module(grown, PrefixNgram(2), 30, codebook_size=4, vocabulary=vocabulary)
    after.stores.load_state_dict(before.stores.state_dict())
    assert torch.equal(after(torch.arange(16)), before(torch.arange(16)))
    assert after.encoder.fallbacks == 16  # first codes 2 and 3 were never trained
    with pytest.raises(ValueError, match=r"the vocabulary is of PrefixNgram\(n=2\) over 3 x 4 codes, but these are Un"):
        module(grown, Unigram(), 30, codebook_size=4, vocabulary=vocabulary)


@pytest.mark.parametrize("settings", [{}, {"id_rows": 4}], ids=str)
def test_with_counts_a_grown_catalogue_reads_as_before(settings: dict) -> None:
    """Also old items that training never saw; new ones with known codes read what many training items carry."""
    codes = torch.cat([CODES, CODES[8:16], NONE])
    counts = torch.arange(32) % 3
    recorded = Vocabulary.of(CODES, PrefixNgram(3), codebook_size=4, counts=counts)
    fixed = {"rows": 60, "codebook_size": 4, "min_support": 2, **settings}
    before = module(CODES, PrefixNgram(3), counts=counts, **fixed)
    grown = torch.cat([counts, torch.zeros(9, dtype=counts.dtype)])
    after = module(codes, PrefixNgram(3), counts=grown, vocabulary=recorded, **fixed)
    after.stores.load_state_dict(before.stores.state_dict())
    assert torch.equal(after(torch.arange(32)), before(torch.arange(32)))
    support = recorded.support_of(CODES[8:16])
    assert [len(row) for row in rows_of(after, torch.arange(32, 40))] == (support >= 2).sum(1).tolist()


def test_frequent_items_own_an_id_row() -> None:
    counts = torch.arange(32)
    built = module(CODES, Unigram(), 12, id_rows=3, counts=counts)
    pieces, ids = built.parameters()
    assert built.encoder.owners.tolist() == [29, 30, 31]
    out = built(torch.arange(32))
    for item, row in enumerate(rows_of(built, torch.arange(32))):
        own = ids[item - 29] if item >= 29 else 0
        if item:  # item 0 has no count, but its codes have support
            torch.testing.assert_close(out[item], pieces[row].sum(0) + own)
    hashed = module(CODES, Unigram(), 12, id_rows=3)
    pieces, ids = hashed.parameters()
    row = hash_spec.row(7, 0, "semantic_ids/fallback", 3, 3)
    torch.testing.assert_close(
        hashed(torch.tensor([7]))[0], pieces[rows_of(hashed, torch.tensor([7]))[0]].sum(0) + ids[row]
    )


def test_hot_items_own_a_part_of_the_rows_beside_their_pieces() -> None:
    """The vector of an item is the sum over its pieces, and its own row if it is among the most frequent."""
    counts = torch.arange(32)
    built = module(CODES, Unigram(), 20, hot=0.4, counts=counts)
    pieces, own = built.parameters()
    assert (len(pieces), len(own)) == (12, 8)
    out = built(torch.arange(32))
    for item, row in enumerate(rows_of(built, torch.arange(32))):
        if item:  # item 0 has no count, but its codes have support
            torch.testing.assert_close(out[item], pieces[row].sum(0) + (own[item - 24] if item >= 24 else 0))
    same = module(CODES, Unigram(), 12, id_rows=8, counts=counts)
    for mine, theirs in zip(built.encoder(torch.arange(32)), same.encoder(torch.arange(32)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    few = module(CODES, Unigram(), 100, hot=0.9, counts=(counts > 20).long())
    assert [len(rows) for rows in few.parameters()] == [89, 11]  # no more than occur


@settings(max_examples=25)
@given(nbytes=st.integers(1200, 9000), hot=st.floats(0.01, 0.99), shared=st.booleans(), bits=st.sampled_from([None, 4]))
def test_hot_rows_come_in_sizes(nbytes: int, hot: float, shared: bool, bits: int | None) -> None:
    """The largest configuration that fits, and priced to the byte."""
    tables = [Table("t", 32, 8), Table("u", 32, 8)]
    counts, other = torch.arange(32) % 7, torch.arange(32) % 3
    each = {"codes": CODES, "counts": counts} if shared else {
        "codes": {"t": CODES, "u": CODES.flip(0)}, "counts": {"t": counts, "u": other}
    }  # fmt: skip
    fixed = {**each, "pieces": PrefixNgram(2), "hot": hot}

    def stored(method: Any) -> int:
        model = torch.nn.ModuleDict({table.name: torch.nn.Embedding(32, 8) for table in tables})
        embcomp.compress_(model, {"*": method})
        return embcomp.served_nbytes(model)

    if bits is None:
        method, inner = SemanticIds.for_budget(tables, nbytes, **fixed), SemanticIds
    else:
        method, inner = embcomp.LowBit.for_budget(tables, nbytes, bits=bits, of=SemanticIds, **fixed), None
    assert stored(method) == method.sizes(tables).nbytes() <= nbytes
    if inner is not None:
        assert stored(SemanticIds(rows=method.rows + 1, **fixed)) > nbytes


def test_dropout_reads_items_as_if_they_were_new_and_only_in_training() -> None:
    """7 other items carry the first piece of item 0, one the second, none the third; its id row is its own."""
    ids = torch.zeros(20_000, dtype=torch.int64)
    for least, lost in ((1, [0.0, 0.0, 0.4]), (4, [0.0, 0.4, 0.4]), (9, [0.0, 0.4, 0.4])):
        built = module(
            CODES, PrefixNgram(3), 200, counts=torch.ones(32), min_support=least, piece_dropout=0.4, id_rows=32
        )
        (_, pieces), (_, own) = built.encoder.train()(ids)
        torch.testing.assert_close(pieces.mean(0), 1 - torch.tensor(lost), atol=0.02, rtol=0)
        assert torch.equal(own, pieces[:, 2:])  # whoever is new has neither
        (_, pieces), (_, own) = built.encoder.eval()(ids)
        assert bool(pieces.all())
        assert bool(own.all())


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(0, 99))
def test_dropout_takes_deeper_prefixes_first(least: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(2, (32,), generator=generator)
    counts[0] = 1
    built = module(CODES, PrefixNgram(3), 200, counts=counts, min_support=least, piece_dropout=0.5)
    read = built.encoder.train()(torch.arange(32).repeat(8))[0].weights
    assert (read[:, 1:] <= read[:, :-1]).all()


def test_tables_on_one_code_book_share_its_rows() -> None:
    model = nn.ModuleDict({"item": nn.Embedding(32, 12), "history": nn.Embedding(32, 12), "small": nn.Embedding(32, 4)})
    report = embcomp.compress_(model, {"*": SemanticIds(CODES, Unigram(), rows=12)})
    ids = torch.arange(32)
    assert model["item"].stores[0] is model["history"].stores[0]
    assert torch.equal(model["item"](ids), model["history"](ids))
    assert model["small"](ids).shape == (32, 4)
    maps = 2 * (32 * 3 + 32) + 3 * 7 * 8  # codes and support once for each width, keys for each table
    assert report.bytes_after == embcomp.nbytes(model) == 4 * 12 * (12 + 4) + maps


class CodesTwice(nn.Module):
    """A model that reads two tables."""

    def __init__(self, tables: nn.ModuleDict) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, ids: Tensor) -> Tensor:
        return self.tables["item"](ids) * self.tables["history"](ids)


def test_codes_that_tables_share_stay_one_copy(tmp_path: Path) -> None:
    def codes_of(model: nn.Module) -> list[Tensor]:
        return [model[name].encoder.codes for name in ("item", "history")]  # type: ignore[index]

    settings = {"rows": 20, "counts": torch.arange(32), "id_rows": 4, "piece_dropout": 0.2}
    model = nn.ModuleDict({name: nn.Embedding(32, 12) for name in ("item", "history")})
    embcomp.compress_(model, {"*": SemanticIds(CODES, PrefixNgram(2), **settings)})
    size = 4 * 12 * (20 + 4) + 32 * (3 + 1 + 1) + 4 * 4 + 2 * 5 * 8
    for form in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.double().float()):
        one, other = codes_of(form)
        assert one is other
        assert embcomp.nbytes(form) == size
    served = CodesTwice(model)
    report = embcomp.export(served.eval(), tmp_path / "two.pt2", (torch.arange(4),), dtype="float32")
    assert report.bytes_trained == size
    other = nn.ModuleDict({name: nn.Embedding(32, 12) for name in ("item", "history")})
    embcomp.compress_(other, {"*": SemanticIds(CODES.flip(0), PrefixNgram(2), **settings)})
    other.load_state_dict(model.state_dict())
    for name in ("item", "history"):
        assert torch.equal(other[name].eval()(torch.arange(32)), model[name].eval()(torch.arange(32)))
    # Codes of their own, and open id spaces, are not shared.
    tables = [Table("item", 32, 12), Table("history", 32, 12), Table("open", None, 12)]
    for codes, shared in ((CODES, [True, False]), ({t.name: CODES.clone() for t in tables}, [False, False])):
        first, *others = [t.encoder for t in SemanticIds(codes, Unigram(), 12).plan(tables).tables]
        assert [encoder.codes is first.codes for encoder in others] == shared


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_codes_that_tables_share_move_together() -> None:
    model = nn.ModuleDict({name: nn.Embedding(32, 12) for name in ("item", "history")})
    embcomp.compress_(model, {"*": SemanticIds(CODES, Unigram(), 12)})
    before = embcomp.nbytes(model)
    model.cuda()
    assert model["item"].encoder.codes is model["history"].encoder.codes
    assert model["item"].encoder.codes.is_cuda
    assert embcomp.nbytes(model) == before


def test_codes_take_the_smallest_type_and_are_counted() -> None:
    for size, each in ((256, 1), (257, 2), (2**15, 2), (2**15 + 1, 4)):
        codes = torch.tensor([[0, size - 1], [size - 1, 0]])
        built = module(codes, Unigram(), 10, dim=4, codebook_size=size)
        assert built.encoder.codes.element_size() == each
        assert embcomp.nbytes(built) == 10 * 4 * 4 + 2 * 2 * each + 2 + 5 * 8


def test_a_state_brings_its_own_codes() -> None:
    source, target = module(CODES.flip(0), Unigram(), 12), module(CODES, Unigram(), 12)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.materialize(), source.materialize())
    with pytest.raises(ValueError, match=r"pieces: saved 'Unigram\(\)', here 'PrefixNgram\(n=3\)'"):
        module(CODES, PrefixNgram(3), 12).load_state_dict(source.state_dict())


def test_sentence_pieces_as_a_method() -> None:
    pieces = SentencePieces(vocab_size=23).train(CODES, torch.arange(32), codebook_size=4)
    built = module(CODES, pieces, 30)
    columns = pieces.columns(CODES, 4)
    assert rows_of(built, torch.arange(32)) == [[p for p in row if p >= 0] for row in columns.tolist()]
    few = module(CODES, pieces, 9)
    first = [hash_spec.row(int(columns[0, 0]), 0, "semantic_ids", 0, 9)]
    assert rows_of(few, torch.tensor([0]))[0][:1] == first
    with pytest.raises(ValueError, match="is not trained"):
        module(CODES, SentencePieces(30), 30)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codes": CODES[:31]}, r"table 't': codes must have 32 rows, one for each id, got 31"),
        ({"codes": {"u": CODES}}, r"codes names no table 't'; it has \['u'\]"),
        ({"codes": CODES - 1}, r"table 't': codes of item 0 are \[-1, -1, -1\]|item 1 are \[-1, -1, 0\]"),
        ({"codes": CODES.float()}, "table 't': codes must be integers"),
        ({"codes": NONE.expand(32, 3)}, "table 't': no item has codes"),
        ({"codebook_size": 3}, r"table 't': codes of item 6 are \[0, 3, 0\], expected in \[0, 3\)"),
        ({"counts": torch.ones(31)}, r"table 't': counts must be non-negative, of shape \[32\], got \[31\]"),
        ({"counts": -torch.ones(32)}, "counts must be non-negative"),
        ({"pieces": PrefixNgram(4)}, "needs codes of at least 4 levels, these have 3"),
        ({"codes": CODES[:, :1].expand(32, 64)}, r"Unigram\(\) makes 64 pieces of an item, the most are 63"),
        ({"pieces": "prefix"}, r"pieces must be Unigram\(\), PrefixNgram\(n\) or the like, got 'prefix'"),
        ({"combine": "mean"}, "combine must be 'sum' or 'concat', got 'mean'"),
        ({"combine": "concat", "pieces": Ngram(2), "id_rows": 4}, "embedding_dim 8 is not a multiple of its 3 parts"),
        ({"piece_dropout": 1.0}, r"piece_dropout must be in \[0, 1\), got 1.0"),
        ({"min_support": -1}, "min_support must be at least 0, got -1"),
        ({"min_support": 0, "piece_dropout": 0.1}, "min_support, which must be at least 1"),
        ({"rows": 0}, r"rows must be an integer in \[1, 2\^31\), got 0"),
        ({"hot": 0.5}, "hot items are those with the largest counts; give counts"),
        (
            {"hot": 0.5, "counts": torch.ones(32), "id_rows": 3},
            "hot=0.5 already sets the rows that items own; leave out id_rows",
        ),
        ({"hot": 0.5, "counts": torch.ones(32), "rows": 1}, "give 2 rows or more"),
        ({"hot": 1.5}, r"hot must be in \[0, 1\), got 1.5"),
        ({"id_rows": 0}, r"rows must be an integer in \[1, 2\^31\), got 0"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SemanticIds(**{"codes": CODES, "pieces": Unigram(), "rows": 12, **settings}).plan([Table("t", 32, 8)])
