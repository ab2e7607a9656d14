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
    assert float(calibrated_log_loss(nn.Identity(), batch)) == pytest.approx(least + 2 / 500, abs=1e-8)
    assert float(log_loss(nn.Identity(), batch)) >= least


def test_logits_that_are_all_equal_and_labels_that_are_separated_have_a_finite_loss():
    labels = torch.tensor([0.0, 1.0, 1.0, 1.0])
    share = 0.75
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    assert float(calibrated_log_loss(nn.Identity(), (torch.ones(4), labels))) == pytest.approx(entropy + 2 / 4)
    assert 0.5 <= float(calibrated_log_loss(nn.Identity(), (torch.arange(4.0), labels))) < 0.5 + 1e-6
    backwards = nn.Identity(), (-torch.arange(4.0), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert float(calibrated_log_loss(*backwards)) == pytest.approx(np.log(2) + 0.5)


def test_a_model_that_overfits_is_judged_by_how_it_ranks(trained, held_out):
    sure = Sure(trained, 40.0)
    assert all(log_loss(sure, batch) > 1 for batch in held_out)
    choice = embcomp.choose(sure, "8%", data=held_out)
    served = {table.name.rpartition(".")[2]: table.served for table in choice.tables}
    assert served["noise"] < served["user"]
    plain = embcomp.choose(trained, "8%", data=held_out)
    worth = [{t.name.rpartition(".")[2]: t.worth for t in c.tables} for c in (choice, plain)]
    assert worth[0]["user"] == pytest.approx(worth[1]["user"], rel=0.3)


class Untrained(nn.Module):
    """Two tables as torch initialises them, whose products are far too large for probabilities."""

    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(2000, 16), nn.Embedding(1000, 16)

    def forward(self, user, item):
        return (self.user(user) * self.item(item)).sum(1)


@pytest.mark.parametrize("rows", [16, 100, 256, 1024])
@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_is_not_trained_is_refused_on_small_batches_too(rows, seed):
    torch.manual_seed(seed)
    shape = (rows,)
    noise = [
        (torch.randint(2000, shape), torch.randint(1000, shape), (torch.rand(shape) < 0.3).float()) for _ in range(30)
    ]
    assert sum(log_loss(Untrained(), batch).item() for batch in noise) / 30 > 1
    with pytest.raises(ValueError, match="the model is not trained, or overfits"):
        embcomp.choose(Untrained(), "20%", data=noise)


def test_a_batch_that_cannot_be_read_is_named(trained, held_out):
    ids, labels = held_out[1]
    with pytest.raises(IndexError) as raised:
        embcomp.choose(trained, "5%", data=[held_out[0], (ids + 1000, labels)])
    assert raised.value.__notes__ == ["choose: this is of batch 1 of data"]
