"""What a choice for a trained model leaves as it was, and what it says of models and data that mislead it."""

import copy
import math

import pytest
import torch
from torch import nn

import embcomp
from embcomp.planner.losses import log_loss
from tests.planner.conftest import IDS, WIDTH, Clicks


class Tied(nn.Module):
    """The target and the history read one table, as in DIN."""

    def __init__(self, trained: nn.Module) -> None:
        super().__init__()
        self.inner = trained
        self.history = nn.EmbeddingBag(IDS["item"], WIDTH)
        self.history.weight = trained.tables["item"].weight

    def forward(self, ids):
        return self.inner(ids) + 0.01 * self.history(ids[:, 1:2]).sum(1)


def test_a_weight_that_two_tables_share_is_put_back_and_counts_once(trained, held_out):
    model = Tied(trained)
    before = copy.deepcopy(model.state_dict())
    choice = embcomp.choose(model, "90%", data=held_out, init="fit")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    full = 4 * WIDTH * sum(IDS.values())
    assert choice.budget == int(0.9 * full)
    assert choice.nbytes <= choice.budget
    history = next(table for table in choice.tables if table.name == "history")
    assert (history.served, history.training) == (0, 0)
    report = embcomp.compress_(model, choice.methods, init="fit")
    kept = [model.get_submodule(t.name).weight for t in choice.tables if isinstance(t.method, embcomp.Full)]
    whole = {id(weight): 4 * weight.numel() for weight in kept}
    assert report.served_nbytes + sum(whole.values()) == choice.served_nbytes


def test_rows_that_are_added_are_measured_if_no_training_follows(trained, held_out):
    choice = embcomp.choose(trained, "3%", data=held_out, init="fit")
    swapped = copy.deepcopy(trained)
    embcomp.compress_(swapped, choice.methods, init="warm")
    rows = sum(len(batch[-1]) for batch in held_out)
    with torch.no_grad():
        rise = sum(
            len(batch[-1]) * float(log_loss(swapped.eval(), batch) - log_loss(trained.eval(), batch))
            for batch in held_out
        )
    assert rise / rows == pytest.approx(choice.loss, rel=0.25, abs=2e-3)


def test_options_that_all_fail_are_named(trained, held_out):
    weight = trained.tables["item"].weight
    kept, mean = weight.detach().clone(), weight.detach().mean(0)

    def loss(model, batch):
        changed = not torch.equal(model.tables["item"].weight, kept)
        all_alike = torch.allclose(model.tables["item"].weight, mean.expand_as(weight), atol=1e-5)
        return log_loss(model, batch) * (math.nan if changed and not all_alike else 1)

    with pytest.raises(ValueError, match=r"no plan is left: every option of \['tables.item'\] failed"):
        embcomp.choose(trained, "30%", data=held_out, loss=loss, options=[embcomp.LowRank(rank=2)], init="fit")

    def never(model, batch):
        return log_loss(model, batch) * (1 if torch.equal(model.tables["item"].weight, kept) else math.nan)

    with pytest.raises(ValueError, match=r"cannot be measured with one vector .*the loss becomes nan"):
        embcomp.choose(trained, "30%", data=held_out, loss=never)


def test_probabilities_are_noted(trained, held_out):
    class Sure(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = trained

        def forward(self, ids):
            return self.inner(ids).sigmoid()

    def loss(model, batch):
        return nn.functional.binary_cross_entropy(model(batch[0]), batch[-1])

    assert "taken for logits" not in str(embcomp.choose(trained, "30%", data=held_out))
    assert "taken for logits" not in str(embcomp.choose(Sure(), "30%", data=held_out, loss=loss))
    try:
        said = str(embcomp.choose(Sure(), "30%", data=held_out))
    except ValueError as error:  # taken for logits, they may be worse than no model
        said = str(error)
    assert "taken for logits" in said or "not trained" in said


def test_a_last_batch_of_few_rows_weighs_little(trained, held_out):
    tail = [tuple(part[:3] for part in held_out[0])]
    short = embcomp.choose(trained, "10%", data=[*held_out, *tail])
    whole = embcomp.choose(trained, "10%", data=held_out)
    for mine, theirs in zip(short.tables, whole.tables, strict=True):
        assert mine.worth == pytest.approx(theirs.worth, rel=0.1, abs=1e-3)


def test_the_next_bytes_and_the_curve_are_compared_alike():
    tables = [embcomp.Table("user", 6040, 16), embcomp.Table("item", 3706, 16), embcomp.Table("age", 7, 16)]
    choice = embcomp.choose(tables, "1%", count="training")
    richer = embcomp.choose(tables, int(1.1 * choice.budget), count="training")
    assert choice.gain == pytest.approx(choice.loss - richer.loss, rel=0.05)
    assert choice.gain > 0.005
    losses = [point.loss for point in choice.curve]
    assert losses[-1] < 1e-6  # of the full tables
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > choice.loss > losses[-1]


def test_what_cannot_be_compressed_is_said_with_a_budget_that_is_too_small():
    model = Clicks()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"stays as it is: its weight is frozen.*let it be compressed"):
        embcomp.choose(model, "10%")


def test_a_store_that_does_not_fit_together_says_why():
    tables = [embcomp.Table("a", 5000, 16), embcomp.Table("b", 3000, 10)]
    with pytest.raises(ValueError, match=r"table 'a': no option fits it(?!.*FBGEMM)"):
        embcomp.choose(tables, "30%", options=[embcomp.UnifiedEmbedding(rows=300, chunk_dim=4)])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"init": "fit"}, "no training follows.*give data"),
        ({"seconds": 3}, "seconds=3 is for the probes"),
        ({"counts": [1, 2]}, "counts must be a mapping"),
    ],
)
def test_arguments_that_would_be_ignored(arguments, error):
    with pytest.raises((TypeError, ValueError), match=error):
        embcomp.choose(Clicks(), "30%", **arguments)


def test_a_file_of_something_else_is_no_cache(trained, held_out, tmp_path):
    path = tmp_path / "hello.txt"
    path.write_text("hello")
    with pytest.raises(ValueError, match="something else than probes"):
        embcomp.choose(trained, "30%", data=held_out, cache=path)
    assert path.read_text() == "hello"


def test_short_trainings_train_and_name_what_fails(trained, held_out):
    modes, seen = [], []

    def train(model, share):
        modes.append(all(module.training for module in model.modules()))
        seen.append(id(model))
        if len(set(seen)) == 2 and len(seen) == 2:
            raise RuntimeError("out of memory")

    choice = embcomp.choose(trained, "8%", data=held_out, train=train, effort=0.25)
    assert all(modes)
    assert "failed: RuntimeError: out of memory" in str(choice)


def test_half_precision_is_said():
    assert "counted in float32, and tables ['tables.user'" in str(embcomp.choose(Clicks().half(), "10%"))
    assert "float32" not in str(embcomp.choose(Clicks(), "10%"))
