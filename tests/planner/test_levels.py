"""Choices for a trained model: the better the more is known, probe by probe."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

import embcomp
from embcomp.graph import ClusterMap
from embcomp.planner.choice import kind
from embcomp.planner.estimates import ByProbes
from embcomp.planner.losses import log_loss
from embcomp.planner.options import Option, options_of
from embcomp.planner.probes import Probes
from embcomp.planner.search import Search
from embcomp.planner.tables import held_tables
from tests.planner.conftest import IDS, WIDTH, Clicks, chosen, mean_loss

FULL = 4 * WIDTH * sum(IDS.values())


def bytes_of(plan):
    return sum(option.served for option in plan)


def test_progress_says_how_far_it_is(trained, held_out, capsys):
    embcomp.choose(trained, "8%", data=held_out, progress=True)
    drawn = [line for line in capsys.readouterr().err.replace("\n", "\r").split("\r") if "] " in line]
    said = [line.split("] ")[1].split(",")[0] for line in drawn]
    assert [line.split()[0] for line in said] == [str(k + 1) for k in range(len(drawn))]
    number, most = map(int, said[-1].split(" of at most "))
    assert 0 < number <= most
    assert drawn[-1].count("#") == int(20 * number / most)
    embcomp.choose(trained, "8%", data=held_out, progress=False)
    assert capsys.readouterr().err == ""


def test_probes_measure_what_compress_does(trained, held_out):
    held = held_tables(trained, None)
    probes = Probes(trained, held, held_out, log_loss)
    before = copy.deepcopy(trained.state_dict())
    for method in (embcomp.LowRank(rank=2), embcomp.LowBit(bits=2), embcomp.UnifiedEmbedding(rows=100, chunk_dim=4)):
        swapped = copy.deepcopy(trained)
        embcomp.compress_(swapped, {"tables.item": method}, init="warm")
        rise = probes.rise([1], method)
        assert probes.base + rise == pytest.approx(mean_loss(swapped, held_out), abs=1e-6)
    swapped = copy.deepcopy(trained)
    bit, line = embcomp.LowBit(bits=1), embcomp.LowRank(rank=1)
    embcomp.compress_(swapped, {"tables.user": bit, "tables.item": line}, init="warm")
    together = probes.together([([0], bit), ([1], line)])
    assert probes.base + together == pytest.approx(mean_loss(swapped, held_out), abs=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_a_trained_model_shows_which_tables_say_nothing_and_what_rank_they_have(trained, held_out):
    choice = embcomp.choose(trained, "5%", data=held_out, seed=0)
    user, item, noise = (chosen(choice, f"tables.{name}") for name in ("user", "item", "noise"))
    assert noise.worth < 0.05 * min(user.worth, item.worth)
    # Two directions are planted: bytes go there, and none to the noise that could go there.
    assert noise.served < 0.2 * choice.served_nbytes
    assert "LowRank" in kind(user.method) + kind(item.method)
    by_sizes = embcomp.choose(trained, "5%")
    assert chosen(by_sizes, "tables.noise").served > noise.served


def test_without_training_the_expected_loss_is_that_of_the_fitted_model(trained, held_out):
    choice = embcomp.choose(trained, "15%", data=held_out, init="fit")
    swapped = copy.deepcopy(trained)
    embcomp.compress_(swapped, choice.methods, init="warm")
    assert mean_loss(swapped, held_out) - mean_loss(trained, held_out) == pytest.approx(choice.loss, abs=2e-3)
    uniform = copy.deepcopy(trained)
    embcomp.compress_(uniform, embcomp.LowBit(bits=4), init="warm")
    assert choice.served_nbytes < 1.25 * embcomp.served_nbytes(uniform.tables)
    assert mean_loss(swapped, held_out) < mean_loss(uniform, held_out) + 1e-3


def test_probes_are_kept_and_a_stopped_plan_goes_on(trained, held_out, tmp_path):
    calls, stop = [], [25]

    def loss(model, batch):
        calls.append(1)
        if len(calls) >= stop[0]:
            raise KeyboardInterrupt
        return log_loss(model, batch)

    before = copy.deepcopy(trained.state_dict())
    cache = tmp_path / "probes.jsonl"
    with pytest.raises(KeyboardInterrupt):
        embcomp.choose(trained, "8%", data=held_out, loss=loss, cache=cache)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    kept = len(cache.read_text().split())
    with cache.open("a") as file:
        file.write('{"probe": "cut sh')  # what a killed process may leave
    calls.clear()
    stop[0] = 10**9
    first = embcomp.choose(trained, "8%", data=held_out, loss=loss, cache=cache)
    whole = len(calls)
    calls.clear()
    again = embcomp.choose(trained, "8%", data=held_out, loss=loss, cache=cache)
    assert kept > 0
    assert len(calls) == len(held_out) < whole  # the loss as it is, and nothing else
    assert [t.method for t in again.tables] == [t.method for t in first.tables]
    fresh = embcomp.choose(trained, "8%", data=held_out)
    assert [t.method for t in fresh.tables] == [t.method for t in first.tables]


def test_codes_are_measured_after_what_takes_less_time(trained, held_out, monkeypatch):
    measured = []
    rise = Probes.rise

    def noted(self, tables, method):
        measured.append(kind(method))
        return rise(self, tables, method)

    monkeypatch.setattr(Probes, "rise", noted)
    ranks = [embcomp.LowRank(rank=rank) for rank in (1, 2, 3, 4)]
    codes = [embcomp.ProductCodes(parts=parts, codes=16) for parts in (2, 4)]
    embcomp.choose(trained, "20%", data=held_out, options=[embcomp.Full(), *codes, *ranks])
    codes = [number for number, name in enumerate(measured) if "ProductCodes" in name]
    ranks = [number for number, name in enumerate(measured) if "LowRank" in name]
    assert codes
    assert set(range(codes[0])) <= set(ranks)
    assert len({measured[number] for number in ranks if number < codes[0]}) >= 2


@pytest.mark.parametrize("share", [0.035, 0.04, 0.05])  # whose best plans have several ranks
def test_for_each_measured_part_of_the_best_plan_there_is_one_that_differs_in_it(trained, held_out, share):
    held = held_tables(trained, None)
    judge = ByProbes(held, Probes(trained, held, held_out, log_loss), "fresh")
    budget = int(share * FULL)
    plans = Search(held, options_of(held, "served"), judge, "served", budget).candidates()
    assert all(sum(option.served for option in plan) <= budget for plan in plans)
    narrow = [{o.tables: kind(o.method) for o in plan if "LowRank" in kind(o.method)} for plan in plans]
    assert len(narrow[0]) > 1
    for tables, name in narrow[0].items():
        assert any(other and other.get(tables) != name for other in narrow)
    assert len({tuple(sorted(of.items())) for of in narrow}) > len(narrow[0]) + 1


def test_no_time_leaves_rules(trained, held_out):
    choice = embcomp.choose(trained, "8%", data=held_out, seconds=1e-9)
    assert choice.nbytes <= choice.budget
    assert math.isfinite(choice.loss)
    held = held_tables(trained, None)
    judge = ByProbes(held, Probes(trained, held, held_out, log_loss, seconds=1e-9), "fresh")
    search = Search(held, options_of(held, "served"), judge, "served", FULL // 12)
    plans = search.candidates(in_time=True)
    assert len(plans) <= 2 < len(search.candidates())
    assert judge.joint(plans[0]) == min(map(judge.joint, search.candidates()))  # more plans are of no use


def test_bytes_that_buy_nothing_are_not_spent(trained, held_out):
    """Plans that were measured together differ by noise; the cheaper one is taken."""
    choice = embcomp.choose(trained, "10%", data=held_out)
    noise = chosen(choice, "tables.noise")
    assert noise.note == "says nothing of the label: drop it"
    assert noise.served < 0.06 * noise.full
    held = held_tables(trained, None)
    judge = ByProbes(held, Probes(trained, held, held_out, log_loss), "fresh")
    search = Search(held, options_of(held, "served"), judge, "served", FULL)
    plans = search.candidates()
    assert search.cost(search.best()) <= min(map(search.cost, plans))
    dear, cheap = (max(plans, key=bytes_of), min(plans, key=bytes_of))
    extra = search.cost(dear) - judge.joint(dear) - (search.cost(cheap) - judge.joint(cheap))
    assert extra == pytest.approx(1e-5 * sum(judge.worth) * (bytes_of(dear) - bytes_of(cheap)) / FULL)


@pytest.mark.parametrize("spread", [1.0, 0.25])
def test_a_table_whose_shared_rows_lose_less_of_its_worth_gets_less(trained, held_out, monkeypatch, spread):
    """Here the probes of shared rows of users are multiplied."""
    rise = Probes.rise

    def told(self, tables, method):
        found = rise(self, tables, method)
        frail = kind(method) == "QuotientRemainder" and self.held[tables[0]].name == "tables.user"
        return found * spread if frail and found is not None else found

    monkeypatch.setattr(Probes, "rise", told)
    held = held_tables(trained, None)
    judge = ByProbes(held, Probes(trained, held, held_out, log_loss), "fresh")
    users = next(i for i, table in enumerate(held) if table.name == "tables.user")
    items = next(i for i, table in enumerate(held) if table.name == "tables.item")
    even = judge.frailty[users] / judge.frailty[items]
    assert (even < 0.5) == (spread < 1)
    assert all(0.2 <= frailty <= 2 for frailty in judge.frailty.values())


def test_other_counts_are_other_probes(trained, held_out, tmp_path):
    """The mean vector and the fit weigh ids by their counts: figures of other counts were taken from the file."""
    counts = {"tables.user": torch.arange(IDS["user"]) ** 3, "tables.item": torch.arange(IDS["item"]) ** 3}
    cache = tmp_path / "probes.jsonl"
    embcomp.choose(trained, "5%", data=held_out, cache=cache)
    worths = [
        [table.worth for table in embcomp.choose(trained, "5%", data=held_out, counts=counts, cache=file).tables]
        for file in (None, cache)
    ]
    assert worths[0] == worths[1]


def test_what_is_known_of_features_orders_the_probes(trained, held_out, monkeypatch):
    order, worth = [], Probes.worth

    def noted(self, tables):
        order.extend([self.held[i].name for i in tables] if len(tables) == 1 else [])
        return worth(self, tables)

    monkeypatch.setattr(Probes, "worth", noted)
    told = {f"tables.{name}": float(number) for number, name in enumerate(("user", "day", "item", "noise"), 1)}
    embcomp.choose(trained, "10%", data=held_out, worth=told)
    assert order == ["tables.noise", "tables.item", "tables.day", "tables.user"]


def test_a_choice_says_when_its_time_ended(trained, held_out, monkeypatch):
    ended = embcomp.choose(trained, "10%", data=held_out, seconds=0)
    assert "the time of 0 s ended before the first probe: all is by rules" in str(ended)
    assert (ended.level, ended.methods.keys()) == (1, embcomp.choose(trained, "10%").methods.keys())
    monkeypatch.setattr(Probes, "late", property(lambda self: self.made >= 3))
    ended = embcomp.choose(trained, "10%", data=held_out, seconds=0)
    assert "the time of 0 s ended after 3 probes: the rest is by rules" in str(ended)
    assert ended.level == 2


def test_nan_is_named_by_its_table(trained, held_out):
    with torch.no_grad():
        trained.tables["item"].weight[:] = math.nan
    with pytest.raises(ValueError, match=r"the loss of batch 0 is nan: table 'tables.item' .* NaN .* its training"):
        embcomp.choose(trained, "10%", data=held_out)
    with pytest.raises(TypeError, match="loss must return the mean loss"):
        embcomp.choose(trained, "10%", data=held_out, loss=lambda model, batch: None)
    for seconds in (-1, "5"):
        with pytest.raises(ValueError, match="seconds must be a number of at least 0"):
            embcomp.choose(trained, "10%", data=held_out, seconds=seconds)


def test_data_needs_a_model_that_is_trained(held_out, trained):
    with pytest.raises(TypeError, match="data is for a trained model"):
        embcomp.choose([embcomp.Table("a", 100, 8)], "50%", data=held_out)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="the model is not trained, or overfits: its loss on data"):
        embcomp.choose(Clicks(), "30%", data=held_out)
    with torch.no_grad():
        trained.tables["user"].weight[:] = math.nan
    with pytest.raises(ValueError, match="the loss of batch 0 is nan"):
        embcomp.choose(trained, "10%", data=held_out)


def test_a_probe_that_fails_is_named_and_the_rest_goes_on(trained, held_out):
    class Broken(embcomp.LowRank, registered=False):
        def plan(self, tables, group="shared"):
            raise RuntimeError("no such luck")

    options = [embcomp.Full(), embcomp.LowBit(bits=2), embcomp.LowBit(bits=8, of=Broken(rank=4))]
    choice = embcomp.choose(trained, "14%", data=held_out, options=options)
    assert {kind(t.method) for t in choice.tables} <= {"Full", "LowBit"}
    assert any("no such luck" in line for line in choice.failed)
    assert "failed: tables.item: Broken 4: RuntimeError: no such luck" in str(choice)


def test_a_loss_of_ones_own_is_asked_for(trained, held_out):
    batches = [{"ids": ids, "clicked": labels} for ids, labels in held_out]

    def loss(model, batch):
        return F.mse_loss(model(batch["ids"]).sigmoid(), batch["clicked"])

    choice = embcomp.choose(trained, "10%", data=batches, loss=loss)
    assert chosen(choice, "tables.noise").worth < chosen(choice, "tables.user").worth


def test_what_hashes_lose_is_not_said_of_rows_for_ids_that_are_alike(trained, held_out):
    """On Beauty rows shared by hashes lose most of the worth, and those shared by cluster next to nothing."""
    held = held_tables(trained, None)
    users = next(i for i, table in enumerate(held) if table.name == "tables.user")
    clusters = ClusterMap.of(torch.arange(300) // 3, rows=100)
    lost = {}
    for frail in (1.0, 2.0):
        judge = ByProbes(held, Probes(trained, held, held_out, log_loss), "fresh")
        judge.__dict__["frailty"] = {users: frail}
        for method in (embcomp.GraphHash(clusters), embcomp.HashingTrick(rows=100)):
            option = Option((users,), method, 0, 0)
            lost[kind(method), frail] = judge.loss(option)
    assert lost["GraphHash", 2.0] == lost["GraphHash", 1.0]
    assert lost["HashingTrick", 2.0] == pytest.approx(2 * lost["HashingTrick", 1.0])


def test_the_random_state_stays(trained, held_out):
    before = torch.get_rng_state()
    embcomp.choose(trained, "5%", data=held_out, train=lambda model, share: None)
    assert torch.equal(torch.get_rng_state(), before)


def test_probes_of_other_batches_with_the_same_losses_are_not_taken(trained, held_out, tmp_path):
    """A loss of whole numbers, such as an error rate, is the same for many batches."""
    halves = [[tuple(part[half] for part in batch) for batch in held_out] for half in (slice(0, 50), slice(50, 100))]
    seen: list[int] = []

    def loss(model, batch):
        seen.append(1)
        return (
            0.0 if all(torch.equal(t.weight, w) for t, w in zip(model.tables.values(), weights, strict=True)) else 1.0
        )

    weights = [table.weight.detach().clone() for table in trained.tables.values()]
    made = []
    for data in (halves[0], halves[0], halves[1]):
        seen.clear()
        embcomp.choose(trained, "5%", data=data, loss=loss, init="fit", cache=tmp_path / "probes")
        made.append(len(seen))
    assert made[1] == len(held_out)  # the losses of the whole model alone
    assert made[2] == made[0] > made[1]
