"""What a plan leaves of the budget goes to its shared rows and ranks."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embcomp
from embcomp.planner.choice import kind
from embcomp.planner.estimates import ByRules
from embcomp.planner.growth import resized, size_of
from embcomp.planner.options import options_of
from embcomp.planner.search import Search
from embcomp.planner.tables import held_tables

TABLE = embcomp.Table("item", 30_000, 64)


@settings(max_examples=15)
@given(share=st.floats(0.015, 0.09), count=st.sampled_from(["served", "training"]))
def test_no_wider_rank_or_further_row_fits(share, count):
    budget = int(share * 4 * TABLE.num_embeddings * TABLE.embedding_dim)
    choice = embcomp.choose([TABLE], budget, count=count)
    method = choice.tables[0].method
    size = size_of(method)
    assert size is not None
    assert method.sizes([TABLE]).nbytes(count) == choice.nbytes <= budget
    assert resized(method, size + 1).sizes([TABLE]).nbytes(count) > budget


@pytest.mark.parametrize("share", [0.05, 0.089])
def test_ranks_stay_multiples_of_four_where_fbgemm_reads_them(share):
    tables = [TABLE, dataclasses.replace(TABLE, name="user")]
    choice = embcomp.choose(tables, f"{100 * share}%", count="training", widths="fbgemm")
    for chosen in choice.tables:
        stores = chosen.method.sizes([TABLE]).stores.values()
        assert all(store.dim % 4 == 0 for store in stores)


def test_the_size_of_a_method_is_that_of_its_rows_or_else_its_rank():
    inner = embcomp.LowRank(rank=3, of=embcomp.HashingTrick(rows=50))
    assert size_of(embcomp.LowBit(bits=4, of=inner)) == 50
    assert resized(embcomp.LowBit(bits=4, of=inner), 60).of.of.rows == 60
    assert size_of(embcomp.LowBit(bits=4, of=embcomp.LowRank(rank=3))) == 3
    assert resized(embcomp.LowBit(bits=4, of=embcomp.LowRank(rank=3)), 5).of.rank == 5
    assert size_of(embcomp.LowBit(bits=4)) is None


def test_ranks_that_grow_into_one_compete_once(monkeypatch):
    held = held_tables([TABLE], None)
    options = options_of(held, "training")
    plans = [[option] for option in options if kind(option.method) in ("LowRank 3", "LowRank 4")]
    budget = embcomp.LowRank(rank=5).sizes([TABLE]).nbytes("training")
    search = Search(held, options, ByRules(held, {}), "training", budget)
    monkeypatch.setattr(search, "candidates", lambda in_time: plans)
    assert len(plans) == 2
    assert [[size_of(option.method) for option in plan] for plan in search.rivals()] == [[5]]
