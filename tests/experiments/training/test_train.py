"""The trainer: early stopping, the best epoch, learning rates, divergence."""

import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.errors import Diverged
from experiments.loggers import Start, TensorBoard
from experiments.tasks import clicks
from experiments.tasks.task import prepare
from experiments.training.train import Trainer


@pytest.fixture
def trainer(make_run, tmp_path):
    def make(**sections):
        task = prepare(make_run(**sections))
        return Trainer(
            task,
            folder=tmp_path / "run",
            key="key",
            device=torch.device("cpu"),
            report=lambda done, total, text: None,
            loggers=lambda step: [TensorBoard(Start(task.run, tmp_path, tmp_path, step))],
        )

    return make


@pytest.fixture
def scripted(monkeypatch):
    """Validation answers these numbers, one an epoch; the tables of each epoch are kept."""
    tables = []

    def script(values, metric="valid/auc"):
        answers = iter(values)

        def evaluate(model, clicks, split, *args, **kwargs):
            if split == "test" or len(tables) == len(values):
                return {f"{split}/auc": 0.5}
            tables.append([parameter.detach().clone() for parameter in model.parameters()])
            return {metric: next(answers)}

        monkeypatch.setattr(clicks, "evaluate", evaluate)
        return tables

    return script


def test_training_learns_what_was_planted(trainer):
    outcome = trainer(data={"options": {"num_rows": 30_000, "num_users": 300, "num_items": 200}}).fit()
    assert outcome.metrics["test/auc"] > 0.6
    assert outcome.metrics["test/ne"] < 1
    assert outcome.metrics["valid/auc"] == outcome.progress.history[outcome.progress.best_epoch]["valid/auc"]
    assert outcome.progress.seconds > 0
    assert outcome.progress.peak_memory > 2**20


@pytest.mark.parametrize(
    ("values", "patience", "epochs", "best"),
    [
        ([0.6, 0.7, 0.7, 0.69, 0.9], 2, 4, 1),  # no gain is no new best
        ([0.6, 0.5, 0.61, 0.6, 0.6], 2, 5, 2),  # a new best starts the count again
        ([0.6, 0.5], 1, 2, 0),
        ([0.1, 0.2, 0.3], 2, 3, 2),  # the last epoch allowed
    ],
)
def test_it_stops_after_patience_and_goes_back_to_the_best(trainer, scripted, values, patience, epochs, best):
    tables = scripted(values[:epochs])
    made = trainer(training={"epochs": len(values), "patience": patience})
    outcome = made.fit()
    assert (outcome.progress.epoch, outcome.progress.best_epoch) == (epochs, best)
    assert len(outcome.progress.history) == epochs
    for parameter, expected in zip(made.model.parameters(), tables[best], strict=True):
        assert torch.equal(parameter, expected)


def test_a_loss_is_better_when_lower(trainer, scripted):
    scripted([0.5, 0.4, 0.6, 0.6], "valid/logloss")
    outcome = trainer(training={"epochs": 9, "patience": 2, "monitor": "valid/logloss"}).fit()
    assert outcome.progress.best_epoch == 1


def test_the_learning_rate_falls_with_each_epoch_without_a_best(trainer, scripted):
    scripted([0.5, 0.4, 0.6, 0.6, 0.6])
    made = trainer(training={"epochs": 9, "patience": 2, "lr_factor": 0.5, "min_lr": 0.002})
    outcome = made.fit()
    assert outcome.progress.epoch == 5
    assert made.optimizers[0].param_groups[0]["lr"] == 0.002  # .005, .0025, .002 after epochs 1, 3 and 4


def test_scalars_of_every_epoch_are_in_tensorboard(trainer, tmp_path):
    outcome = trainer().fit()
    events = EventAccumulator(str(next((tmp_path / "tensorboard").glob("*/*")))).Reload()
    shown = [event.value for event in events.Scalars("valid/auc")]
    assert shown == pytest.approx([epoch["valid/auc"] for epoch in outcome.progress.history], rel=1e-6)


def test_the_training_loss_is_the_mean_over_batches(trainer):
    outcome = trainer(optimizer={"lr": 0.0}, training={"epochs": 1}).fit()
    # At learning rate 0 the model is what it was at the start, on equal batches but for the last.
    made = trainer(optimizer={"lr": 0.0}, training={"epochs": 1, "batch_size": 255})
    with torch.no_grad():
        losses = [
            torch.nn.functional.binary_cross_entropy_with_logits(made.model(b.dense, b.sparse), b.label).item()
            for b in made.task.data.loader("train", 256)
        ]
    assert math.isclose(outcome.progress.history[0]["train/loss"], sum(losses) / len(losses), rel_tol=0.02)


def test_divergence_is_said(trainer):
    with pytest.raises(Diverged, match="lower the learning rate"):
        trainer(optimizer={"name": "SGD", "lr": 1e30}).fit()
