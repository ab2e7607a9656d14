"""Tables that say nothing: what `rank_features` finds is taken as it is, and they disturb no shared store."""

import numpy as np
import polars as pl
import pytest
import torch

import embcomp

IDS = {"shop": 2000, "visit": 6000, "person": 3000}


@pytest.fixture(scope="module")
def ranking():
    rng = np.random.default_rng(0)
    columns = {name: rng.integers(ids, size=40_000) for name, ids in IDS.items()}
    effect = sum(rng.normal(size=IDS[name])[columns[name]] for name in ("shop", "person"))
    return embcomp.rank_features(pl.DataFrame({**columns, "label": rng.random(40_000) < 1 / (1 + np.exp(-effect))}))


def test_useless_features_get_next_to_nothing(ranking):
    tables = [embcomp.Table(name, ids, 8) for name, ids in IDS.items()]
    assert ranking.useless == ["visit"]
    choice = embcomp.choose(tables, "10%", worth=ranking)
    by_name = {table.name: table for table in choice.tables}
    assert by_name["visit"].served < 0.01 * choice.budget
    assert by_name["visit"].served < 0.1 * embcomp.choose(tables, "10%").tables[1].served
    assert "drop it" in by_name["visit"].note
    assert by_name["shop"].worth / by_name["person"].worth == pytest.approx(
        ranking.scores["shop"] / ranking.scores["person"]
    )


def test_a_feature_finds_its_table_by_the_end_of_its_path(ranking):
    tables = torch.nn.ModuleDict({name: torch.nn.Embedding(ids, 8) for name, ids in IDS.items()})
    model = torch.nn.ModuleDict({"tables": tables})
    counts = {"shop": torch.ones(IDS["shop"], dtype=torch.int64)}
    choice = embcomp.choose(model, "10%", worth=ranking, counts=counts)
    said = {table.name: table.note for table in choice.tables}
    assert [name for name, note in said.items() if "drop it" in note] == ["tables.visit"]
    both = torch.nn.ModuleDict({"visit": torch.nn.Embedding(IDS["visit"], 8), "other": model})
    choice = embcomp.choose(both, "10%", worth=ranking)  # a table of just this name is meant alone
    said = {table.name: table.note for table in choice.tables}
    assert [name for name, note in said.items() if "drop it" in note] == ["visit"]


@pytest.mark.parametrize("nbytes", ["1%", "4%", "20%"])
def test_they_are_in_no_store_that_others_read(nbytes):
    tables = [embcomp.Table(name, ids, 8) for name, ids in IDS.items()]
    choice = embcomp.choose(tables, nbytes, worth={"shop": 1.0, "visit": 0.0, "person": 1.0})
    silent, *others = sorted(choice.tables, key=lambda table: table.worth)
    assert silent.name == "visit"
    assert all(table.method is not silent.method for table in others)
