"""The forms in Triton give the rows of those in torch and of the C++ functions, on random input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embcomp import Table
from embcomp.methods.semantic.encoder import SemanticEncoder
from embcomp.methods.semantic.item_codes import ItemCodes
from embcomp.methods.semantic.reading import Reading, ranges_of
from embcomp.ops.balanced import MAX_IDS, Domain, balanced_key, balanced_rows
from embcomp.ops.hashing import MAX_ROWS, hash_key, hash_rows
from embcomp.ops.packing import bits_for, pack, unpack, unpack_known
from embcomp.ops.together.batch import Batch
from embcomp.ops.together.blocks import blocks
from embcomp.ops.together.digits import digits
from embcomp.ops.together.hashing import balanced, frequent, hashed
from embcomp.ops.together.maps import clustered, kept_rows, two_rows
from embcomp.ops.together.pieces import pieces
from tests.ops.together.triton_form import DEVICE, needs_triton, one_launch

pytestmark = needs_triton
few = settings(max_examples=10)


@dataclass
class Input:
    """A batch of some keys, of which each part encodes one."""

    limits: list[int | None]  # of each part
    ids: list[Tensor]  # of each part
    batch: Callable[[], Batch]

    def __len__(self) -> int:
        return len(self.ids)


@st.composite
def inputs(draw, most: int | None = None, wrong: bool = False) -> Input:
    """Ids of 1 to 4 keys, int64, int32 or uint8, which the parts encode in any order, some twice, some never.

    Args:
        draw: hypothesis.
        most: the largest id space; None for open ones too.
        wrong: True to have one id out of range.
    """
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([torch.int64, torch.int32, torch.uint8]))
    sizes = draw(st.lists(st.sampled_from([0, 0, 1, 5, 16, 37]), min_size=1, max_size=4).filter(any))
    top = min(torch.iinfo(dtype).max, most or 2**63 - 1)
    kinds = st.integers(1, top) if most else st.none() | st.integers(1, top)
    spaces = [draw(kinds) for _ in sizes]
    ids = [random.integers(0, top if space is None else space, size) for space, size in zip(spaces, sizes, strict=True)]
    order = draw(st.none() | st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=4).filter(
        lambda order: any(sizes[key] for key in order)
    ).map(tuple))  # fmt: skip
    if wrong:
        key = draw(st.sampled_from([key for key in (order or range(len(sizes))) if sizes[key]]))
        spaces[key] = min(spaces[key] or top, top - 1)
        ids[key] = ids[key].clip(max=spaces[key] - 1)
        choice = [spaces[key]] if dtype == torch.uint8 else [-1, -(2**31), spaces[key], top]
        ids[key][random.integers(sizes[key])] = draw(st.sampled_from(choice))
    each = [torch.from_numpy(one).to(dtype).to(DEVICE) for one in ids]
    parts = range(len(sizes)) if order is None else order
    counts = torch.tensor(sizes, device=DEVICE)

    def batch() -> Batch:
        return Batch(
            torch.cat(each), counts, order, [each[key] for key in parts], [spaces[k] for k in parts], ["films"]
        )

    return Input([spaces[key] for key in parts], [each[key].long().cpu() for key in parts], batch)


def numbers(given: Input, low: int, high: int) -> list[int]:
    """A number of [low, high) for each part, as random as the input."""
    random = np.random.default_rng(sum(map(len, given.ids)) + len(given))
    return [int(number) for number in random.integers(low, high, len(given))]


def keys_of(given: Input, key: Callable = hash_key, lookups: int = 3) -> list[Tensor]:
    """The keys of each part; the last part has those of the first, in the same tensor."""
    made = [torch.tensor([key(7, f"t{part}", j) for j in range(lookups)], device=DEVICE) for part in range(len(given))]
    return [*made[:-1], made[0]]


def by_both(make: Callable[[Batch], Tensor], given: Input) -> Tensor:
    """The rows, which are the same in both forms."""
    with one_launch():
        rows = make(given.batch())
    with one_launch(serves=False):
        expected = make(given.batch())
    assert rows.shape == expected.shape
    assert torch.equal(rows, expected)
    return rows.cpu()


def joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.unsqueeze(1) if part.dim() == 1 else part for part in parts])


@few
@given(given_=inputs(), lookups=st.integers(1, 3), own=st.booleans())
def test_hashed_rows(given_, lookups, own):
    keys, rows = keys_of(given_), numbers(given_, 1, MAX_ROWS)
    first = numbers(given_, 0, 4 - lookups)
    if own and lookups == 1:
        rows[0] = 0
    found = by_both(lambda batch: hashed(batch, keys, first, rows, lookups), given_)
    alone = [
        hash_rows(ids, key.cpu()[start : start + lookups], size) if size else ids
        for ids, key, start, size in zip(given_.ids, keys, first, rows, strict=True)
    ]
    assert torch.equal(found, joined(alone))


@few
@given(given_=inputs(most=MAX_IDS), lookups=st.integers(1, 3))
def test_balanced_rows(given_, lookups):
    keys, rows = keys_of(given_, balanced_key), numbers(given_, 1, MAX_ROWS)
    domains = [Domain.of(space, size) for space, size in zip(given_.limits, rows, strict=True)]
    first = numbers(given_, 0, 4 - lookups)
    found = by_both(lambda batch: balanced(batch, keys, first, domains, lookups), given_)
    alone = [
        balanced_rows(ids, key.cpu()[start : start + lookups], space, size).t()
        for ids, key, start, space, size in zip(given_.ids, keys, first, given_.limits, rows, strict=True)
    ]
    assert torch.equal(found, joined(alone))


@few
@given(given_=inputs())
def test_digits(given_):
    below, radix = numbers(given_, 1, 2**40), numbers(given_, 1, 2**20)
    below[0], radix[-1] = 1, 2**63 - 1
    found = by_both(lambda batch: digits(batch, below, radix), given_)
    triples = zip(given_.ids, below, radix, strict=True)
    alone = [int(id) // lower % own for ids, lower, own in triples for id in ids]
    assert found.flatten().tolist() == alone


@few
@given(given_=inputs())
def test_rows_of_blocks(given_):
    keys, width, after = keys_of(given_), numbers(given_, 1, 9), numbers(given_, 0, 2)
    first = numbers(given_, 0, 3)
    size = [row * number for row, number in zip(width, numbers(given_, 1, 5), strict=True)]  # so few that they wrap
    found = by_both(lambda batch: blocks(batch, keys, first, size, width, after), given_)
    alone = [
        (hash_rows(ids, key.cpu()[at : at + 1], entries) // row + further) % (entries // row)
        for ids, key, at, entries, row, further in zip(given_.ids, keys, first, size, width, after, strict=True)
    ]
    assert torch.equal(found, joined(alone))


@few
@given(given_=inputs(most=2**40), lookups=st.integers(1, 2), data=st.data())
def test_rows_of_frequent_ids(given_, lookups, data):
    keys, rows = keys_of(given_, lookups=lookups), numbers(given_, 1, MAX_ROWS)
    lists = []
    for ids, space in zip(given_.ids, given_.limits, strict=True):
        others = torch.randint(space, (data.draw(st.sampled_from([0, 1, 40])),))
        some = torch.cat([ids[::3], others]) if data.draw(st.booleans()) else ids[:0]
        narrow = space <= 2**31 and data.draw(st.booleans())
        lists.append(some.unique().to(torch.int32 if narrow else torch.int64).to(DEVICE))
    found = by_both(lambda batch: frequent(batch, keys, rows, lists, lookups)[0], given_)
    expected, weights = [], []
    for ids, key, size, owners in zip(given_.ids, keys, rows, lists, strict=True):
        place = {id: rank for rank, id in enumerate(owners.tolist())}
        hashed_rows = (hash_rows(ids, key.cpu(), size) + len(owners)).tolist()
        for id, others in zip(ids.tolist(), hashed_rows, strict=True):
            expected.append([place[id]] * lookups if id in place else others)
            weights.append([1.0, 0.0 if id in place else 1.0])
    assert found.tolist() == expected
    if lookups == 2:
        found = by_both(lambda batch: frequent(batch, keys, rows, lists, 2)[1], given_)
        assert found.tolist() == weights


def maps_of(given: Input, entries: Sequence[int], values: Sequence[int]) -> list[Tensor]:
    """A packed map of each part; the last part has that of the first where they are alike."""
    made = [
        pack(torch.randint(bound, (number,)), bits_for(bound)).to(DEVICE)
        for number, bound in zip(entries, values, strict=True)
    ]
    alike = (entries[-1], values[-1]) == (entries[0], values[0])
    return [*made[:-1], made[0]] if alike else made


@few
@given(given_=inputs(most=5000))
def test_rows_of_clusters(given_):
    """Some entries mean that an id has no cluster, the last ids are not in the map, and some parts read no map."""
    values = numbers(given_, 2, 3000)
    entries = [max(1, space - 2) for space in given_.limits]
    words, bits = maps_of(given_, entries, values), [bits_for(value) for value in values]
    own, shift = [value - 1 for value in values], numbers(given_, 0, 50)
    mapped = [0 if part == 1 else number for part, number in enumerate(entries)]
    keys, first, rows = keys_of(given_), numbers(given_, 0, 3), numbers(given_, 1, MAX_ROWS)

    def make(batch: Batch) -> Tensor:
        return clustered(batch, words, bits, mapped, own, keys, first, rows, shift)

    alone = []
    for part, ids in enumerate(given_.ids):
        row = unpack_known(words[part].cpu(), bits[part], ids, mapped[part], own[part])
        other = hash_rows(ids, keys[part].cpu()[first[part] : first[part] + 1], rows[part])[:, 0] + shift[part]
        alone.append(torch.where(row < 0, other, row))
    assert torch.equal(by_both(make, given_), joined(alone))


@few
@given(given_=inputs(most=5000))
def test_two_rows_of_a_chunk(given_):
    rows, chunks = numbers(given_, 1, 3000), numbers(given_, 1, 4)
    chunk = [(part + number) % number for part, number in enumerate(chunks)]
    entries = [space * number for space, number in zip(given_.limits, chunks, strict=True)]
    words, bits = maps_of(given_, entries, rows), [bits_for(value) for value in rows]
    keys = keys_of(given_)
    found = by_both(lambda batch: two_rows(batch, words, bits, chunks, chunk, keys, rows), given_)
    alone = []
    for part, ids in enumerate(given_.ids):
        row = unpack(words[part].cpu(), bits[part], ids * chunks[part] + chunk[part])
        other = hash_rows(ids, keys[part].cpu()[chunk[part] : chunk[part] + 1], rows[part])[:, 0] + rows[part]
        alone.append(torch.stack([row, other], 1) + 2 * chunk[part] * rows[part])
    assert torch.equal(found, joined(alone))


@few
@given(given_=inputs(most=5000))
def test_rows_of_kept_blocks(given_):
    block, values = numbers(given_, 1, 6), numbers(given_, 1, 3000)
    entries = [-(-space // size) for space, size in zip(given_.limits, block, strict=True)]
    words, bits = maps_of(given_, entries, values), [bits_for(value) for value in values]
    alone = [
        unpack(words[part].cpu(), bits[part], ids // block[part]) * block[part] + ids % block[part]
        for part, ids in enumerate(given_.ids)
    ]
    assert torch.equal(by_both(lambda batch: kept_rows(batch, words, bits, block), given_), joined(alone))


@few
@given(
    given_=inputs(most=300),
    spans=st.sampled_from([((0,), (0, 1), (0, 1, 2, 3)), ((2,), (1,)), ((0, 1), (1, 2), (2, 3))]),
    size=st.sampled_from([3, 300, 2**21]),
    weighted=st.booleans(),
    is_open=st.booleans(),
)
def test_rows_of_code_pieces(given_, spans, size, weighted, is_open):
    """Against the encoder of `SemanticIds`; with the largest codes the numbers of four columns are folded."""
    ranges = tuple(ranges_of(spans, size, 997, one_namespace=False))
    reading = Reading(spans, size, ranges, 997, False, weighted, 0.0, 5, True, None)
    encoders = []
    for part, space in enumerate(given_.limits):
        items = max(1, space // 2) if is_open and weighted else space
        maps = torch.randint(size, (items, 4)), torch.rand(items, len(spans)) < 0.6
        table = Table(f"t{part}", None if is_open else space, 8)
        encoders.append(SemanticEncoder(table, {}, ItemCodes(*maps, None, None, size), reading))
    alone = [encoder(ids)[0] for encoder, ids in zip(encoders, given_.ids, strict=True)]
    encoders = [encoder.to(DEVICE) for encoder in encoders]
    codes, keys = [encoder.codes for encoder in encoders], [encoder.keys for encoder in encoders]
    supported = [encoder.supported for encoder in encoders] if weighted else None

    def make(batch: Batch) -> tuple[Tensor, Tensor | None]:
        return pieces(batch, codes, supported, keys, reading.plan(), size, reading.rows)

    assert torch.equal(by_both(lambda batch: make(batch)[0], given_), joined([rows.rows for rows in alone]))
    if weighted:
        assert torch.equal(by_both(lambda batch: make(batch)[1], given_), joined([rows.weights for rows in alone]))


@few
@given(given_=inputs(wrong=True))
def test_an_id_out_of_range_raises_in_both_forms(given_):
    keys, rows = keys_of(given_), numbers(given_, 1, MAX_ROWS)
    for serves in (True, False):
        with one_launch(serves), pytest.raises(RuntimeError, match=r"tables \['films'\]: an id is out of range"):
            hashed(given_.batch(), keys, [0] * len(given_), rows, 1)


def test_a_batch_without_ids_has_no_rows():
    none = torch.empty(0, dtype=torch.int64, device=DEVICE)
    keys = [torch.tensor([hash_key(0, "t", 0)], device=DEVICE)] * 2
    with one_launch():
        batch = Batch(none, torch.tensor([0, 0], device=DEVICE), None, [none, none], [5, None], ["films"])
        assert hashed(batch, keys, [0, 0], [3, 3], 1).shape == (0, 1)


def test_ids_that_are_no_integers_name_their_tables():
    with pytest.raises(ValueError, match=r"table 'films, users': ids must be integers"):
        Batch(torch.rand(2), torch.tensor([2]), None, [torch.rand(2)], [None], ["films", "users"])


def test_a_map_on_another_device_is_refused():
    """Its address would be read on the wrong device."""
    ids, none = torch.tensor([1], device=DEVICE), torch.zeros(4, dtype=torch.int64, device=DEVICE)
    with one_launch():
        batch = Batch(ids, torch.tensor([1], device=DEVICE), None, [ids], [None], ["films"])
        with pytest.raises(RuntimeError, match=r"'films'.*a map is on meta"):
            hashed(batch, [none.to("meta")], [0], [3], 1)
        with pytest.raises(RuntimeError, match=r"'films'.*is not contiguous"):
            hashed(batch, [none[::2]], [0], [3], 1)
