"""The rows of several features by one call: both forms against the written specification."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embcomp.ops.balanced import Domain, balanced_key, balanced_rows_reference
from embcomp.ops.hashed_features import Hashes, hash_features, hash_features_reference
from embcomp.ops.hashing import MAX_ROWS, hash_key
from tests import hash_spec

FORMS = [hash_features, hash_features_reference]


def of_names(names: list[tuple[str, int]], rows: int, **more) -> Hashes:
    return Hashes(torch.tensor([hash_key(0, *name) for name in names]), rows, None, **more)


@given(
    sizes=st.lists(st.integers(0, 700), min_size=1, max_size=4),
    chunks=st.integers(1, 3),
    rows=st.sampled_from([1, 7, 1000, MAX_ROWS]),
    by_key=st.booleans(),
    before=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_rows_are_those_of_the_specification(sizes, chunks, rows, by_key, before, seed):
    draw = torch.Generator().manual_seed(seed)
    total = before + sum(sizes)
    ids = torch.randint(0, 2**63 - 1, (total,), generator=draw)
    ids[:before] = -1  # of a feature that is not asked for
    spans, hashes, at = [], [], before
    for number, size in enumerate(sizes):
        spans.append((at, at + size))
        hashes.append(of_names([(f"t{number}", chunk) for chunk in range(chunks)], rows, by_key=by_key))
        at += size
    out = [torch.full((sum(sizes) * chunks,), -1) for _ in FORMS]
    assert [form(ids, spans, hashes, made) for form, made in zip(FORMS, out, strict=True)] == [None, None]
    assert torch.equal(*out)
    place = 0
    for number, (size, (first, last)) in enumerate(zip(sizes, spans, strict=True)):
        own = out[0][place : place + size * chunks]
        own = own.view(chunks, size).t() if by_key else own.view(size, chunks)
        for i in range(0, size, 97):
            wanted = [hash_spec.row(int(ids[first:last][i]), 0, f"t{number}", chunk, rows) for chunk in range(chunks)]
            assert own[i].tolist() == wanted
        place += size * chunks


@given(size=st.integers(0, 50), ids=st.integers(1, 10**6), rows=st.integers(1, 10**6), seed=st.integers(0, 9))
def test_balanced_and_plain_hashes_side_by_side(size, ids, rows, seed):
    given_ids = torch.randint(0, ids, (2 * size,), generator=torch.Generator().manual_seed(seed))
    keys = torch.tensor([balanced_key(0, "t", chunk) for chunk in range(2)])
    domain = Domain.of(ids, rows)
    both = [Hashes(keys, rows, ids, domain=domain), of_names([("u", 0)], rows)]
    out = [torch.empty(3 * size, dtype=torch.int64) for _ in FORMS]
    for form, made in zip(FORMS, out, strict=True):
        assert form(given_ids, [(size, 2 * size), (0, size)], both, made) is None
    assert torch.equal(*out)
    assert torch.equal(out[0][: 2 * size].view(2, size), balanced_rows_reference(given_ids[size:], keys, domain))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("wrong", "limit"), [(-1, None), (-(2**63), None), (5, 5), (-1, 5), (2**63 - 1, 5)])
def test_the_first_feature_with_a_wrong_id_is_named_and_nothing_of_it_written(form, wrong, limit):
    hashes = [Hashes(torch.tensor([hash_key(0, "t", 0)]), 9, None), Hashes(torch.tensor([1]), 9, limit)]
    out = torch.full((4,), -7)
    assert form(torch.tensor([2**62, 3, 4, wrong]), [(0, 2), (2, 4)], hashes, out) == 1
    assert int(out[:2].min()) >= 0
    assert out[2:].tolist() == [-7, -7]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spans": [(0, 4)]}, r"a span of 3 ids is \(0, 4\)"), ({"spans": [(-1, 2)]}, "a span of 3 ids"),
        ({"spans": [(0, 2)]}, "out has 3 places for 2 rows"), ({"rows": 0}, r"rows must be in \[1, 2\^31\), got 0"),
        ({"rows": 2**31}, "rows must be in"), ({"out": torch.empty(3)}, "out must be contiguous torch.int64"),
        ({"out": torch.empty(6, dtype=torch.int64)[::2]}, "out must be contiguous"),
        ({"ids": torch.arange(3, dtype=torch.int32)}, "ids must be contiguous torch.int64"),
        ({"keys": torch.zeros(1, 8, dtype=torch.int64)}, "keys must be contiguous"),
        ({"domain": Domain(0, 1, 1, 0)}, r"keys must be contiguous torch.int64 \[1, 8\]"),
        ({"domain": Domain(0, 1, 1, 0), "by_key": False}, "balanced hashes are laid out by key"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, said):
    given_ = {"ids": torch.arange(3), "spans": [(0, 3)], "out": torch.empty(3, dtype=torch.int64)}
    hashes = {"keys": torch.tensor([1]), "rows": 5, "num_embeddings": None}
    hashes |= {name: value for name, value in change.items() if name not in given_}
    if "spans" in change and change["spans"] != [(0, 2)]:
        given_["out"] = torch.empty(change["spans"][0][1] - change["spans"][0][0], dtype=torch.int64)
    given_ |= {name: value for name, value in change.items() if name in given_}
    with pytest.raises(ValueError, match=said):
        hash_features(given_["ids"], given_["spans"], [Hashes(**hashes)], given_["out"])
