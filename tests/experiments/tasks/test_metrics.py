"""Metrics against scikit-learn, group by group."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score
from torchrec.metrics.ne import compute_cross_entropy, compute_ne

from experiments.errors import Diverged, InputError
from experiments.tasks.metrics import click_metrics, sliced_metrics

# Few distinct scores, so that ties are common.
rows = st.lists(
    st.tuples(st.integers(-6, 6).map(lambda x: x / 2), st.booleans(), st.integers(0, 4)), min_size=1, max_size=60
)


def tensors(values):
    scores, labels, groups = zip(*values, strict=True)
    return torch.tensor(scores), torch.tensor(labels, dtype=torch.float32), torch.tensor(groups)


@given(rows)
def test_as_scikit_learn_says(values):
    logits, labels, groups = tensors(values)
    found = click_metrics(logits, labels, groups)
    probability = 1 / (1 + np.exp(-logits.double().numpy()))
    assert math.isclose(found["logloss"], log_loss(labels, probability, labels=[0, 1]), rel_tol=1e-9)
    if 0 < labels.mean() < 1:
        assert math.isclose(found["auc"], roc_auc_score(labels, logits), abs_tol=1e-12)
    else:
        assert "auc" not in found
        assert "ne" not in found
    by_group = {int(g): (labels[groups == g], logits[groups == g]) for g in groups.unique()}
    mixed = {g: pair for g, pair in by_group.items() if 0 < pair[0].mean() < 1}
    if mixed:
        aucs = [roc_auc_score(*pair) for pair in mixed.values()]
        expected = np.average(aucs, weights=[len(pair[0]) for pair in mixed.values()])
        assert math.isclose(found["gauc"], expected, abs_tol=1e-12)
    else:
        assert "gauc" not in found


def test_auc_is_exact_where_float32_and_bins_are_not():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300_000, generator=generator)
    labels = (torch.rand(300_000, generator=generator) < torch.sigmoid(logits)).float()
    assert math.isclose(click_metrics(logits, labels)["auc"], roc_auc_score(labels, logits), abs_tol=1e-12)


def test_extreme_logits_keep_their_order_and_their_loss():
    logits, labels = torch.tensor([90.0, 100.0, -200.0]), torch.tensor([0.0, 1.0, 0.0])
    found = click_metrics(logits, labels)  # as probabilities the first two would be equal
    assert found["auc"] == 1.0
    assert found["logloss"] == pytest.approx(30.0)


def test_normalised_entropy_is_torchrecs():
    logits, labels = torch.randn(500), (torch.rand(500) < 0.3).float()
    entropy = compute_cross_entropy(labels.double(), logits.double().sigmoid(), torch.ones(500).double(), 1e-15)
    positive = labels.double().sum()
    expected = compute_ne(entropy.sum(), torch.tensor(500.0).double(), positive, 500 - positive, 1e-15)
    assert click_metrics(logits, labels)["ne"] == pytest.approx(expected.item(), rel=1e-9)


def test_slices_are_metrics_of_their_rows():
    logits, labels, group = torch.randn(200), (torch.rand(200) < 0.4).float(), torch.randint(3, (200,))
    part, none = torch.rand(200) < 0.3, torch.zeros(200, dtype=torch.bool)
    found = sliced_metrics(logits, labels, group, {"new": part, "none": none})
    assert found["auc/new"] == pytest.approx(roc_auc_score(labels[part], logits[part]), abs=1e-12)
    assert found["gauc/new"] == click_metrics(logits[part], labels[part], group[part])["gauc"]
    assert found["rows/new"] == int(part.sum())
    assert found["rows/none"] == 0
    assert "auc/none" not in found


def test_what_cannot_be_measured():
    with pytest.raises(Diverged, match="NaN or infinite"):
        click_metrics(torch.tensor([0.0, float("nan")]), torch.tensor([0.0, 1.0]))
    with pytest.raises(InputError, match="labels must be 0 or 1"):
        click_metrics(torch.tensor([0.0, 1.0]), torch.tensor([0.0, float("nan")]))
