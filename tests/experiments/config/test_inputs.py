"""What methods are given from the training split, and by which name."""

import dataclasses
from typing import Any

import pytest
import torch

import embcomp
from embcomp.methods import METHODS, HashingTrick
from experiments.config.inputs import PROVIDERS, provided
from experiments.errors import InputError
from experiments.tasks.task import prepare

PAIRS = {
    "data": {"name": "synthetic", "options": {"num_rows": 4_000, "num_users": 60, "num_items": 50}},
    "model": {"name": "MF", "options": {}},
    "training": {"monitor": "valid/recall@20"},
    "retrieval": {},
}


class Training:
    def counts(self):
        return {"item": torch.tensor([3, 1])}


def test_a_method_is_given_what_it_has_fields_for():
    assert provided("HashingTrick", {}, Training()) == {}
    given = provided("FrequencyHash", {}, Training())
    assert given["counts"]["item"].tolist() == [3, 1]
    assert provided("FrequencyHash", {"counts": [1, 2]}, Training()) == {}


@pytest.mark.parametrize("method", ["GraphHash", "DoubleGraphHash", "SoftGraphHash", "LSHash"])
def test_graph_methods_fill_a_budget_from_the_edges_of_training(make_run, method):
    task = prepare(make_run(**PAIRS, methods=[{"method": method, "share": 0.6}]))
    nbytes = embcomp.nbytes(task.model(torch.device("cpu")).embeddings)
    assert 0.85 * task.full_nbytes < nbytes / 0.6 <= task.full_nbytes
    if method != "LSHash":
        clusters = task.method.clusters["user_id"].assignment()
        assert (clusters >= 0).tolist() == (task.data.counts("user_id") > 0).tolist()


def test_settings_of_the_clustering_are_options(make_run):
    options = {"objective": "balanced", "algorithm": "label_propagation"}
    plain, balanced = (
        prepare(make_run(**PAIRS, methods=[{"method": "GraphHash", "share": 0.4, "options": given}])).method
        for given in ({}, options)
    )
    rows = [method.clusters["item_id"].assignment().tolist() for method in (plain, balanced)]
    assert rows[0] != rows[1]


@pytest.fixture
def needs_clusters(monkeypatch):
    """A method whose `for_budget` makes a field that it needs from edges."""
    monkeypatch.setitem(PROVIDERS, "clusters", lambda training: {"edges": training.edges()})

    @dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
    class NeedsClusters(HashingTrick):
        clusters: Any

        @classmethod
        def for_budget(cls, tables, nbytes, edges, **fixed):
            return cls(rows=7, clusters=edges.shape, **fixed)

    yield
    del METHODS["NeedsClusters"]


def test_a_field_that_depends_on_the_budget_comes_from_the_edges_of_training(make_run, needs_clusters):
    task = prepare(make_run(**PAIRS, methods=[{"method": "NeedsClusters", "share": 0.5}]))
    assert task.method.clusters == (2, len(task.data.pairs["train"]))
    assert task.method.seed == 0


def test_clicks_have_no_edges_until_the_graph_names_two_features(make_run, needs_clusters):
    with pytest.raises(InputError, match=r"synthetic are clicks; .* say in \[graph\]"):
        prepare(make_run(methods=[{"method": "NeedsClusters", "share": 0.5}]))
    with pytest.raises(InputError, match=r"graph\.item: no feature 'film'"):
        prepare(make_run(graph={"user": "user", "item": "film"}))


def test_edges_of_clicks_are_the_positive_rows_of_training(make_run):
    method = {"method": "GraphHash", "table": ["user", "item"], "share": 0.5}
    task = prepare(make_run(graph={"user": "user", "item": "item"}, methods=[method]))
    assert task.run.name == "synthetic-DCN-GraphHash-share0.5-seed0"  # graph runs compare models
    rows = task.data.split("train").collect()
    clicked = rows.filter(rows["label"] == 1)
    for name in ("user", "item"):
        clusters = task.method.clusters[name].assignment()
        assert (clusters >= 0).nonzero()[:, 0].tolist() == clicked[name].unique().sort().to_list()
        assert task.method.clusters[name].side == f"{name}s"
    built = task.model(torch.device("cpu"))
    others = sum(t.num_embeddings for t in task.tables if t.name not in ("user", "item")) * 8 * 4
    share = (built.nbytes - others) / (task.full_nbytes - others)
    assert 0.45 < share <= 0.5
