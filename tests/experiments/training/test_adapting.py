"""Methods that change while a run trains."""

import pytest
import torch

from embcomp.methods.clustered_hash import ClusteredEncoder
from embcomp.methods.hot_rows import OwnersEncoder
from experiments.tasks.task import prepare
from experiments.training.train import Trainer


def trained(run, tmp_path, kind):
    """Return the encoders of this class in the model of a run that was trained."""
    trainer = Trainer(
        prepare(run), folder=tmp_path, key="key", device=torch.device("cpu"), report=lambda done, total, text: None
    )
    trainer.train()
    return {id(module): module for module in trainer.model.modules() if isinstance(module, kind)}.values()


@pytest.mark.parametrize(("epochs", "rounds"), [(4, 3), (1, 0)])
def test_tables_are_clustered_in_the_first_three_quarters(make_run, tmp_path, epochs, rounds):
    training = {"epochs": epochs, "patience": epochs}
    run = make_run(training=training, methods=[{"method": "ClusteredHash", "share": 0.5, "options": {"chunks": 2}}])
    found = trained(run, tmp_path, ClusteredEncoder)
    assert found
    assert {int(encoder.round) for encoder in found} == {rounds}


def test_owners_are_found_while_a_run_trains(make_run, tmp_path):
    training = {"epochs": 2, "patience": 2, "batch_size": 16}
    run = make_run(training=training, methods=[{"method": "HotRows", "share": 0.3}])
    found = trained(run, tmp_path, OwnersEncoder)
    assert found
    assert all(int(encoder.number) > 0 for encoder in found)
