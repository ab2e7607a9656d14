"""Methods that change while a run trains."""

import pytest
import torch

import embcomp
from data import ClickData
from embcomp.codecs.columns import ColumnsCodec
from embcomp.codecs.sparse import SparseCodec
from embcomp.methods.clustered_hash import ClusteredEncoder
from embcomp.methods.hot_rows import OwnersEncoder
from experiments.errors import InputError
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


def test_the_best_epoch_is_one_after_the_search(make_run, tmp_path):
    run = make_run(
        training={"epochs": 4, "patience": 1},
        methods=[{"method": "LearnedMask", "share": 0.3, "options": {"rule": "gates"}}],
    )
    task = prepare(run)
    trainer = Trainer(
        task, folder=tmp_path, key="key", device=torch.device("cpu"), report=lambda done, total, text: None
    )
    outcome = trainer.fit()
    assert outcome.progress.best_epoch in (2, 3)
    assert len(outcome.progress.history) in (3, 4)
    for module in trainer.model.modules():
        if isinstance(module, SparseCodec):
            assert not bool(module.searching)
    assert outcome.nbytes == embcomp.served_nbytes(trainer.built.embeddings) <= 0.3 * task.full_nbytes


def test_widths_are_chosen_within_the_budget(make_run, tmp_path):
    run = make_run(training={"epochs": 2}, methods=[{"method": "LearnedWidths", "share": 0.6}])
    found = trained(run, tmp_path, ColumnsCodec)
    assert found
    assert not any(bool(codec.searching) for codec in found)
    values = sum(codec.rows * int(codec.width) for codec in found)
    assert 0 < values <= sum(codec.rows * codec.columns.width for codec in found)


def test_searches_judge_by_the_valid_split_and_never_by_the_test_split(make_run, tmp_path, monkeypatch):
    read, splits = ClickData.loader, []
    monkeypatch.setattr(ClickData, "loader", lambda *args, **given: splits.append(args[1]) or read(*args, **given))
    options = {"rule": "evolution", "generations": 2, "batches": 2}
    run = make_run(training={"epochs": 2}, methods=[{"method": "LearnedWidths", "share": 0.6, "options": options}])
    found = trained(run, tmp_path, ColumnsCodec)
    assert {int(codec.width) for codec in found} <= set(range(1, 9))
    assert sum(codec.rows * int(codec.width) for codec in found) <= sum(c.rows * c.columns.width for c in found)
    assert set(splits) == {"train", "valid"}
    task = prepare(run)
    first, again = (task.held_out(4, 64) for _ in range(2))
    assert [torch.equal(a.label, b.label) for a, b in zip(first, again, strict=True)] == [True] * 4
    monkeypatch.setattr(ClickData, "same", lambda *args: True)  # a valid split that is the test split
    splits.clear()
    task.held_out(4, 64)
    assert splits == ["train"]


def test_a_search_needs_more_than_an_epoch(make_run, tmp_path):
    run = make_run(training={"epochs": 1}, methods=[{"method": "LearnedMask", "share": 0.3}])
    task = prepare(run)
    with pytest.raises(InputError, match="searched in 1 of 1 epochs"):
        Trainer(task, folder=tmp_path, key="key", device=torch.device("cpu"), report=lambda *said: None)
