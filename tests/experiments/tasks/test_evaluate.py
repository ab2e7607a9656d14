"""Evaluation reads every row once, in any batch size, and cuts slices by training counts."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from experiments.config import SliceConfig
from experiments.tasks.evaluate import evaluate
from experiments.tasks.task import prepare

CPU = torch.device("cpu")


class ById(nn.Module):
    """The logit of an item is a fixed function of its id."""

    def forward(self, dense, sparse):
        return torch.sin(sparse["item"].values().float())


@pytest.fixture
def clicks(make_run):
    return prepare(make_run()).data


def test_batches_do_not_change_metrics(clicks):
    whole = evaluate(ById(), clicks, "test", 10_000, device=CPU)
    assert evaluate(ById(), clicks, "test", 7, device=CPU) == whole
    frame = clicks.split("test").collect()
    expected = roc_auc_score(frame["label"].to_numpy(), np.sin(frame["item"].to_numpy().astype(np.float32)))
    assert whole["test/auc"] == pytest.approx(expected, abs=1e-12)


def test_slices_are_cut_by_how_often_an_id_was_trained(clicks):
    slices = {"tail": SliceConfig(feature="item", max_count=9), "head": SliceConfig(feature="item", min_count=10)}
    found = evaluate(ById(), clicks, "test", 512, device=CPU, slices=slices)
    train = clicks.split("train").collect()["item"].to_numpy()
    frame = clicks.split("test").collect()
    tail = np.bincount(train, minlength=200)[frame["item"].to_numpy()] <= 9
    assert found["test/rows/tail"] == tail.sum()
    assert found["test/rows/head"] == (~tail).sum()
    scores = np.sin(frame["item"].to_numpy().astype(np.float32))
    assert found["test/auc/tail"] == pytest.approx(roc_auc_score(frame["label"].to_numpy()[tail], scores[tail]))


def test_the_model_is_left_as_it_was(clicks):
    model = ById().train()
    evaluate(model, clicks, "valid", 512, device=CPU)
    assert model.training
