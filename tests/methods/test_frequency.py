import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embcomp import FrequencyHash
from embcomp.methods import Table
from embcomp.nn import CompressedEmbedding
from embcomp.testing.drop_ins import randomize
from tests import hash_spec

COUNTS = torch.tensor([3, 0, 8, 8, 1, 8, 0, 2, 5, 1])


def module(**settings: Any) -> CompressedEmbedding:
    return randomize(CompressedEmbedding(10, 4, FrequencyHash(**{"rows": 7, "counts": COUNTS, **settings})))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 50), st.floats(0, 0.99), st.booleans())
def test_the_top_ids_own_rows_and_the_tail_never_touches_them(
    counts: list[int], rows: int, share: float, double: bool
) -> None:
    method = FrequencyHash(rows=rows, counts=torch.tensor(counts), hot_share=share, tail="double" if double else "hash")
    built = CompressedEmbedding(len(counts), 4, method)
    by_count = sorted((id for id, count in enumerate(counts) if count), key=lambda id: (-counts[id], id))
    hot = sorted(by_count[: min(int(rows * share), rows - 1)])
    assert built.encoder.hot_ids.tolist() == hot
    ((read, weights),) = built.encoder(torch.arange(len(counts)))
    for id in range(len(counts)):
        used = read[id].tolist() if weights is None else read[id][weights[id] != 0].tolist()
        if id in hot:
            assert used == [hot.index(id)]
        else:
            tail = rows - len(hot)
            expected = [len(hot) + hash_spec.row(id, 0, "embedding", j, tail) for j in range(1 + double)]
            assert used == expected
            assert min(used) >= len(hot)


def test_vectors_of_both_tails() -> None:
    """Of 7 rows half (3) are owned: by 2, 3 and 5, the earlier ids among equals."""
    for tail, lookups in (("hash", 1), ("double", 2)):
        built = module(tail=tail, seed=5)
        (table,) = built.parameters()
        assert built.encoder.hot_ids.tolist() == [2, 3, 5]
        for place, id in enumerate((2, 3, 5)):
            assert torch.equal(built(torch.tensor(id)), table[place])
        for id in (0, 1, 4, 6, 7, 8, 9):
            rows = [3 + hash_spec.row(id, 5, "embedding", j, 4) for j in range(lookups)]
            torch.testing.assert_close(built(torch.tensor(id)), sum(table[row] for row in rows))


def test_equal_counts_are_ordered_by_id_in_large_tables_too() -> None:
    """An unstable sort keeps the order of a few elements by chance."""
    counts = torch.arange(20_000) % 3
    built = CompressedEmbedding(20_000, 4, FrequencyHash(rows=8000, counts=counts))
    assert built.encoder.hot_ids.tolist() == list(range(2, 12_000, 3))


def test_training_a_tail_id_leaves_owned_rows_alone() -> None:
    built = module(tail="double")
    built(torch.tensor([0, 1, 4, 6, 7, 8, 9])).sum().backward()
    (table,) = built.parameters()
    assert not table.grad[:3].any()
    built.zero_grad()
    built(torch.tensor([2])).sum().backward()
    assert table.grad.nonzero()[:, 0].unique().tolist() == [0]


def test_ids_that_never_occur_own_nothing() -> None:
    assert module(rows=20, hot_share=0.9).encoder.hot_ids.tolist() == [0, 2, 3, 4, 5, 7, 8, 9]
    assert module(counts=torch.zeros(10)).encoder.hot_ids.tolist() == []
    assert module(hot_share=0.0).encoder.hot_ids.tolist() == []
    assert module(rows=1).encoder.hot_ids.tolist() == []
    for tail in ("hash", "double"):
        built = module(counts=torch.zeros(10), tail=tail)
        assert built(torch.arange(10)).shape == (10, 4)


def test_the_map_is_stored_and_counted() -> None:
    built = module()
    assert built.encoder.hot_ids.dtype == torch.int32
    assert FrequencyHash(rows=7, counts=COUNTS).plan([Table("t", 10, 4)]).nbytes() == 7 * 4 * 4 + 3 * 4 + 8
    assert "encoder.hot_ids" in built.state_dict()


def test_counts_of_any_number_type_and_by_table_name() -> None:
    expected = module().encoder.hot_ids.tolist()
    for counts in (
        COUNTS.float(),
        COUNTS.to(torch.uint8),
        COUNTS.numpy(),
        COUNTS.numpy().astype(np.int32),
        COUNTS.tolist(),
    ):
        assert module(counts=counts).encoder.hot_ids.tolist() == expected
    plan = FrequencyHash(rows=4, counts={"a": COUNTS, "b": torch.arange(5)}).plan([Table("a", 10, 4), Table("b", 5, 8)])
    assert [table.encoder.hot_ids.tolist() for table in plan.tables] == [[2, 3], [3, 4]]


def test_what_does_not_fit_is_refused() -> None:
    table = Table("t", 10, 4)
    for counts, message in [
        (torch.ones(9), r"table 't': counts must have shape \[10\], got \[9\]"),
        (torch.ones(10, 1), r"shape \[10\], got \[10, 1\]"),
        (-torch.ones(10), "table 't': counts must not be negative, infinite or NaN"),
        (torch.full((10,), float("nan")), "infinite or NaN"),
        (torch.tensor([1.0] * 9 + [float("inf")]), "infinite or NaN"),
        ({"u": COUNTS}, r"counts names no table 't'; it has \['u'\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            FrequencyHash(rows=4, counts=counts).plan([table])
        with pytest.raises(ValueError, match=message):
            FrequencyHash.for_budget([table], 10_000, counts=counts)
    with pytest.raises(ValueError, match="tail must be 'hash' or 'double', got 'triple'"):
        FrequencyHash(rows=4, counts=COUNTS, tail="triple")
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"hot_share must be in \[0, 1\)"):
            FrequencyHash(rows=4, counts=COUNTS, hot_share=share)
    with pytest.raises(TypeError, match="counts"):
        FrequencyHash.for_budget([table], 10_000)


def test_a_state_brings_its_own_map() -> None:
    """Who owns rows is part of what was trained: it is loaded, whatever the counts here say."""
    source, target = module(counts=COUNTS.flip(0)), module()
    target.load_state_dict(source.state_dict())
    assert target.encoder.hot_ids.tolist() == [4, 6, 7]
    assert torch.equal(target.materialize(), source.materialize())
    before = target.materialize().detach()
    with pytest.raises(ValueError, match="hot: saved 1, here 3"):
        target.load_state_dict(module(counts=torch.eye(10)[0]).state_dict())
    assert torch.equal(target.materialize(), before)


def test_counts_do_not_stay_in_the_module() -> None:
    """Ten million counts are no part of a trained model."""
    counts = torch.ones(100_000)
    built = CompressedEmbedding(100_000, 4, FrequencyHash(rows=10, counts=counts))
    assert len(pickle.dumps(built)) < 10_000


def test_a_budget_is_cheap_to_find_for_large_tables() -> None:
    """The counts are sorted for the result alone, not at each step of the search."""
    counts = torch.arange(300_000)
    sorted_calls = []
    argsort = torch.argsort

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        sorted_calls.append(1)
        return argsort(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "argsort", counted)
        FrequencyHash.for_budget([Table("t", 300_000, 8)], 1_000_000, counts=counts)
    assert len(sorted_calls) <= 1
