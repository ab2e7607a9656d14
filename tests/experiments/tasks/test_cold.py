"""Items held out of training and clustering: what is hidden, where interactions place them, how they are judged."""

import pytest
import torch

from embcomp.graph import interactions
from embcomp.ops.kmeans import no_progress
from experiments.tasks.cold import extended, placed
from experiments.tasks.ranking import pair_auc
from experiments.tasks.task import prepare
from experiments.training.train import Trainer

CPU = torch.device("cpu")
PAIRS = {
    "data": {
        "name": "synthetic",
        "options": {"num_rows": 12_000, "num_users": 150, "num_items": 120, "num_communities": 4, "drift": 0.0},
    },
    "model": {"name": "MF", "options": {}},
    "optimizer": {"lr": 0.02},
    "training": {"epochs": 4, "monitor": "valid/recall@20"},
    "retrieval": {"validate_every": 4, "cold": {"share": 0.2, "first": [1, 3]}},
}


@pytest.fixture
def make_task(make_run):
    return lambda method, **budget: prepare(make_run(**PAIRS, methods=[{"method": method, **budget}]))


def test_cold_items_are_in_the_test_split_alone(make_task):
    task = make_task("GraphHash", share=0.4)
    cold = task.cold.hidden[1].unique()
    assert 0.1 < len(cold) / task.data.num_items < 0.3
    for split in ("train", "valid", "test"):
        assert not torch.isin(task.data.edges(split)[1], cold).any()
    assert (task.method.clusters["item_id"].row_of(cold) == -1).all()
    for n in (1, 3):
        users, items = task.cold.first(n)
        counts = task.cold.hidden[1].bincount(minlength=task.data.num_items)
        assert torch.equal(items.bincount(minlength=task.data.num_items), counts.clamp(max=n))
        hidden = set(map(tuple, task.cold.hidden.T.tolist()))
        assert set(zip(users.tolist(), items.tolist(), strict=True)) <= hidden


@pytest.mark.parametrize("method", ["GraphHash", "SoftGraphHash", "HashingTrick"])
def test_placing_moves_the_cold_items_alone(make_task, method):
    task = make_task(method, share=0.6)
    built = task.model(CPU)
    before = built.model.items.weight.detach().clone()
    train = task.data.edges("train")
    with placed(built.model.items, task.method, task.tables, torch.cat([train, task.cold.first(3)], dim=1)):
        inside = built.model.items.weight.detach()
    assert torch.equal(before, built.model.items.weight)
    moved = (inside != before).any(1).nonzero()[:, 0]
    assert torch.isin(moved, task.cold.hidden[1].unique()).all()
    assert bool(len(moved)) == (method != "HashingTrick")


def test_an_item_goes_where_its_users_are(make_task):
    task = make_task("GraphHash", share=0.4)
    clusters, shown = task.method.clusters, task.cold.first(1)
    sizes = {"num_users": task.data.num_users, "num_items": task.data.num_items}
    found = extended(task.method, interactions(tuple(shown.numpy()), **sizes)).clusters["item_id"]
    rows = clusters["user_id"].row_of(shown[0])
    labels = clusters["user_id"].labels[rows.clamp(min=0)]
    known = (rows >= 0) & torch.isin(labels, clusters["item_id"].labels)
    assert known.any()
    assert torch.equal(found.labels[found.row_of(shown[1][known])], labels[known])


def test_a_run_judges_them_at_each_number_of_interactions(make_task, tmp_path):
    task = make_task("GraphHash", share=0.4)
    metrics = Trainer(task, folder=tmp_path, key="key", device=CPU, report=no_progress).fit().metrics
    for name in ("recall@10", "ndcg@50", "auc"):
        assert {key for key in metrics if key.startswith(f"test/{name}/")} == {f"test/{name}/first-{n}" for n in (1, 3)}
    assert metrics["test/rows/first-1"] == task.cold.wanted.shape[1]
    assert metrics["test/auc/first-3"] > 0.55  # a coin has 0.5


def test_auc_of_pairs_by_hand():
    class Fixed(torch.nn.Module):
        def scorer(self, items):
            return lambda users: torch.tensor([[5.0, 4.0, 4.0, 3.0, 9.0], [1.0, 2.0, 3.0, 4.0, 5.0]])[users][:, items]

    known, wanted = torch.tensor([[0, 1], [4, 0]]), torch.tensor([[0, 0, 1], [1, 3, 2]])
    # User 0: item 1 is below 0 and equal to 2; item 3 is below both. User 1: item 2 is below 3 and 4, above 1.
    assert pair_auc(Fixed(), known, wanted, 5, 1) == pytest.approx((0.25 + 0.0 + 1 / 3) / 3)
