"""Optimizers against a plain training step."""

import pytest
import torch
from torch.nn import functional as F

from experiments.config import OptimizerConfig
from experiments.errors import InputError
from experiments.tasks.task import prepare
from experiments.training.optim import decay_lr, make_optimizers

CPU = torch.device("cpu")


def step(task, config, extra_loss=lambda built: 0.0, kind=None):
    """Parameters after two steps on one batch, by our optimizers or by a plain one."""
    built = task.model(CPU)
    optimizers = make_optimizers(built, config)[1] if kind is None else [kind(built.model.parameters(), lr=config.lr)]
    batch = next(iter(task.data.loader("train", 64)))
    for _ in range(2):
        loss = F.binary_cross_entropy_with_logits(built.model(batch.dense, batch.sparse), batch.label)
        (loss + extra_loss(built)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return {name: value.detach().clone() for name, value in built.model.named_parameters()}


def close(left, right):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(
            left[name], right[name], rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("name", ["Adam", "Adagrad", "SGD"])
def test_one_optimizer_over_everything(make_run, name):
    task = prepare(make_run())
    close(
        step(task, OptimizerConfig(name=name, lr=0.01)),
        step(task, OptimizerConfig(lr=0.01), kind=getattr(torch.optim, name)),
    )


def test_embedding_decay_is_the_regularizer_of_the_whole_tables(make_run):
    """decay / 2 * ||E||^2 in the loss, as FuxiCTR adds for `embedding_regularizer`."""
    task = prepare(make_run())

    def regularizer(built):
        return 0.05 / 2 * sum(table.norm(2) ** 2 for table in built.embeddings.parameters())

    decayed = step(task, OptimizerConfig(lr=0.01, embedding_weight_decay=0.05))
    close(decayed, step(task, OptimizerConfig(lr=0.01), regularizer, torch.optim.Adam))


def test_fused_tables_train_as_plain_ones(make_run):
    task = prepare(make_run())
    fused = step(task, OptimizerConfig(name="Adagrad", lr=0.1, embedding="Adagrad"))
    close(fused, step(task, OptimizerConfig(name="Adagrad", lr=0.1)))


def test_learning_rates_decay_to_a_floor(make_run):
    task = prepare(make_run())
    _, optimizers = make_optimizers(task.model(CPU), OptimizerConfig(lr=1e-2, embedding="SGD", embedding_lr=1e-5))
    decay_lr(optimizers, 0.1, 1e-4)
    assert [group["lr"] for optimizer in optimizers for group in optimizer.param_groups] == [1e-3, 1e-5]


def test_what_cannot_be_fused_is_an_input_error(make_run):
    built = prepare(make_run()).model(CPU)
    make_optimizers(built, OptimizerConfig(embedding="SGD"))
    with pytest.raises(InputError, match=r"optimizer\.embedding: .*no torchrec collection"):
        make_optimizers(built, OptimizerConfig(embedding="SGD"))
