"""Retrieval runs: tables and budgets, what each split masks, learning, resuming, what is refused."""

import json
import time

import pytest
import torch

import data
import embcomp
from embcomp.ops.kmeans import no_progress
from experiments.errors import InputError
from experiments.load import check
from experiments.processes.processes import start_context
from experiments.runs.runner import Settings, execute
from experiments.tasks.retrieval import embeddings
from experiments.tasks.task import prepare
from experiments.training.train import Trainer

CPU = torch.device("cpu")
OPTIONS = {"num_rows": 12_000, "num_users": 150, "num_items": 120, "num_communities": 4, "drift": 0.0}


@pytest.fixture
def small():
    return {
        "experiment": "ranked",
        "data": {"name": "synthetic", "options": dict(OPTIONS)},
        "model": {"name": "LightGCN", "embedding_dim": 8, "options": {"num_layers": 2}},
        "optimizer": {"lr": 0.02},
        "training": {"batch_size": 256, "epochs": 4, "monitor": "valid/recall@20"},
        "retrieval": {"validate_every": 2},
        "methods": [{"method": "Full"}],
    }


@pytest.fixture
def trainer(make_run, tmp_path):
    def make(**sections):
        task = prepare(make_run(**sections))
        return Trainer(task, folder=tmp_path / "run", key="key", device=CPU, report=no_progress)

    return make


def test_the_tables_are_users_and_items_and_a_budget_holds_both(make_run):
    full = prepare(make_run())
    pairs = data.load_interactions("synthetic", **OPTIONS)
    assert [(table.name, table.num_embeddings) for table in full.tables] == [
        ("user_id", pairs.num_users),
        ("item_id", pairs.num_items),
    ]
    assert full.full_nbytes == full.model(CPU).nbytes == (pairs.num_users + pairs.num_items) * 8 * 4
    for method in ("HashingTrick", "DoubleHash", "FrequencyHash", "UnifiedEmbedding"):
        half = prepare(make_run(methods=[{"method": method, "share": 0.5}]))
        assert 0.9 * full.full_nbytes / 2 < half.model(CPU).nbytes <= full.full_nbytes / 2
        assert half.method.plan(half.tables).nbytes() == half.model(CPU).nbytes


def test_counts_come_from_the_training_pairs(make_run):
    task = prepare(make_run(methods=[{"method": "FrequencyHash", "share": 0.5}]))
    for row, table in enumerate(("user_id", "item_id")):
        expected = task.data.edges("train")[row].bincount(minlength=len(task.data.values[table]))
        assert torch.equal(task.method.counts[table], expected)


def test_held_out_pairs_are_those_of_the_valid_split(make_run):
    task = prepare(make_run())
    pairs = torch.cat([torch.stack((batch.users, batch.positives)) for batch in task.held_out(10_000, 16)], 1)
    assert sorted(pairs.t().tolist()) == sorted(task.data.edges("valid").t().tolist())


@pytest.mark.parametrize(
    ("start", "std"), [({"init_normal": 0.01}, 0.01), ({"init_uniform": 0.3}, 0.3 / 3**0.5), ({}, 0.1)]
)
def test_tables_start_as_configured(make_run, start, std):
    task = prepare(make_run(model=start, methods=[{"method": "DoubleHash", "rows": 200}]))
    users, items = embeddings(task.method.plan(task.tables), task.run.model)
    for table in (users, items):
        assert table.weight.std().item() == pytest.approx(std, rel=0.15)  # the sum of two rows


def test_a_seed_is_a_start(make_run):
    states = [prepare(make_run(seeds=[seed])).model(CPU).model.state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["users.stores.0.weight"], states[2]["users.stores.0.weight"])


class Fixed(torch.nn.Module):
    """Scores as given, [num_users, num_items]."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def scorer(self, items):
        return lambda users: self.scores[users][:, items]


@pytest.mark.parametrize(("split", "masked"), [("valid", ["train"]), ("test", ["train", "valid"])])
def test_what_earlier_splits_hold_is_not_ranked(make_run, split, masked):
    task = prepare(make_run())
    scores = torch.rand(task.data.num_users, task.data.num_items)
    found = task.evaluate(Fixed(scores), split, CPU)
    assert set(found) == {f"{split}/{name}@{k}" for name in ("recall", "ndcg") for k in (10, 20, 50)}
    for part in ("train", "valid", "test"):
        raised = scores.clone()
        raised[tuple(task.data.edges(part))] += 1
        now = task.evaluate(Fixed(raised), split, CPU)
        if part in masked:
            assert now == found
        elif part == split:
            assert all(value == pytest.approx(1) for value in now.values())
        else:
            assert now != found


@pytest.mark.parametrize(
    ("model", "loss"),
    [("MF", "bpr"), ("LightGCN", "bpr"), ("LightGCN", "directau"), ("NGCF", "bpr"), ("NeuMF", "bce")],
)
def test_training_learns_what_was_planted(trainer, model, loss):
    sections = {"model": {"name": model, "options": {}}, "retrieval": {"loss": loss, "validate_every": 4}}
    made = trainer(**sections, training={"epochs": 12, "patience": 12})
    before = made.task.evaluate(made.model, "test", CPU)["test/recall@20"]
    outcome = made.fit()
    assert outcome.metrics["test/recall@20"] > before + 0.05
    assert outcome.metrics["valid/recall@20"] == outcome.progress.best


@pytest.mark.parametrize(
    ("values", "epochs", "best"),
    [
        ([0.1, 0.2, 0.15, 0.1, 0.3], 10, 3),  # two validations without a best make 4 epochs, the patience
        ([0.1, 0.2, 0.15, 0.3, 0.3], 11, 7),
    ],
)
def test_patience_counts_epochs_between_validations(trainer, monkeypatch, values, epochs, best):
    made = trainer(training={"epochs": 11, "patience": 4 if epochs == 10 else 6}, retrieval={"validate_every": 2})
    answers = iter([*values, 0.0])

    def evaluate(task, model, split, device):
        return {f"{split}/recall@20": 0.0 if made.progress.finished else next(answers)}

    monkeypatch.setattr(type(made.task), "evaluate", evaluate)
    progress = made.fit().progress
    assert (progress.epoch, progress.best_epoch) == (epochs if epochs == 11 else 8, best)
    said = ["valid/recall@20" in line for line in progress.history]
    assert said == [(n % 2 == 0 or n == 11) for n in range(1, progress.epoch + 1)]


def test_a_killed_run_ends_like_others(make_run, tmp_path):
    training = {"epochs": 6, "batch_size": 64, "patience": 6}
    run = make_run(
        model={"name": "NGCF", "options": {"hidden": [8], "dropout": 0.2}},
        training=training,
        retrieval={"validate_every": 3},
        methods=[{"method": "DoubleHash", "share": 0.5}],
    )
    settings = {
        name: Settings(tmp_path / name / "results", tmp_path / name / "out", checkpoint_seconds=0.15)
        for name in ("alone", "killed")
    }
    assert execute(run, settings["alone"], no_progress)[0] == "done"
    folder = tmp_path / "killed" / "out" / "runs" / run.experiment / run.name

    def saved():
        return [path.name for path in folder.glob("last-*/step-*")]

    kills = 0
    while True:
        before = saved()
        process = start_context().Process(target=execute, args=(run, settings["killed"], no_progress))
        process.start()
        while process.is_alive() and (kills >= 1 or saved() == before):
            time.sleep(0.005)
        time.sleep(0.03)
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        kills += 1
    assert kills >= 1
    alone, killed = (json.loads((s.results / "ranked" / f"{run.name}.json").read_text()) for s in settings.values())
    for changing in ("seconds", "peak_memory"):
        del alone[changing], killed[changing]
    assert killed == alone
    assert {"test/recall@20", "test/ndcg@50", "valid/recall@10"} <= set(alone["metrics"])
    assert alone["nbytes"] <= alone["full_nbytes"] / 2


def test_runs_of_two_models_have_two_names(small):
    names = set()
    for model in ("MF", "LightGCN"):
        small["model"] = {"name": model, "embedding_dim": 8}
        names |= {run.name for run in check(small, "x").runs()}
    assert names == {"synthetic-MF-Full-seed0", "synthetic-LightGCN-Full-seed0"}


def test_other_runs_do_not_say_that_they_are_none(make_run):
    """The key of click-through results stays as it was before there was retrieval."""
    run = make_run(model={"name": "DCN", "options": {}}, retrieval=None, training={"monitor": "valid/auc"}, slices={})
    assert "retrieval" not in run.to_dict()


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("retrieval", None, "model.name: LightGCN is a retrieval model; add a section \\[retrieval\\]"),
        ("model", {"name": "LightGNC"}, "model.name: unknown model 'LightGNC': did you mean 'LightGCN'?"),
        ("model", {"name": "DCN"}, "model.name: unknown model 'DCN'"),
        ("model", {"options": {"layers": 1}}, "unknown option 'layers': did you mean 'num_layers'?"),
        ("model", {"linear": True}, "model.linear: retrieval models take no first-order weights"),
        ("data", {"name": "frappe"}, "data.name: unknown data set 'frappe'"),
        ("data", {"options": {"num_row": 3}}, "did you mean 'num_rows'?"),
        ("training", {"monitor": "valid/auc"}, "a retrieval run has no valid/auc; .*'valid/recall@20'"),
        ("retrieval", {"loss": "bpm"}, "retrieval.loss: .*'bpr'"),
        ("retrieval", {"widths": [2, 500]}, "retrieval.widths: 500 columns, model.embedding_dim is"),
        ("retrieval", {"widths": [2], "loss": "bce"}, "retrieval.widths: they go with loss = 'bpr', not 'bce'"),
        ("retrieval", {"candidates": 4}, "retrieval.candidates: they go with widths"),
        ("retrieval", {"validate": 3}, "unknown key 'retrieval.validate': did you mean 'validate_every'?"),
        ("optimizer", {"embedding": "SGD"}, "optimizer.embedding: tables of retrieval models are not fused"),
        ("slices", {"new": {"feature": "item_id"}}, "slices: a retrieval run has none"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(small, section, values, message):
    small[section] = {**small.get(section, {}), **values} if values else values
    with pytest.raises(InputError, match=message):
        check({key: value for key, value in small.items() if value is not None}, "ranked.toml")


def test_neumf_has_no_vectors_for_directau(small):
    small["model"] = {"name": "NeuMF", "embedding_dim": 8}
    small["retrieval"] = {"loss": "directau"}
    with pytest.raises(InputError, match="NeuMF only has scores"):
        check(small, "x")


def test_neumf_has_no_vectors_to_cut(small):
    small["model"] = {"name": "NeuMF", "embedding_dim": 8}
    small["retrieval"] = {"widths": [2, 8]}
    with pytest.raises(InputError, match="NeuMF has no vectors that could be cut"):
        check(small, "x")


def test_nested_widths_have_negatives_of_their_own(make_run):
    """The loss is the mean over widths of BPR, each against the candidate of its largest score."""
    task = prepare(make_run(retrieval={"widths": [1, 3], "candidates": 5}))
    model = task.model(CPU).model
    batch = next(iter(task.batches(0, 0)))
    torch.manual_seed(7)
    found = task.loss(model, batch)
    torch.manual_seed(7)
    items = torch.cat([batch.negatives.unsqueeze(1), torch.randint(task.data.num_items, (len(batch), 4))], 1)
    users, all_items = model.vectors()
    expected = []
    for width in (1, 3):
        query, vectors = users[batch.users, :width], all_items[:, :width]
        worst = torch.stack([(query * vectors[column]).sum(1) for column in items.T]).max(0).values
        good = (query * vectors[batch.positives]).sum(1)
        expected.append(-torch.nn.functional.logsigmoid(good - worst).mean())
    assert found.item() == pytest.approx((sum(expected) / 2).item(), rel=1e-5)


def test_runs_without_widths_keep_their_keys(make_run):
    plain_, nested = make_run(), make_run(retrieval={"widths": [1, 3]})
    assert not {"widths", "candidates"} & set(plain_.section.to_dict())
    assert nested.section.to_dict()["widths"] == (1, 3)


def test_what_model_or_data_reject_is_an_input_error(make_run, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="model 'NeuMF': gmf_dim is 9"):
        prepare(make_run(model={"name": "NeuMF", "options": {"gmf_dim": 9}})).model(CPU)
    monkeypatch.setenv("EMBCOMP_DATA", str(tmp_path))
    with pytest.raises(InputError, match="data 'beauty': no file"):
        prepare(make_run(data={"name": "beauty", "options": {}}))


def test_every_table_is_counted_once(make_run):
    """One store for both tables (UnifiedEmbedding) is trained by both and counted once."""
    task = prepare(make_run(methods=[{"method": "UnifiedEmbedding", "options": {"chunk_dim": 4}, "rows": 100}]))
    built = task.model(CPU)
    assert task.rows == 100
    assert len(list(built.model.parameters())) == 1
    assert built.nbytes == embcomp.nbytes(built.embeddings) == 100 * 4 * 4 + 4 * 8
