"""The losses of click models on held-out batches."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

import embcomp
from embcomp.planner.losses import calibrated_log_loss, log_loss


class Sure(nn.Module):
    """A model whose logits are too large by a factor, as after overfitting."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, ids):
        return self.factor * self.model(ids)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.01, 1.0, 60.0])
def test_the_calibrated_loss_is_the_least_over_scale_and_shift(seed, scale):
    random = np.random.default_rng(seed)
    logits = scale * random.normal(size=500)
    labels = (random.random(500) < 1 / (1 + np.exp(-logits / scale - 0.5))).astype(float)

    def loss(at):
        scores = at[0] * logits / scale + at[1]
        return np.mean(np.logaddexp(0, scores) - labels * scores)

    least = minimize(loss, [0.0, 0.0], tol=1e-12).fun
    batch = torch.from_numpy(logits), torch.from_numpy(labels)
    assert float(calibrated_log_loss(nn.Identity(), batch)) == pytest.approx(least, abs=1e-8)
    assert float(log_loss(nn.Identity(), batch)) >= least


def test_logits_that_are_all_equal_and_labels_that_are_separated_have_a_finite_loss():
    labels = torch.tensor([0.0, 1.0, 1.0, 1.0])
    share = 0.75
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    assert float(calibrated_log_loss(nn.Identity(), (torch.ones(4), labels))) == pytest.approx(entropy)
    assert 0 <= float(calibrated_log_loss(nn.Identity(), (torch.arange(4.0), labels))) < 1e-6


def test_a_model_that_overfits_is_judged_by_how_it_ranks(trained, held_out):
    sure = Sure(trained, 40.0)
    assert all(log_loss(sure, batch) > 1 for batch in held_out)
    choice = embcomp.choose(sure, "8%", data=held_out)
    served = {table.name.rpartition(".")[2]: table.served for table in choice.tables}
    assert served["noise"] < served["user"]
    plain = embcomp.choose(trained, "8%", data=held_out)
    worth = [{t.name.rpartition(".")[2]: t.worth for t in c.tables} for c in (choice, plain)]
    assert worth[0]["user"] == pytest.approx(worth[1]["user"], rel=0.3)
