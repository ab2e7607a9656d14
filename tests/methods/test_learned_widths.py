"""LearnedWidths against the formula of its search, and its choice against trying all widths."""

import collections
import copy
import itertools

import pytest
import torch
from torch import nn

import embcomp
from embcomp import LearnedWidths, Schedule, Table
from embcomp.nn import CompressedEmbedding

IDS, DIM, STEPS = 50, 8, 30
CANDIDATES = (1, 2, 4, 8)


def made(method=None, ids=IDS) -> CompressedEmbedding:
    torch.manual_seed(0)
    return CompressedEmbedding(ids, DIM, method or LearnedWidths(width=4))


def codec_of(emb):
    return emb.stores[0].codec


def test_without_a_schedule_the_first_columns_are_mapped():
    emb = made()
    with torch.no_grad():
        emb.combiner.matrix.copy_(torch.randn(DIM, DIM))
    rows, matrix = emb.stores[0].weight.detach(), emb.combiner.matrix.detach()
    torch.testing.assert_close(emb.materialize().detach(), rows[:, :4] @ matrix[:4])


def test_the_search_is_the_mean_over_widths():
    emb = made()
    Schedule(emb, epochs=2, steps=STEPS).step()
    codec, rows, matrix = codec_of(emb), emb.stores[0].weight.detach(), emb.combiner.matrix.detach()
    with torch.no_grad():
        codec.alpha[:, 0] = torch.tensor([0.1, -0.4, 0.6, 0.2])
    assert float(codec.temperature) == pytest.approx(1 - 5e-5)
    p = torch.softmax((codec.alpha.detach()[:, 0] + codec.noise) / codec.temperature, 0)
    expected = sum(p[k] * (rows[:, :width] @ matrix[:width]) for k, width in enumerate(CANDIDATES))
    torch.testing.assert_close(emb.materialize().detach(), expected)
    emb.materialize().square().sum().backward()
    assert float(codec.alpha.grad.abs().min()) > 0


def test_noise_follows_gumbels_distribution():
    emb = made()
    schedule, drawn = Schedule(emb, epochs=2, steps=STEPS), []
    for _ in range(3000):
        schedule.step()
        drawn.append(codec_of(emb).noise.clone())
    values = torch.stack(drawn)
    assert values.mean().item() == pytest.approx(0.5772, abs=0.05)  # Euler's constant
    assert values.var().item() == pytest.approx(1.6449, abs=0.1)  # pi^2 / 6


def test_the_penalty_is_the_mean_width():
    emb = made(LearnedWidths(width=4, strength=0.5))
    schedule = Schedule(emb, epochs=2, steps=STEPS)
    with torch.no_grad():
        codec_of(emb).alpha[:, 0] = torch.tensor([0.1, -0.4, 0.6, 0.2])
    p = torch.softmax(codec_of(emb).alpha.detach()[:, 0], 0)
    expected = 0.5 * sum(float(p[k]) * width / DIM for k, width in enumerate(CANDIDATES))
    assert float(schedule.penalty().detach()) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(6))
def test_tables_choose_the_likeliest_columns_that_fit(seed):
    """No wider choice fits, and columns above a probability are kept as long as all of them fit."""
    draw = torch.Generator().manual_seed(seed)
    ids = (30, 50, 80)
    model = nn.ModuleDict({str(n): made(LearnedWidths(width=3), ids=n) for n in ids})
    schedule = Schedule(model, epochs=2, steps=STEPS)
    above = []
    for n in ids:
        alpha = 2 * torch.randn(len(CANDIDATES), generator=draw)
        with torch.no_grad():
            codec_of(model[str(n)]).alpha[:, 0] = alpha
        p = torch.softmax(alpha, 0)
        above.append([float(p[[width > column for width in CANDIDATES]].sum()) for column in range(DIM)])
    assert schedule.epoch_ended()
    chosen = [int(codec_of(model[str(n)]).width) for n in ids]
    room = 3 * sum(ids)
    assert sum(n * width for n, width in zip(ids, chosen, strict=True)) <= room

    choices = itertools.product(CANDIDATES, repeat=3)
    fitting = [w for w in choices if sum(n * c for n, c in zip(ids, w, strict=True)) <= room]
    assert tuple(chosen) in fitting
    wider = [w for w in fitting if w != tuple(chosen) and all(b >= a for a, b in zip(chosen, w, strict=True))]
    assert not wider  # nothing more fits
    order = sorted({value for own in above for value in own}, reverse=True)
    for least in order:  # as long as all columns above a probability fit, they are kept
        whole = [max(1, sum(value >= least for value in own)) for own in above]
        if sum(n * width for n, width in zip(ids, whole, strict=True)) > room:
            break
        assert all(mine >= theirs for mine, theirs in zip(chosen, whole, strict=True))


def validated(emb):
    """The loss on held-out ids, by the number of the batch."""

    def validate(number):
        return loss_of(emb, torch.randint(IDS, (20,), generator=torch.Generator().manual_seed(10**6 + number)))

    return validate


def loss_of(emb, ids):
    target = torch.sin(ids.float()).unsqueeze(1) * torch.linspace(-1, 1, DIM)  # of one dimension
    return (emb(ids) - target).square().mean()


def scheduled(emb, validate=False):
    optimizer = torch.optim.Adam(emb.parameters(), lr=0.1)
    held_out = validated(emb) if validate else None
    return Schedule(emb, epochs=4, steps=STEPS, optimizer=optimizer, validate=held_out), optimizer


def trained(last=4, method=None, validate=False):
    emb = made(method)
    schedule, optimizer = scheduled(emb, validate)
    train(emb, schedule, optimizer, 0, last)
    return emb, schedule, optimizer


def train(emb, schedule, optimizer, first, last):
    for epoch in range(first, last):
        for step in range(STEPS):
            ids = torch.randint(IDS, (20,), generator=torch.Generator().manual_seed(100 * epoch + step))
            (loss_of(emb, ids) + schedule.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if schedule.epoch_ended():
            assert torch.equal(emb.stores[0].weight, made().stores[0].weight)


def evolution(**settings):
    return LearnedWidths(width=4, rule="evolution", **{"generations": 8, "batches": 2, **settings})


def test_random_widths_of_a_step_are_all_candidates_equally_often():
    emb = made(evolution())
    schedule, widths = scheduled(emb, validate=True)[0], []
    rows, matrix = emb.stores[0].weight.detach(), emb.combiner.matrix.detach()
    for _ in range(4000):
        schedule.step()
        widths.append(int(codec_of(emb).width))
    torch.testing.assert_close(emb.materialize().detach(), rows[:, : widths[-1]] @ matrix[: widths[-1]])
    counts = collections.Counter(widths)
    assert set(counts) == set(range(1, DIM + 1))
    assert all(abs(count - 500) < 5 * 500**0.5 for count in counts.values())
    repeated = made(evolution())
    scheduled(repeated, validate=True)[0].step()
    assert int(codec_of(repeated).width) == widths[0]


@pytest.mark.parametrize("seed", range(3))
def test_the_evolution_finds_the_widths_of_the_least_held_out_loss(seed):
    ids = (30, 50, 80)
    methods = [LearnedWidths(width=3, rule="evolution", candidates=CANDIDATES, batches=3, seed=seed) for _ in ids]
    model = nn.ModuleDict({str(n): made(method, ids=n) for n, method in zip(ids, methods, strict=True)})
    codecs, asked, worth = [codec_of(emb) for emb in model.values()], [], torch.rand(3, 9).cumsum(1)

    def loss(widths):
        return -sum(float(worth[table, width]) for table, width in enumerate(widths))

    def validate(number):
        assert not model.training
        assert not torch.is_grad_enabled()
        asked.append(number)
        return torch.tensor(loss([int(codec.width) for codec in codecs]) + number)

    schedule = Schedule(model, epochs=2, steps=STEPS, validate=validate)
    assert schedule.epoch_ended()
    assert model.training
    assert asked[:6] == [0, 1, 2, 0, 1, 2]
    assert set(asked) == {0, 1, 2}
    choices = itertools.product(CANDIDATES, repeat=3)
    fitting = [w for w in choices if sum(n * c for n, c in zip(ids, w, strict=True)) <= 3 * sum(ids)]
    assert tuple(int(codec.width) for codec in codecs) == min(fitting, key=loss)
    assert not any(bool(codec.searching) for codec in codecs)


class Single(nn.Module):
    """A model of one table."""

    def __init__(self, item):
        super().__init__()
        self.item = item

    def forward(self, ids):
        return self.item(ids)


@pytest.mark.parametrize("rule", ["mixture", "evolution"])
def test_it_learns_and_the_file_serves_what_was_trained(rule, tmp_path):
    emb, schedule, _ = trained(method=LearnedWidths(width=2, rule=rule), validate=rule == "evolution")
    assert schedule.stage == "train"
    width, ids = int(codec_of(emb).width), torch.arange(IDS)
    assert 1 <= width <= 2
    target = torch.sin(ids.float()).unsqueeze(1) * torch.linspace(-1, 1, DIM)
    assert float((emb(ids) - target).square().sum().detach()) < 0.2 * float(target.square().sum())

    report = embcomp.export(Single(emb), tmp_path / "model.pt2", (ids[:4],))
    program = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(program(ids), emb.materialize().detach())
    assert report.tables[0].bytes_exported == embcomp.served_nbytes(emb) == 4 * IDS * width + 4 * DIM * DIM


def both(rule="evolution", width=4, keep=0.5):
    """Rows by their norm, and the width of those that are kept."""
    return LearnedWidths(width=width, rule=rule, of=embcomp.LearnedMask(keep=keep, rule="rows", decay=1e-3))


@pytest.mark.parametrize("rule", ["mixture", "evolution"])
def test_rows_and_columns_are_searched_at_the_same_time(rule):
    emb = made(both(rule))
    schedule = Schedule(emb, epochs=2, steps=STEPS, validate=validated(emb) if rule == "evolution" else None)
    schedule.step()
    codec, rows, matrix = codec_of(emb), emb.stores[0].weight.detach(), emb.combiner.matrix.detach()
    norms = rows.abs().sum(1)
    with torch.no_grad():
        codec.mask.rule.t.fill_(float(norms.median()))
    columns = (torch.arange(DIM) < codec.first.width).float()
    if rule == "mixture":
        p = torch.softmax((codec.first.alpha.detach()[:, 0] + codec.first.noise) / codec.first.temperature, 0)
        columns = sum(p[k] * (torch.arange(DIM) < width).float() for k, width in enumerate(CANDIDATES))
    kept = (norms > norms.median()).float().unsqueeze(1)
    torch.testing.assert_close(emb.materialize().detach(), (kept * columns * rows) @ matrix)
    penalty = 1e-5 * float((-norms.median()).exp()) + 0.5e-3 * float(rows.square().sum())  # of rows, and their decay
    if rule == "mixture":
        shares = torch.softmax(codec.first.alpha.detach()[:, 0], 0)
        penalty += 1e-3 * sum(float(shares[k]) * width / DIM for k, width in enumerate(CANDIDATES))
    assert float(schedule.penalty().detach()) == pytest.approx(penalty)


def test_rows_of_the_largest_norm_are_kept_and_widths_fit_into_their_bytes():
    ids, keep = (20, 30, 50), {"20": 1.0, "30": 0.5, "50": 0.3}
    model = nn.ModuleDict({str(n): nn.Embedding(n, DIM) for n in ids})
    of = embcomp.LearnedMask(keep=keep, rule="rows")
    embcomp.compress_(model, LearnedWidths(width=3, rule="evolution", candidates=CANDIDATES, batches=1, of=of))
    codecs, worth = [codec_of(emb) for emb in model.values()], torch.rand(3, 9).cumsum(1)
    number = [int(keep[str(n)] * n) for n in ids]
    largest = [
        set(emb.stores[0].weight.detach().abs().sum(1).topk(kept).indices.tolist())
        for emb, kept in zip(model.values(), number, strict=True)
    ]

    def loss(widths):
        return -sum(float(worth[table, width]) for table, width in enumerate(widths))

    def validate(_):
        for emb, rows in zip(model.values(), largest, strict=True):  # the rows are chosen before
            assert set(emb.materialize().abs().sum(1).nonzero().squeeze(1).tolist()) == rows
        return torch.tensor(loss([int(codec.first.width) for codec in codecs]))

    schedule = Schedule(model, epochs=2, steps=STEPS, validate=validate)
    schedule.epoch_ended()
    assert schedule.stage == "train"
    choices = itertools.product(CANDIDATES, repeat=3)
    fitting = [w for w in choices if sum(n * c for n, c in zip(number, w, strict=True)) <= 3 * sum(number)]
    widths = tuple(int(codec.first.width) for codec in codecs)
    assert widths == min(fitting, key=loss)
    maps = sum(-(-n // 256) * (32 + 4) for n in ids)  # a bit for each row, and a count for each 256
    values = sum(n * width for n, width in zip(number, widths, strict=True))
    assert embcomp.served_nbytes(model) == maps + 4 * values + 4 * 3 * DIM * DIM


@pytest.mark.parametrize("rule", ["mixture", "evolution"])
def test_rows_and_columns_are_served_as_they_were_trained(rule, tmp_path):
    emb, schedule, _ = trained(method=both(rule), validate=True)
    assert schedule.stage == "train"
    file, ids = tmp_path / "model.pt2", torch.arange(IDS)
    report = embcomp.export(Single(emb), file, (ids[:4],))
    torch.testing.assert_close(torch.export.load(file).module()(ids), emb.materialize().detach())
    assert report.tables[0].bytes_exported == embcomp.served_nbytes(emb)
    assert int((emb.materialize().detach() != 0).any(1).sum()) == IDS // 2


def test_a_warm_start_keeps_the_largest_rows():
    table = torch.randn(IDS, 3) @ torch.randn(3, DIM)
    model = nn.ModuleDict({"item": nn.Embedding.from_pretrained(table.clone(), freeze=False)})
    embcomp.compress_(model, both(width=3, keep=0.4), init="warm")
    vectors = model["item"].materialize().detach()
    kept = (vectors != 0).any(1)
    assert int(kept.sum()) == 20
    torch.testing.assert_close(vectors[kept], table[kept], rtol=1e-3, atol=1e-3)


def test_a_budget_counts_the_rows_that_are_kept():
    tables, full = [Table("a", 300, 16), Table("b", 100, 8)], 4 * (300 * 16 + 100 * 8)
    of = embcomp.LearnedMask(keep=0.25, rule="rows")
    sized = LearnedWidths.for_budget(tables, full // 4, of=of)
    values = (full // 4 - 2 * 36 - 36 - 4 * (256 + 64)) // 4  # without the maps of rows and the matrices
    used = 75 * sized.width["a"] + 25 * sized.width["b"]
    assert values - 75 < used <= values
    assert sized.of == of
    rows = LearnedWidths.for_budget(tables, full // 4, of=of, width=4)  # of a given width as many rows as fit
    assert rows.width == 4
    kept = sum(max(1, int(rows.of.keep[name] * n)) for name, n in (("a", 300), ("b", 100)))
    assert values - 4 * 4 < 4 * kept <= values


TRAININGS = {
    "mixture": (None, False), "held out": (None, True), "evolution": (evolution(), True),
    "rows": (both(), True), "rows and mixture": (both("mixture"), False),
}  # fmt: skip


@pytest.mark.parametrize(("method", "validate"), TRAININGS.values(), ids=TRAININGS)
@pytest.mark.parametrize("killed", [1, 3])
def test_a_continued_training_ends_like_another(killed, method, validate):
    whole, _, _ = trained(4, method, validate)
    parted, schedule, optimizer = trained(killed, method, validate)
    states = copy.deepcopy((parted.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    emb = made(method)
    schedule, optimizer = scheduled(emb, validate)
    emb.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    schedule.load_state_dict(states[2])
    train(emb, schedule, optimizer, killed, 4)
    assert torch.equal(emb.materialize(), whole.materialize())
    assert embcomp.served_nbytes(emb) == embcomp.served_nbytes(whole)


def test_a_warm_start_keeps_the_main_directions():
    table = torch.randn(IDS, 3) @ torch.randn(3, DIM)
    model = nn.ModuleDict({"item": nn.Embedding.from_pretrained(table.clone(), freeze=False)})
    embcomp.compress_(model, LearnedWidths(width=3), init="warm")
    torch.testing.assert_close(model["item"].materialize().detach(), table, rtol=1e-3, atol=1e-3)


def test_budgets_are_those_of_served_bytes():
    tables = [Table("a", 300, 16), Table("b", 100, 8)]
    method = LearnedWidths.for_budget(tables, 8 * 1000)
    assert method.width == {"a": 4, "b": 4}  # 4 * 400 * 4 + 4 * (256 + 64) = 7680 bytes
    assert LearnedWidths.for_budget(tables, 8 * 1000 + 400).width == {"a": 4, "b": 5}  # 100 values more


def test_columns_that_are_left_go_to_large_tables_first():
    ids, dims = {"a": 90, "b": 50, "c": 3}, {"a": 8, "b": 8, "c": 4}
    tables = [Table(name, n, dims[name]) for name, n in ids.items()]
    matrices, before = 4 * sum(dim * dim for dim in dims.values()), -1
    for values in range(143, 1200, 7):
        widths = LearnedWidths.for_budget(tables, matrices + 4 * values).width
        used = sum(n * widths[name] for name, n in ids.items())
        level = max(w for w in range(1, 9) if sum(n * min(w, dims[name]) for name, n in ids.items()) <= values)
        assert all(widths[name] >= min(level, dims[name]) for name in ids)
        assert before <= used <= values
        assert all(width == dims[name] or used + ids[name] > values for name, width in widths.items())
        before = used


def test_impossible_settings():
    with pytest.raises(ValueError, match="LearnedWidths: width"):
        LearnedWidths(width=0)
    with pytest.raises(ValueError, match="LearnedWidths: candidates must be at least 1"):
        LearnedWidths(width=1, candidates=(0, 2))
    for of in (embcomp.LearnedMask(keep=0.5), embcomp.LowBit(bits=4), embcomp.UnifiedEmbedding(rows=9, chunk_dim=4)):
        with pytest.raises(ValueError, match=rf"table 't': LearnedWidths needs .* of={type(of).__name__} has others: "):
            LearnedWidths(width=2, of=of).plan([Table("t", IDS, DIM)])
    with pytest.raises(ValueError, match=r"table 't': LearnedWidths needs .* of=LearnedMask has others: .*rule='rows'"):
        LearnedWidths.for_budget([Table("t", IDS, DIM)], 4 * IDS * DIM, width=2, of=embcomp.LearnedMask)
    with pytest.raises(ValueError, match=r"table 't': width=9 .* at most its embedding_dim 8"):
        LearnedWidths(width=9).plan([Table("t", IDS, DIM)])
    for settings in ({"batches": 2}, {"generations": 2}, {"rule": "evolution", "strength": 0.1}):
        with pytest.raises(ValueError, match=r"LearnedWidths: \w+ is for rule='(mixture|evolution)', got rule="):
            LearnedWidths(width=1, **settings)
    with pytest.raises(ValueError, match="table 'item': rule='evolution' judges widths on held-out data; give"):
        Schedule(nn.ModuleDict({"item": made(evolution())}), epochs=2, steps=STEPS)
    with pytest.raises(ValueError, match="table 'item': its width is searched in 1 of 1 epochs"):
        Schedule(nn.ModuleDict({"item": made()}), epochs=1, steps=STEPS)
