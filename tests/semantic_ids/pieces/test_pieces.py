import dataclasses
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from embcomp import Ngram, PrefixNgram, SentencePieces, Unigram
from embcomp.semantic_ids import Pieces, Vocabulary
from embcomp.semantic_ids.pieces.base import numbers

KINDS = [
    *(Unigram(), Ngram(2), Ngram(3), Ngram(2, overlapping=True)),
    *(PrefixNgram(1), PrefixNgram(4), PrefixNgram(1, unigrams=True), PrefixNgram(3, unigrams=True)),
]


def tuples_of(pieces: Pieces, codes: list[int]) -> list[tuple]:
    """The pieces of an item by their definitions: (where, which codes)."""
    if isinstance(pieces, Unigram):
        return [(i, (code,)) for i, code in enumerate(codes)]
    if isinstance(pieces, PrefixNgram):
        prefixes = [(i, tuple(codes[:i])) for i in range(1, pieces.n + 1)]
        alone = [(-i, (code,)) for i, code in enumerate(codes) if i and pieces.unigrams]
        return [prefixes[0], *alone, *prefixes[1:]]
    assert isinstance(pieces, Ngram)
    step = 1 if pieces.overlapping else pieces.n
    last = len(codes) - pieces.n + 1 if pieces.overlapping else len(codes)
    return [(i, tuple(codes[i : i + pieces.n])) for i in range(0, last, step)]


@given(st.sampled_from(KINDS), st.sampled_from([4, 2048, 2**20]), st.integers(0, 99))
def test_equal_numbers_are_equal_pieces(pieces: Pieces, size: int, seed: int) -> None:
    """At 2^20 codes a level four of them overflow 64 bits."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randint(size, (3, 4), generator=generator)
    codes = torch.stack([few[torch.randint(3, (40,), generator=generator), j] for j in range(4)], 1)
    found = numbers(codes, pieces.spans(4), size)
    expected = [tuples_of(pieces, row) for row in codes.tolist()]
    for j, number in enumerate(found):
        assert number.min() >= 0
        meant = [row[j] for row in expected]
        assert len({*meant}) == len({*number.tolist()}) == len({*zip(meant, number.tolist(), strict=True)})


def test_prefixes_are_numbered_as_in_the_paper_where_that_fits() -> None:
    """p_i = sum_{t <= i} K^(i - t) (c_t + 1) - 1 (Zheng et al. 2025) counts the same tuples from another start."""
    codes = torch.cartesian_prod(*[torch.arange(3)] * 3)
    for depth, number in enumerate(numbers(codes, PrefixNgram(3).spans(3), 3), 1):
        paper = sum(3 ** (depth - t) * (codes[:, t - 1] + 1) for t in range(1, depth + 1)) - 1
        assert torch.equal(number, paper - sum(3**i for i in range(1, depth)))


def test_codes_with_too_few_levels_are_refused() -> None:
    for pieces in (Ngram(3), PrefixNgram(3)):
        with pytest.raises(ValueError, match="needs codes of at least 3 levels, these have 2"):
            pieces.spans(2)
    for kind in (Ngram, PrefixNgram):
        for n in (0, 2.0, "2", True):
            with pytest.raises(ValueError, match=rf"{kind.__name__}: n must be an integer of at least 1, got {n!r}"):
                kind(n)  # type: ignore[arg-type]


@pytest.mark.parametrize("pieces", [*KINDS, SentencePieces(30)], ids=repr)
def test_pieces_are_frozen_values(pieces: Pieces) -> None:
    again = pickle.loads(pickle.dumps(pieces))
    assert again == pieces
    assert hash(again) == hash(pieces)
    assert pieces != Ngram(4)
    for name in [field.name for field in dataclasses.fields(pieces)] or ["n"]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(pieces, name, 3)


@given(st.sampled_from(KINDS), st.integers(0, 99))
def test_support_by_brute_force(pieces: Pieces, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(3, (30, 4), generator=generator)
    codes[::7] = -1
    counts = torch.randint(3, (30,), generator=generator)
    vocabulary = Vocabulary.of(codes, pieces, codebook_size=3, counts=counts)
    found = vocabulary.support_of(codes)
    own = [tuples_of(pieces, row) if row[0] >= 0 else [] for row in codes.tolist()]
    trained = [piece for row, count in zip(own, counts.tolist(), strict=True) if count for piece in row]
    for item, row in enumerate(own):
        assert found[item].tolist() == ([trained.count(piece) for piece in row] or [0] * found.shape[1])


def test_codes_that_do_not_fit_are_named() -> None:
    def of(codes: Tensor, **options):
        return Vocabulary.of(codes, Unigram(), codebook_size=4, **options)

    for codes, message in (
        (torch.tensor([[0, 1], [4, 1]]), r"codes of item 1 are \[4, 1\], expected in \[0, 4\), or -1 at all levels"),
        (torch.tensor([[0, 1], [-1, 1]]), r"codes of item 1 are \[-1, 1\]"),
        (torch.tensor([0, 1]), r"integers \[items, levels\], got torch.int64 \[2\]"),
        (torch.tensor([[0.0, 1.0]]), "integers"),
    ):
        with pytest.raises(ValueError, match=message):
            of(codes)
    with pytest.raises(ValueError, match=r"counts must have shape \[1\], got \[2\]"):
        of(torch.tensor([[0, 1]]), counts=torch.ones(2))


CODES = torch.cartesian_prod(*[torch.arange(4)] * 3)
COUNTS = torch.where((CODES[:, 0] == 1) & (CODES[:, 1] == 2), 500, 5)


def test_sentence_pieces_merge_codes_that_are_often_shown_together() -> None:
    pieces = SentencePieces(vocab_size=28).train(CODES, COUNTS, codebook_size=4)
    columns = pieces.columns(CODES, 4)
    lengths = (columns >= 0).sum(1)
    often = COUNTS == 500
    assert lengths[often].float().mean() < lengths[~often].float().mean()
    assert int(lengths.min()) >= 1
    assert int(columns.max()) < 28
    # Pieces of an item spell its codes: two items with the same pieces are the same.
    assert columns.unique(dim=0).shape[0] == CODES.shape[0]
    again = SentencePieces(vocab_size=28).train(CODES, COUNTS, codebook_size=4)
    assert again == pieces == pickle.loads(pickle.dumps(pieces))
    assert "model=" in repr(pieces)


def test_sentence_pieces_take_impressions_and_items_without_codes() -> None:
    codes = CODES.clone()
    codes[5] = -1
    lines = [[i, (i + 1) % 64, 5] for i in range(64)] * 3
    pieces = SentencePieces(vocab_size=30).train(codes, lines, codebook_size=4)
    columns = pieces.columns(codes, 4)
    assert (columns[5] == -1).all()
    assert (columns[:5, 0] >= 0).all()
    # A code that training never saw is no piece.
    assert (pieces.columns(torch.tensor([[0, 5, 5]]), 8)[0] < 30).all()


def test_impressions_and_counts_that_do_not_fit_are_named() -> None:
    for codes, impressions, message in (
        (CODES, [[0, 64]], "an impression names item 64, but there are codes of 64"),
        (CODES, [[0, -1]], "an impression names item -1, but there are codes of 64"),
        (CODES, COUNTS[1:], r"counts must be non-negative, of shape \[64\], got \[63\]"),
        (CODES, -COUNTS, "counts must be non-negative"),
        (CODES + 1, COUNTS, r"codes of item 3 are \[1, 1, 4\], expected in \[0, 4\)"),
        (CODES.float(), COUNTS, "codes must be integers"),
    ):
        with pytest.raises(ValueError, match=message):
            SentencePieces(28).train(codes, impressions, codebook_size=4)
    as_array = SentencePieces(28).train(CODES, COUNTS.numpy(), codebook_size=4)  # type: ignore[arg-type]
    assert as_array == SentencePieces(28).train(CODES, COUNTS, codebook_size=4)


def test_vocabularies_that_do_not_fit_the_data_are_refused() -> None:
    for size in (3, 5000):
        with pytest.raises(ValueError, match=rf"SentencePieces\(vocab_size={size}\) does not fit these codes: "):
            SentencePieces(size).train(CODES, COUNTS, codebook_size=4)
    with pytest.raises(ValueError, match=r"these codes: Vocabulary size too high \(5000\)"):
        SentencePieces(5000).train(CODES, COUNTS, codebook_size=4)
    with pytest.raises(ValueError, match="SentencePieces: vocab_size must be an integer of at least 1, got 0"):
        SentencePieces(0)
    with pytest.raises(ValueError, match="is not trained: call train"):
        SentencePieces(40).columns(CODES, 4)
    with pytest.raises(ValueError, match="no item with codes has a count above 0"):
        SentencePieces(40).train(CODES, torch.zeros(64), codebook_size=4)
