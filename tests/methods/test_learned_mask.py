"""LearnedMask against the formulas of its papers, and its stages against sorting by hand."""

import copy
import math

import pytest
import torch
import torchrec
from torch import nn

import embcomp
from embcomp import LearnedMask, Schedule, Table
from embcomp.codecs.sparse import SparseCodec
from embcomp.nn import CompressedEmbedding
from embcomp.torchrec import CompressedEmbeddingBagCollection, fuse_

IDS, DIM, STEPS = 60, 8, 40
COUNTS = torch.arange(IDS).flip(0)
RULES = {
    "threshold": LearnedMask(keep=0.25, rule="threshold"),
    "row": LearnedMask(keep=0.25, rule="threshold", per="row", start=-2.0),
    "dimension": LearnedMask(keep=0.25, rule="threshold", per="dimension", block=2),
    "magnitude": LearnedMask(keep=0.25),
    "gates": LearnedMask(keep=0.25, rule="gates", counts=COUNTS, groups=4, strength=0.01),
    "rows": LearnedMask(keep=0.25, rule="rows", strength=0.01),
}


def made(method) -> CompressedEmbedding:
    torch.manual_seed(0)
    return CompressedEmbedding(IDS, DIM, method)


def codec_of(emb) -> SparseCodec:
    return emb.stores[0].codec


def searching(method, epochs=4):
    emb = made(method)
    return emb, Schedule(emb, epochs=epochs, steps=STEPS)


def target(ids):
    """Targets with large values for few ids and columns."""
    return torch.sin(ids.unsqueeze(1) * torch.arange(1.0, DIM + 1)) * 3.0 ** -(ids.unsqueeze(1) / 10)


def adam(emb):
    return torch.optim.Adam(emb.parameters(), lr=0.2)


def train(emb, schedule, optimizer, first, last):
    for epoch in range(first, last):
        for step in range(STEPS):
            ids = (torch.rand(16, generator=torch.Generator().manual_seed(1000 * epoch + step)) * IDS).long()
            loss = (emb(ids) - target(ids)).square().mean() + schedule.penalty()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        schedule.epoch_ended()


def trained(method, epochs=4, last=None):
    emb = made(method)
    optimizer = adam(emb)
    schedule = Schedule(emb, epochs=epochs, steps=STEPS, optimizer=optimizer)
    train(emb, schedule, optimizer, 0, epochs if last is None else last)
    return emb, schedule, optimizer


@pytest.mark.parametrize("per", ["table", "row", "dimension"])
def test_soft_thresholds_and_their_gradients(per):
    emb, _ = searching(LearnedMask(keep=0.5, rule="threshold", per=per, start=-1.0))
    w, s = emb.stores[0].weight, codec_of(emb).rule.s
    assert s.shape == {"table": (1, 1), "row": (IDS, 1), "dimension": (1, DIM)}[per]
    with torch.no_grad():
        s.add_(torch.randn_like(s))
    threshold = 1 / (1 + (-s.detach()).exp())
    expected = w.detach().sign() * (w.detach().abs() - threshold).clamp(min=0)
    vectors = emb.materialize()
    torch.testing.assert_close(vectors.detach(), expected)
    above = torch.randn(IDS, DIM)
    (vectors * above).sum().backward()
    kept = (expected != 0).float()
    torch.testing.assert_close(w.grad, above * kept)
    each = -above * kept * w.detach().sign() * threshold * (1 - threshold)
    summed = each.sum().view(1, 1) if per == "table" else each.sum(1 if per == "row" else 0, keepdim=True)
    torch.testing.assert_close(s.grad, summed)


def test_gates_of_frequency_groups():
    emb, schedule = searching(RULES["gates"])
    gates = codec_of(emb).rule.gates
    with torch.no_grad():
        gates.copy_(torch.rand(4, DIM) * 2 - 0.5)
    group = torch.arange(IDS) // (IDS // 4)  # of ids by descending counts
    torch.testing.assert_close(emb.materialize(), emb.stores[0].weight * gates[group])
    gates = gates.detach()
    assert float(schedule.penalty().detach()) == pytest.approx(0.01 * float(gates.abs().sum()))
    schedule.step()
    assert 0 <= float(gates.min()) < float(gates.max()) <= 1


def test_rows_above_a_norm():
    emb, schedule = searching(RULES["rows"])
    w, t = emb.stores[0].weight, codec_of(emb).rule.t
    with torch.no_grad():
        t.fill_(float(w.abs().sum(1).median()))
    kept = w.detach().abs().sum(1, keepdim=True) > t.detach()
    vectors = emb.materialize()
    torch.testing.assert_close(vectors.detach(), w.detach() * kept)
    assert float(schedule.penalty().detach()) == pytest.approx(0.01 * math.exp(-float(t.detach())))
    vectors.sum().backward()
    x = (w.detach().abs().sum(1, keepdim=True) - t.detach()).abs()
    slope = torch.where(x <= 0.4, 2 - 4 * x, torch.where(x <= 1, 0.4, 0.0))
    each = w.detach().sum(1, keepdim=True) * slope
    torch.testing.assert_close(t.grad, -each.sum().view(1, 1))
    torch.testing.assert_close(w.grad, kept + each * w.detach().sign())


@pytest.mark.parametrize("rule", ["threshold", "magnitude", "rows"])
def test_decay_leaves_rows_that_are_not_read_nothing(rule):
    """Half of the ids are read, and rows start large."""
    settings = {"strength": 0.01} if rule == "rows" else {}
    emb, schedule = searching(LearnedMask(keep=0.5, rule=rule, decay=0.02, **settings))
    w, rest = emb.stores[0].weight, 0.01 if rule == "rows" else 0.0  # strength exp(-t) with t = 0
    assert float(schedule.penalty().detach()) == pytest.approx(rest + 0.01 * float(w.detach().square().sum()), rel=1e-5)
    optimizer, ids = adam(emb), torch.arange(IDS // 2)
    for _ in range(2):
        for _ in range(STEPS):
            ((emb(ids) - (1.0 + ids % 2).unsqueeze(1)).square().mean() + schedule.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        schedule.epoch_ended()
    kept = (emb.materialize().detach() != 0).float().mean(1)
    assert schedule.stage == "train"
    assert float(kept[: IDS // 2].mean()) > 0.9
    assert isinstance(schedule.penalty(), float)


def test_pruning_by_magnitude_follows_its_curve():
    emb, schedule = searching(LearnedMask(keep=0.2, damping=0.001), epochs=4)
    w = emb.stores[0].weight
    for step in range(2 * STEPS):
        with torch.no_grad():
            w.add_(1e-3)  # entries that were pruned change again until the next pruning
        schedule.step()
        pruned = step + 1 - STEPS  # after the first epoch
        if pruned > 0 and pruned % 10 == 0:
            share = 0.8 * (1 - 0.001 ** (pruned / 100))
            assert int((w == 0).sum()) == int(share * IDS * DIM)
        if step + 1 == STEPS:
            assert int((w == 0).sum()) == 0
            schedule.epoch_ended()


@pytest.mark.parametrize("method", RULES.values(), ids=RULES)
def test_a_share_is_kept_from_the_initial_values(method):
    emb, schedule, optimizer = trained(method, last=1)
    if schedule.stage == "search":
        train(emb, schedule, optimizer, 1, 2)
    assert schedule.stage == "train"
    codec, w = codec_of(emb), emb.stores[0].weight.detach()
    kept = emb.materialize().detach() != 0
    blocks = IDS if method.rule == "rows" else IDS * DIM // method.block
    assert codec.sparse.kept == int(0.25 * blocks)
    assert int(kept.sum()) == codec.sparse.kept * codec.sparse.block
    if method.rule != "magnitude":
        assert torch.equal(w, made(method).stores[0].weight.detach())
    assert torch.equal(emb.materialize(), w * kept)


@pytest.mark.parametrize("method", RULES.values(), ids=RULES)
def test_masks_are_those_of_the_largest_scores(method):
    emb, schedule, _ = trained(method, last=1)
    w = emb.stores[0].weight.detach().clone()
    rule = copy.deepcopy(codec_of(emb).rule)
    for stages in schedule._stages:
        stages.choose()
    mine = emb.materialize().detach() != 0
    if method.rule == "threshold":
        scores = w.abs() - torch.sigmoid(rule.s.detach())
        scores = scores.view(IDS, -1, method.block).sum(2).repeat_interleave(method.block, 1)
    elif method.rule == "gates":
        group = torch.arange(IDS) // (IDS // 4)
        scores = rule.gates.detach().double()[group] + 1e-9 * (w.abs().double() / w.abs().max())
    else:
        scores = w.abs() if method.rule == "magnitude" else w.abs().sum(1, keepdim=True).expand(IDS, DIM)
    least = scores.reshape(-1).sort(descending=True).values[int(mine.sum()) - 1]
    assert bool((scores[mine] >= least).all())
    assert bool((scores[~mine] <= least).all())


@pytest.mark.parametrize("method", RULES.values(), ids=RULES)
def test_it_learns_and_the_file_serves_what_was_trained(method, tmp_path):
    emb, _, _ = trained(method)
    ids = torch.arange(IDS)
    evenly = made(method)  # without a schedule
    train(evenly, Schedule(nn.ModuleDict(), epochs=4, steps=STEPS), adam(evenly), 0, 4)
    mine, theirs = ((each(ids) - target(ids)).square().sum().detach() for each in (emb, evenly))
    assert float(mine) < 0.8 * float(theirs)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.item = emb

        def forward(self, ids):
            return self.item(ids)

    report = embcomp.export(Model(), tmp_path / "model.pt2", (ids[:4],))
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.equal(program(ids), emb.materialize())
    (line,) = report.tables
    blocks = IDS if method.rule == "rows" else IDS * DIM // method.block
    width = DIM if method.rule == "rows" else method.block
    assert line.bytes_exported == embcomp.served_nbytes(emb)
    assert embcomp.served_nbytes(emb) == 36 * -(-blocks // 256) + 4 * width * int(0.25 * blocks)


def test_while_it_searches_all_entries_are_served(tmp_path):
    emb, schedule, _ = trained(RULES["threshold"], last=1)
    assert schedule.stage == "search"
    assert embcomp.served_nbytes(emb) == 36 * -(-IDS * DIM // 256) + 4 * IDS * DIM
    served = codec_of(emb).code(emb.stores[0].weight.detach())
    assert len(served.constants["values"]) == IDS * DIM


@pytest.mark.parametrize("method", RULES.values(), ids=RULES)
@pytest.mark.parametrize("killed", [1, 3])
def test_a_continued_training_ends_like_another(method, killed):
    whole, _, _ = trained(method)
    parted, schedule, optimizer = trained(method, last=killed)
    states = copy.deepcopy((parted.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    emb = made(method)
    optimizer = adam(emb)
    schedule = Schedule(emb, epochs=4, steps=STEPS, optimizer=optimizer)
    emb.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    schedule.load_state_dict(states[2])
    train(emb, schedule, optimizer, killed, 4)
    assert torch.equal(emb.materialize(), whole.materialize())


def test_thresholds_that_leave_few_entries_end_the_search():
    emb, schedule = searching(LearnedMask(keep=0.25, rule="threshold", search=0.8), epochs=5)
    with torch.no_grad():
        emb.stores[0].weight[20:] *= 1e-9  # below sigmoid(-11)
        emb.stores[0].weight[:15] += 1
    assert not schedule.epoch_ended()
    with torch.no_grad():
        emb.stores[0].weight[15:] *= 1e-9
    assert schedule.epoch_ended()
    assert schedule.stage == "train"


def test_a_warm_start_keeps_the_largest_trained_entries():
    table = torch.randn(IDS, DIM)
    model = nn.ModuleDict({"item": nn.Embedding.from_pretrained(table.clone(), freeze=False)})
    embcomp.compress_(model, LearnedMask(keep=0.25), init="fit")
    least = table.abs().reshape(-1).sort(descending=True).values[int(0.25 * IDS * DIM) - 1]
    assert torch.equal(model["item"].materialize(), table * (table.abs() >= least))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep": 0.0}, "keep"),
        ({"keep": 1.5}, "keep"),
        ({"keep": 0.5, "per": "row"}, "per is for rule='threshold', got rule='magnitude'"),
        ({"keep": 0.5, "rule": "gates"}, "needs the counts"),
        ({"keep": 0.5, "rule": "rows", "block": 2}, "whole rows, got block=2"),
        ({"keep": 0.5, "rule": "rows", "damping": 0.5}, "damping is for rule='magnitude'"),
        ({"keep": 0.5, "strength": 1.0}, "strength is for rule='gates' or 'rows'"),
        ({"keep": 0.5, "search": 1.0}, "search"),
        ({"keep": 0.5, "rule": "norm"}, "rule"),
        ({"keep": 0.5, "decay": -1.0}, "decay"),
    ],
)
def test_impossible_settings(settings, said):
    with pytest.raises(ValueError, match=f"LearnedMask: .*{said}"):
        LearnedMask(**settings)


def test_decay_of_a_fused_table_is_refused():
    bags = [torchrec.EmbeddingBagConfig(name="item", num_embeddings=IDS, embedding_dim=DIM, feature_names=["item"])]
    collection = CompressedEmbeddingBagCollection(bags, {"*": LearnedMask(keep=0.5, decay=0.1)})
    fuse_(collection, optimizer=torchrec.optim.RowWiseAdagrad, optimizer_kwargs={"lr": 0.1})
    with pytest.raises(ValueError, match="table 'item': decay needs gradients of all rows, but a fused optimizer"):
        Schedule(collection, epochs=2, steps=STEPS)


def test_impossible_tables_and_schedules():
    with pytest.raises(ValueError, match="table 't': block=3 must divide its embedding_dim 8"):
        LearnedMask(keep=0.5, block=3).plan([Table("t", IDS, DIM)])
    with pytest.raises(ValueError, match=r"counts must have shape \[60\]"):
        LearnedMask(keep=0.5, rule="gates", counts=COUNTS[:5]).plan([Table("t", IDS, DIM)])
    model = nn.ModuleDict({"item": made(LearnedMask(keep=0.5))})
    with pytest.raises(ValueError, match="table 'item': its mask is searched in 1 of 1 epochs"):
        Schedule(model, epochs=1, steps=STEPS)
    model = nn.ModuleDict({"item": made(LearnedMask(keep=0.5, damping=0.99))})
    with pytest.raises(ValueError, match=r"table 'item': with damping=0\.99 its 40 steps of pruning reach only 0%"):
        Schedule(model, epochs=4, steps=STEPS)
