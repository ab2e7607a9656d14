"""Runs on behavior sequences: what they compare, slices, budgets, resuming, what is refused."""

import json

import pytest
import torch

import data
from embcomp.ops.kmeans import no_progress
from experiments.bench.published import PublishedDIN, PublishedSDIM
from experiments.errors import InputError
from experiments.load import CONFIGS, check, load
from experiments.runs.runner import Settings, execute
from experiments.tasks.datasets import load_data
from experiments.tasks.metrics import click_metrics
from experiments.tasks.task import prepare
from experiments.training.train import Trainer
from recsys_models.attention import DINAttention

CPU = torch.device("cpu")


@pytest.fixture
def small():
    return {
        "experiment": "sequences",
        "data": {"name": "synthetic", "options": {"num_rows": 3000, "num_users": 60, "num_items": 200, "drift": 0.0}},
        "model": {"name": "BehaviorModel", "embedding_dim": 8, "options": {"hidden": [16]}},
        "optimizer": {"lr": 0.02},
        "training": {"batch_size": 16, "eval_batch_size": 7, "epochs": 3, "patience": 3},
        "behavior": {"task": "next", "length": 20, "request": 4, "poolings": [{"pooling": "average"}]},
        "slices": {"long": {"feature": "history", "min_count": 20}, "short": {"feature": "history", "max_count": 19}},
        "methods": [{"method": "Full"}],
    }


def test_poolings_times_methods_times_seeds(small):
    small["behavior"]["poolings"] = [
        {"pooling": "sdim", "options": {"rule": "kernel"}, "seeds": [0, 3]},
        {"pooling": "din", "options": {"last": 5}, "label": "DIN, last 5"},
    ]
    small["methods"].append({"method": "DoubleHash", "share": 0.5})
    runs = list(check(small, "x").runs())
    assert [run.name for run in runs] == [
        "synthetic-next-sdim-rule=kernel-seed0",
        "synthetic-next-sdim-rule=kernel-DoubleHash-share0.5-seed0",
        "synthetic-next-DIN-last-5-seed0",
        "synthetic-next-DIN-last-5-DoubleHash-share0.5-seed0",
        "synthetic-next-sdim-rule=kernel-seed3",
        "synthetic-next-sdim-rule=kernel-DoubleHash-share0.5-seed3",
    ]
    assert runs[2].to_dict()["behavior"] == {
        "task": "next", "length": 20, "request": 4, "pooling": "din", "options": {"last": 5},
    }  # fmt: skip
    model = prepare(runs[2]).model(CPU).model
    assert (model.last, model.mlp[0].out_features) == (5, 16)


@pytest.mark.parametrize("task", ["like", "next"])
def test_metrics_are_of_every_row_and_of_its_slices(make_run, task):
    """Against one pass over all rows at once."""
    prepared = prepare(make_run(behavior={"task": task}))
    model = prepared.model(CPU).model.eval()
    found = prepared.evaluate(model, "test", CPU)
    assert model.training is False
    requests = prepared.requests("test")
    (batch,) = requests.batches(10_000)
    with torch.no_grad():
        logits = model(batch.candidates, batch.history, batch.mask)
    users = batch.users.unsqueeze(1).expand_as(batch.asked)
    every = batch.asked
    assert every.sum() == len(requests.rows)
    expected = click_metrics(logits[every], batch.label[every], users[every])
    long = every & (batch.before >= 20).unsqueeze(1)
    expected |= {f"{k}/long": v for k, v in click_metrics(logits[long], batch.label[long], users[long]).items()}
    for name, value in expected.items():
        assert found[f"test/{name}"] == pytest.approx(value, abs=1e-6), name
    assert found["test/rows/long"] + found["test/rows/short"] == int(every.sum())
    assert not any("long" in name for name in prepared.evaluate(model, "valid", CPU))


def test_held_out_batches_are_those_of_the_valid_split(make_run):
    task = prepare(make_run())
    batches, again = (task.held_out(10_000, 8) for _ in range(2))
    (whole,) = task.requests("valid").batches(10_000)
    assert torch.cat([batch.users for batch in batches]).sort().values.tolist() == whole.users.sort().values.tolist()
    assert all(torch.equal(a.candidates, b.candidates) for a, b in zip(batches, again, strict=True))
    assert len(task.held_out(2, 8)) == 2
    assert torch.isfinite(task.loss(task.model(CPU).model, batches[0]))


def test_seeds_draw_other_hashes_and_training_negatives_only(make_run):
    tasks = [prepare(make_run(seeds=[seed], behavior={"poolings": [{"pooling": "sdim"}]})) for seed in (0, 1)]
    tables = [task.model(CPU).model.pooling.projection.matrix for task in tasks]
    assert not torch.equal(*tables)
    for split, same in (("train", False), ("test", True)):
        first, second = (task.requests(split).rows.candidates for task in tasks)
        assert (first == second).all() == same


def test_a_compressed_table_serves_and_counts_come_from_training(make_run, tmp_path):
    small = make_run(
        behavior={"poolings": [{"pooling": "sim", "options": {"top": 4}}]},
        methods=[{"method": "FrequencyHash", "share": 0.5}],
    )
    task = prepare(small)
    sequences = load_data(data.load_sequences, small.data)
    train = sequences.items[sequences.split() == 0]
    assert torch.equal(task.method.counts["item"], torch.bincount(torch.tensor(train), minlength=200))
    results = Settings(tmp_path / "results", tmp_path / "out")
    assert execute(small, results, no_progress)[0] == "done"
    written = json.loads((tmp_path / "results" / "sequences" / f"{small.name}.json").read_text())
    assert written["dataset"] == "synthetic next"
    assert written["nbytes"] <= written["full_nbytes"] / 2
    assert written["metrics"]["test/auc"] > 0.6  # by category the next item is no secret


def test_an_interrupted_epoch_goes_on(make_run, tmp_path):
    prepared = prepare(make_run())
    whole = [batch.candidates for batch in prepared.batches(1, 0)]
    assert len(whole) == prepared.steps
    assert all(torch.equal(a, b.candidates) for a, b in zip(whole[5:], prepared.batches(1, 5), strict=True))
    outcome = Trainer(prepared, folder=tmp_path, key="k", device=CPU, report=no_progress).fit()
    assert outcome.progress.history[-1]["train/loss"] < outcome.progress.history[0]["train/loss"]


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model", {"name": "DCN"}, "model.name: unknown model 'DCN'"),
        ("model", {"linear": True}, "BehaviorModel takes no first-order weights"),
        ("data", {"name": "gowalla"}, "data.name: unknown data set 'gowalla'"),
        ("behavior", {"task": "buy"}, "behavior.task: .*'like' or 'next'"),
        ("behavior", {"lengths": 3}, "unknown key 'behavior.lengths': did you mean 'length'?"),
        ("behavior", {"poolings": []}, "behavior.poolings"),
        ("behavior", {"poolings": [{"pooling": "dinn"}]}, "unknown pooling 'dinn': did you mean 'din'?"),
        ("behavior", {"poolings": [{"pooling": "eta", "options": {"tops": 1}}]}, "'tops': did you mean 'top'?"),
        ("behavior", {"poolings": [{"pooling": "sdim", "option": {}}]}, "did you mean 'options'?"),
        ("slices", {"old": {"feature": "item"}}, "behavior runs have slices of 'history', not of 'item'"),
        ("optimizer", {"embedding": "SGD"}, "tables of behavior models are not fused"),
        ("retrieval", {}, "leave out one of the sections"),
        ("training", {"monitor": "valid/recall@20"}, "a click-through run has no valid/recall@20"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(small, section, values, message):
    small[section] = {**small.get(section, {}), **values}
    with pytest.raises(InputError, match=message):
        check(small, "sequences.toml")


def test_what_the_model_or_the_data_reject_is_an_input_error(make_run):
    broken = {"poolings": [{"pooling": "sdim", "options": {"num_hashes": 7}}]}
    with pytest.raises(InputError, match="pooling 'sdim': SDIM: num_hashes=7 is not a multiple"):
        prepare(make_run(behavior=broken)).model(CPU)
    with pytest.raises(InputError, match="there is no table 'user', only 'item'"):
        prepare(make_run(methods=[{"method": "HashingTrick", "share": 0.5, "table": "user"}]))


@pytest.mark.parametrize("task", ["like", "next"])
def test_the_committed_experiments_compare_the_same_poolings(task):
    experiment = load(CONFIGS / f"sdim-ml1m-{task}.toml")
    assert experiment.experiment == "sdim-ml1m"
    assert experiment.section.task == task
    others = load(CONFIGS / "sdim-ml1m-like.toml")
    assert experiment.section.poolings == others.section.poolings


def test_the_published_operations_that_are_timed_compute_the_same():
    """SDIM's attention against the formula with its rotations; DIN's against ours with its weights."""
    theirs = PublishedSDIM(6, num_hashes=4, hash_bits=2)
    asked, events, mask = torch.randn(3, 6), torch.randn(3, 9, 6), torch.rand(3, 9) < 0.8
    expected = torch.zeros(3, 6)
    for h in range(4):
        bits = [(vectors @ theirs.rotations[0, :, h] > 0).int() for vectors in (asked, events)]
        same = (bits[0].unsqueeze(1) == bits[1]).all(-1) & mask
        found = (same.unsqueeze(-1) * events).sum(1)
        expected += torch.nn.functional.normalize(found, dim=-1) / 4
    # As published, the places of a row begin anew while histories lie end to end; one row at a time is right.
    rows = [theirs(asked[i : i + 1], events[i : i + 1], mask[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(rows), expected)
    usual, ours = PublishedDIN(6), DINAttention(6)
    ours.load_state_dict(usual.state_dict())
    candidates = torch.randn(3, 5, 6)
    torch.testing.assert_close(ours(candidates, events, mask), usual(candidates, events, mask), rtol=1e-4, atol=1e-5)
