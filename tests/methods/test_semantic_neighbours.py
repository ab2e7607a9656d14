"""New items read what their neighbours read: held against counting by hand."""

import collections
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import embcomp
from embcomp import Ngram, PrefixNgram, SemanticIds, SentencePieces, Unigram
from embcomp.methods import Table
from embcomp.methods.semantic import neighbour_rows
from embcomp.nn import CompressedEmbedding
from embcomp.ops.packing import packed_words
from embcomp.semantic_ids import Neighbours
from embcomp.testing.drop_ins import randomize

CODES = torch.cartesian_prod(torch.arange(4), torch.arange(4), torch.arange(2))  # 32 items
COUNTS = (torch.arange(32) % 5 > 0).long() * 3  # 0, 5, 10, ... are new
NEW = [0, 5, 10, 15, 20, 25, 30]


def neighbours(k: int = 6, seed: int = 0) -> Neighbours:
    """Any k training items for each new one, with any weights."""
    generator = torch.Generator().manual_seed(seed)
    trained = COUNTS.nonzero().squeeze(1)
    rows = [trained[torch.randperm(len(trained), generator=generator)[:k]] for _ in NEW]
    weights = torch.rand(len(NEW), k, generator=generator).softmax(1)
    return Neighbours(torch.tensor(NEW), torch.stack(rows).int(), weights)


def module(near: Neighbours | None, dim: int = 8, pieces: Any = None, **given: Any) -> CompressedEmbedding:
    settings = {"rows": 40, "counts": COUNTS, "neighbours": near, **given}
    return randomize(CompressedEmbedding(32, dim, SemanticIds(CODES, pieces or PrefixNgram(3), **settings)))


def read(built: CompressedEmbedding, id: int) -> dict[int, float]:
    """Row -> weight, summed over look-ups."""
    rows, weights = built.encoder.eval()(torch.tensor([id]))[0]
    found: dict[int, float] = collections.defaultdict(float)
    for row, weight in zip(rows[0].tolist(), weights[0].tolist(), strict=True):
        found[row] += weight
    return {row: weight for row, weight in found.items() if weight}


def mean_of(vectors: Tensor, near: Neighbours) -> Tensor:
    """The weighted mean of the neighbours' vectors, [new items, dim]."""
    return (vectors[near.nearest.long()] * near.weights.unsqueeze(2)).sum(1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.integers(3, 60), st.integers(0, 99))
def test_a_row_weighs_the_share_of_neighbours_that_read_it(k: int, most: int, rows: int, seed: int) -> None:
    near = neighbours(k, seed)
    built = module(near, rows=rows, neighbour_rows=most)
    plain = module(None, rows=rows)
    for id, items, weights in zip(NEW, near.nearest.tolist(), near.weights.tolist(), strict=True):
        votes: dict[int, float] = collections.defaultdict(float)
        for item, each in zip(items, weights, strict=True):
            for row, weight in read(plain, item).items():
                votes[row] += weight * each
        found = read(built, id)
        assert len(found) == min(most, len(votes))
        for row, weight in found.items():
            assert weight == pytest.approx(min(votes[row], 1.0), abs=0.5 / 255 + 1e-6)
        least = min(found.values())
        assert all(min(weight, 1.0) <= least + 1 / 255 for row, weight in votes.items() if row not in found)


def test_with_rows_enough_a_new_vector_is_the_mean_of_its_neighbours() -> None:
    near = neighbours()
    built = module(near, rows=4 + 16 + 32, neighbour_rows=18)
    vectors = built(torch.arange(32))
    means = mean_of(vectors, near)
    scale = float(next(built.parameters()).detach().abs().max())
    torch.testing.assert_close(vectors[NEW], means, atol=18 * scale / 510, rtol=0)


@given(st.lists(st.integers(0, 31), max_size=40), st.integers(1, 6))
def test_reading_new_items_alone_is_reading_all(ids: list[int], width: int) -> None:
    """On CPU only the mixtures of new items are looked at; compiled programs look at one for every id."""
    encoder = module(neighbours(), neighbour_rows=width).encoder
    (fast,) = encoder(torch.tensor(ids, dtype=torch.int64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbour_rows, "readable", lambda *tensors: False)
        (plain,) = encoder(torch.tensor(ids, dtype=torch.int64))
    assert torch.equal(fast.rows, plain.rows)
    assert torch.equal(fast.weights, plain.weights)


def test_training_items_read_what_they_read_without() -> None:
    with_them, without = module(neighbours()), module(None)
    for id in set(range(32)) - set(NEW):
        assert read(with_them, id) == read(without, id)


def test_by_default_no_id_takes_more_look_ups() -> None:
    assert [chunk.rows.shape for chunk in module(neighbours()).encoder(torch.arange(4))] == [(4, 3)]
    assert [chunk.rows.shape for chunk in module(neighbours(), neighbour_rows=5).encoder(torch.arange(4))] == [(4, 5)]
    assert [chunk.rows.shape for chunk in module(neighbours(), neighbour_rows=2).encoder(torch.arange(4))] == [(4, 3)]


def test_items_that_occur_in_training_need_no_neighbours() -> None:
    near = Neighbours(torch.arange(32), neighbours(4).nearest[:1].expand(32, 4), torch.ones(32, 4))
    assert module(near).encoder.new_ids.tolist() == NEW


def test_a_new_item_without_neighbours_reads_its_own_pieces() -> None:
    near = neighbours()
    nearest = near.nearest.clone()
    nearest[2] = -1
    nearest[3, 2:] = -1
    codes = CODES.clone()
    codes[1] = -1  # without content: its hashed rows tell nothing
    nearest[4] = 1
    near = Neighbours(near.ids, nearest, near.weights)
    method = SemanticIds(codes, Unigram(), 12, counts=COUNTS, neighbours=near, neighbour_rows=6)
    built = CompressedEmbedding(32, 8, method)
    assert built.encoder.new_ids.tolist() == [0, 5, 15, 25, 30]
    plain = CompressedEmbedding(32, 8, SemanticIds(codes, Unigram(), 12, counts=COUNTS))
    for id in (10, 20):
        assert read(built, id) == read(plain, id)
    assert sum(read(built, 15).values()) == pytest.approx(3, abs=0.02)  # of two neighbours, three pieces each


def test_nothing_to_mix_is_no_failure() -> None:
    built, plain = (
        module(Neighbours(torch.arange(0), torch.zeros(0, 3, dtype=torch.int32), torch.zeros(0, 3))),
        module(None),
    )
    assert all(read(built, id) == read(plain, id) for id in range(32))


def test_ids_without_content_that_have_neighbours_are_no_fallback() -> None:
    codes = CODES.clone()
    codes[[0, 3]] = -1
    method = SemanticIds(codes, Unigram(), 12, counts=COUNTS, neighbours=neighbours())
    assert CompressedEmbedding(32, 8, method).encoder.fallbacks == 1
    assert method.report(Table("t", 32, 8)).neighbours == 7


@pytest.mark.parametrize("pieces", [Unigram(), Ngram(2), PrefixNgram(2, unigrams=True), "sentence"])
def test_all_kinds_of_pieces_mix(pieces: Any) -> None:
    if pieces == "sentence":
        pieces = SentencePieces(vocab_size=16).train(CODES, COUNTS, codebook_size=4)
    near = neighbours()
    built = module(near, pieces=pieces, neighbour_rows=40)
    vectors = built(torch.arange(32))
    scale = float(next(built.parameters()).detach().abs().max())
    torch.testing.assert_close(vectors[NEW], mean_of(vectors, near), atol=40 * scale / 510, rtol=0)


def test_open_ids_and_id_rows_go_with_them() -> None:
    method = SemanticIds(CODES, Unigram(), 12, counts=COUNTS, neighbours=neighbours(), id_rows=4)
    built = randomize(CompressedEmbedding(None, 8, method))
    assert built(torch.tensor([0, 1, 10**15])).shape == (3, 8)
    (_, pieces), (_, own) = built.encoder(torch.tensor([0, 1, 10**15]))
    assert own.flatten().tolist() == [0, 1, 0]
    assert pieces[1:].tolist() == [[1, 1, 1]] * 2


@pytest.mark.parametrize("more", [{}, {"neighbour_rows": 9}, {"id_rows": 3}])
def test_bytes_are_counted_and_a_budget_is_met(more: dict) -> None:
    near = neighbours()
    built, plain = module(near, **more), module(None, **{k: v for k, v in more.items() if k == "id_rows"})
    width = more.get("neighbour_rows", 3)
    words = 4 * packed_words(7 * width, bits=6)  # 40 rows
    assert embcomp.nbytes(built) == embcomp.nbytes(plain) + 4 * 7 + 7 * width + words
    tables = [Table("a", 32, 8), Table("b", 32, 8)]
    given: dict = {"codes": CODES, "pieces": PrefixNgram(3), "counts": COUNTS, "neighbours": near, **more}
    for nbytes in (1_000, 2_040, 7_777):
        method = SemanticIds.for_budget(tables, nbytes, **given)
        assert method.plan(tables).nbytes() <= nbytes
        assert SemanticIds(rows=method.rows + 1, **given).plan(tables).nbytes() > nbytes


def test_a_state_brings_its_own_mixtures() -> None:
    source, target = module(neighbours(seed=1)), module(neighbours(seed=2))
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.materialize(), source.materialize())
    with pytest.raises(ValueError, match="neighbour_rows: saved None, here 4"):
        module(neighbours(), neighbour_rows=4).load_state_dict(source.state_dict())
    with pytest.raises(ValueError, match="new_items: saved 7, here None"):
        module(None).load_state_dict(source.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"neighbours": torch.zeros(3, 2)},
            r"SemanticIds: neighbours must be semantic_ids.Neighbours.of\(...\), got Tensor",
        ),
        (
            {"neighbours": Neighbours(torch.tensor([40]), torch.tensor([[1]]), torch.ones(1, 1))},
            "table 't': neighbours must be of its 32 items, but name item 40",
        ),
        ({"neighbours": {"u": neighbours()}}, r"neighbours names no table 't'; it has \['u'\]"),
        ({"combine": "concat"}, "rows of neighbours are added up, which goes with combine='sum'"),
        ({"neighbour_rows": 0}, "neighbour_rows must be at least 1, got 0"),
        ({"neighbours": None, "neighbour_rows": 3}, "neighbour_rows goes with neighbours"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict, message: str) -> None:
    given = {"codes": CODES, "pieces": Unigram(), "rows": 12, "counts": COUNTS, "neighbours": neighbours(), **settings}
    with pytest.raises(ValueError, match=message):
        SemanticIds(**given).plan([Table("t", 32, 9)])


def test_new_items_train_rows_of_their_neighbours_alone() -> None:
    built = module(neighbours())
    built(torch.tensor([0])).sum().backward()
    (table,) = built.parameters()
    moved: Tensor = table.grad.abs().sum(1).nonzero().squeeze(1)
    assert set(moved.tolist()) == set(read(built, 0))
