"""FrequencyBits against the formulas of its paper, and its stages against what they promise."""

import copy
import itertools

import pytest
import torch
from torch import nn

import embcomp
from embcomp import FrequencyBits, Schedule, Table
from embcomp.codecs.grid import PACE
from embcomp.codecs.mixed_grid import MixedGridCodec
from embcomp.codecs.shared_bits import sizes_of
from embcomp.nn import CompressedEmbedding
from embcomp.ops.allotment import OF_NORMAL

IDS, DIM, STEPS = 60, 8, 30
COUNTS = torch.arange(IDS).flip(0) ** 2  # id 0 is the most frequent one
BEST_STEP = {1: 1.596, 2: 0.9957, 3: 0.586}  # Max 1960, table II


def made(**settings) -> CompressedEmbedding:
    torch.manual_seed(0)
    settings = {"mean_bits": 2.0, "groups": 4, "bits": 3, **settings}
    return CompressedEmbedding(IDS, DIM, FrequencyBits(counts=COUNTS, **settings))


def codec_of(emb) -> MixedGridCodec:
    return emb.stores[0].codec


def rounded(values: torch.Tensor, step: float, bits: int) -> torch.Tensor:
    """The nearest of the 2^bits values step * (k + 1/2), by trying all."""
    if not bits:
        return torch.zeros_like(values)
    grid = step * (torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)) + 0.5)
    return grid[(values.unsqueeze(-1) - grid).abs().argmin(-1)]


def by_hand(emb, group: int) -> list[torch.Tensor]:
    """The vectors of a group of 15 ids with 0, 1, 2 and 3 bits, from the definition."""
    weight, codec = emb.stores[0].weight.detach(), codec_of(emb)
    deviation = weight.std(correction=0)
    centre = weight.mean() + deviation * codec.offset.detach()
    values = weight[15 * group : 15 * group + 15] - centre
    steps = [float(BEST_STEP.get(b, 1) * deviation * (PACE * codec.growth[b].detach()).exp()) for b in range(4)]
    return [centre + rounded(values, step, bits) for bits, step in enumerate(steps)]


@pytest.fixture
def learned() -> CompressedEmbedding:
    emb = made()
    codec = codec_of(emb)
    with torch.no_grad():
        codec.growth.normal_()
        codec.offset.normal_(0, 0.3)
    return emb


def test_each_group_is_rounded_to_its_bits(learned):
    codec = codec_of(learned)
    codec.chosen.copy_(torch.tensor([3, 1, 0, 2]))
    for group, bits in enumerate([3, 1, 0, 2]):
        vectors = learned(torch.arange(15 * group, 15 * group + 15))
        torch.testing.assert_close(vectors.detach(), by_hand(learned, group)[bits])


def test_the_search_mixes_all_bits_by_their_probabilities(learned):
    codec = codec_of(learned)
    codec.begin()
    with torch.no_grad():
        codec.logits.copy_(0.003 * torch.randn(4, 4))
    for group in range(4):
        shares = (codec.logits[group].detach() / 3e-3).exp()
        shares = shares / shares.sum()
        expected = sum(share * vectors for share, vectors in zip(shares, by_hand(learned, group), strict=True))
        vectors = learned(torch.arange(15 * group, 15 * group + 15))
        torch.testing.assert_close(vectors.detach(), expected, rtol=1e-4, atol=1e-5)
    # The gradient of a probability is the inner product with its vectors.
    probabilities = codec.probabilities()
    factors = torch.randn(15, DIM)
    (learned(torch.arange(15)) * factors).sum().backward()
    slope = torch.stack([(factors * vectors).sum() for vectors in by_hand(learned, 0)])
    expected = probabilities[0] * (slope - (probabilities[0] * slope).sum()) / 3e-3
    torch.testing.assert_close(codec.logits.grad[0], expected.detach(), rtol=1e-3, atol=1e-2)


def test_the_penalty_is_the_expected_bits_weighted_by_rarity():
    codec = codec_of(made(strength=0.5))
    codec.begin()
    with torch.no_grad():
        codec.logits.copy_(0.003 * torch.randn(4, 4))
    reads = COUNTS.view(4, 15).sum(1).double()
    expected = 0.0
    for group, logits in enumerate((codec.logits.detach() / 3e-3).exp().double()):
        mean = sum(bits * float(share) for bits, share in enumerate(logits / logits.sum()))
        expected += 0.5 * float(reads.min() / reads[group]) * mean
    assert float(codec.penalty().detach()) == pytest.approx(expected, rel=1e-5)


def test_ids_in_the_order_of_their_counts_have_fewer_runs_and_no_map():
    torch.manual_seed(0)
    ids, dim = 4000, 8
    weight = torch.randn(ids, dim) * torch.rand(ids, 1)
    counts, shuffled = 1e6 / torch.arange(1.0, ids + 1), torch.randperm(ids)
    fits = {}
    for name, order, mean in (
        ("sorted", torch.arange(ids), 1.5),
        ("mixed", shuffled, 1.5),
        ("as many", shuffled, 1.05),
    ):
        model = nn.ModuleDict({"t": nn.Embedding.from_pretrained(weight[order].clone(), freeze=False)})
        embcomp.compress_(model, FrequencyBits(counts=counts[order], mean_bits=mean), init="fit")
        rows = model["t"].materialize().detach()[order.argsort()]
        error = float((rows - weight).square().sum(1) @ counts.sqrt())
        fits[name] = embcomp.served_nbytes(model), error, codec_of(model["t"]).bits
    nbytes, error, bits = fits["sorted"]
    runs = 1 + sum(a != b for a, b in itertools.pairwise(bits))
    assert nbytes <= ids * dim * 1.5 / 8 + 9 * runs + 4 * (dim + 7) + 16
    assert runs <= 10  # bits hardly ever rise again
    assert fits["mixed"][0] - nbytes > 0.8 * ids * 4 / 8  # half a byte for each row
    assert fits["as many"][0] == pytest.approx(nbytes, rel=0.03)
    assert error < 0.8 * fits["as many"][1]


def test_errors_of_the_normal_distribution():
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    for bits, step in BEST_STEP.items():
        assert float((rounded(values, step, bits) - values).square().mean()) == pytest.approx(OF_NORMAL[bits], rel=0.02)


def test_the_search_chooses_by_the_papers_rule_or_under_the_mean():
    emb = made(mean_bits=None)
    codec = codec_of(emb)
    assert codec.bits == [3, 3, 3, 3]  # equal probabilities: all candidates have half of an equal share
    codec.begin()
    with torch.no_grad():
        shares = torch.tensor([[0.9, 0.06, 0.02, 0.02], [0.4, 0.4, 0.13, 0.07], [0.1, 0.1, 0.1, 0.7], [0.0, 1, 0, 0]])
        codec.logits.copy_(3e-3 * shares.clamp(min=1e-30).log())
    codec.choose()
    assert codec.bits == [0, 2, 3, 1]  # the most bits with a probability of at least 1/8


def two_tables() -> tuple[nn.ModuleDict, dict[str, torch.Tensor]]:
    """A table of few ids that are read often, whose vectors are small, and one of many."""
    torch.manual_seed(3)
    sizes = {"few": (5, 4), "many": (60, 6)}
    model = nn.ModuleDict({name: nn.Embedding(*size) for name, size in sizes.items()})
    with torch.no_grad():
        model["few"].weight.mul_(0.03)
    return model, {"few": 1000 * torch.tensor([900, 30, 500, 100, 3]), "many": torch.randint(1, 90, (60,))}


def lost_by_hand(model, trained, counts) -> dict[str, list[list[float]]]:
    """The squared errors of each group with 0, 1 and 2 bits, times the root of the mean reads of its ids."""
    lost = {}
    for name, table in trained.items():
        codec = codec_of(model[name])
        deviation = table.std(correction=0)
        centre = table.mean() + deviation * codec.offset.detach()
        steps = [float(BEST_STEP.get(b, 1) * deviation * (PACE * codec.growth[b].detach()).exp()) for b in range(3)]
        order = counts[name].argsort(descending=True, stable=True)
        groups = order.split(sizes_of(len(order), 3))
        lost[name] = [
            [
                float((rounded(table[ids] - centre, step, bits) + centre - table[ids]).square().sum())
                * float(counts[name][ids].double().mean().sqrt())
                for bits, step in enumerate(steps)
            ]
            for ids in groups
        ]
    return lost


@pytest.mark.parametrize("mean", [0.5, 0.8, 1.0, 1.3, 1.5, 1.8])
def test_a_fit_gives_all_tables_together_the_bits_that_lose_least(mean):
    model, counts = two_tables()
    trained = {name: module.weight.detach().clone() for name, module in model.items()}
    method = FrequencyBits(counts=counts, mean_bits=mean, groups=3, bits=2)
    planned = sum(method.plan([Table(name, *table.shape)]).served_nbytes() for name, table in trained.items())
    embcomp.compress_(model, method, init="warm")
    assert embcomp.served_nbytes(model) <= planned
    lost = lost_by_hand(model, trained, counts)
    for name, table in trained.items():
        expected = torch.tensor(lost[name], dtype=torch.float64)
        torch.testing.assert_close(codec_of(model[name]).errors(table), expected, rtol=1e-4, atol=1e-6)
    values = {name: [size * table.shape[1] for size in sizes_of(len(table), 3)] for name, table in trained.items()}
    errors, sizes = lost["few"] + lost["many"], values["few"] + values["many"]
    chosen = codec_of(model["few"]).bits + codec_of(model["many"]).bits

    def cost(bits) -> tuple[float, int]:
        return sum(e[b] for e, b in zip(errors, bits, strict=True)), sum(map(int.__mul__, bits, sizes))

    least, used = cost(chosen)
    for other in itertools.product(range(3), repeat=6):
        error, bits = cost(other)
        assert bits > used or error >= least - 1e-6


def test_shares_in_place_of_counts_give_the_same_bits_and_penalty():
    found = []
    for scale in (1.0, 1e-7):
        model, counts = two_tables()
        counts = {name: own.double() * scale for name, own in counts.items()}
        embcomp.compress_(model, FrequencyBits(counts=counts, mean_bits=1.0, groups=3, bits=2), init="fit")
        codecs = [codec_of(module) for module in model.values()]
        found.append(([codec.bits for codec in codecs], [float(codec.penalty().detach()) for codec in codecs]))
    assert found[0][0] == found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def test_bits_that_a_fit_has_chosen_are_not_searched_again():
    model, counts = two_tables()
    embcomp.compress_(model, FrequencyBits(counts=counts, mean_bits=1.0, groups=3, bits=2), init="fit")
    chosen = {name: codec_of(module).bits for name, module in model.items()}
    vectors = {name: module.materialize().detach().clone() for name, module in model.items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loaded = copy.deepcopy(model)
    loaded.load_state_dict(model.state_dict())
    for each in (model, loaded):
        schedule = Schedule(each, epochs=2, steps=1, optimizer=optimizer)
        assert not schedule
        assert schedule.stage == "train"
        assert schedule.penalty() == 0.0
        assert not schedule.epoch_ended()
        for name, module in each.items():
            assert codec_of(module).bits == chosen[name]
            assert torch.equal(module.materialize().detach(), vectors[name])
    # Without a mean the paper's rule decides, from probabilities that only a search can give.
    model, _ = two_tables()
    embcomp.compress_(model, FrequencyBits(counts=counts, groups=3, bits=2), init="fit")
    assert Schedule(model, epochs=2, steps=1).stage == "search"


def test_groups_without_rows_add_nothing_to_the_penalty():
    counts = torch.tensor([400, 100])
    emb = CompressedEmbedding(2, DIM, FrequencyBits(counts=counts, mean_bits=2.0, groups=16, bits=3, strength=1.0))
    codec = codec_of(emb)
    codec.begin()
    assert float(codec.penalty().detach()) == pytest.approx(1.5 * (100 / 400 + 1.0))  # equal shares of 0 to 3 bits


def target(ids):
    """Targets of which the frequent ids alone differ."""
    return torch.sin((1 + ids.unsqueeze(1)) * torch.arange(1.0, DIM + 1)) * (ids.unsqueeze(1) < 30)


def train(emb, schedule, optimizer, first, last):
    for epoch in range(first, last):
        for step in range(STEPS):
            ids = (torch.rand(32, generator=torch.Generator().manual_seed(1000 * epoch + step)) ** 2 * IDS).long()
            loss = (emb(ids) - target(ids)).square().mean() + schedule.penalty()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        schedule.epoch_ended()


def start(**settings):
    emb = made(strength=0.001, **settings)
    nn.init.normal_(emb.stores[0].weight, std=0.05)  # as recommenders do: large random rows would be worse than none
    optimizer = torch.optim.Adam(emb.parameters(), lr=0.02)
    return emb, optimizer, Schedule(emb, epochs=4, steps=STEPS, optimizer=optimizer)


def test_stages_search_choose_and_train_again_from_the_start():
    emb, optimizer, schedule = start()
    initial = emb.stores[0].weight.detach().clone()
    assert schedule.stage == "search"
    with pytest.raises(ValueError, match="bits of FrequencyBits are still searched"):
        embcomp.export(nn.ModuleDict({"t": emb}), "unused.pt2", (torch.arange(2),))
    train(emb, schedule, optimizer, 0, 2)
    codec = codec_of(emb)
    assert schedule.stage == "train"
    assert torch.equal(emb.stores[0].weight.detach(), initial)
    sizes = sizes_of(IDS, 4)
    assert sum(map(int.__mul__, codec.bits, sizes)) <= 2 * IDS
    assert codec.temperature == pytest.approx(3 * 0.02)  # of the learning rate
    assert codec.bits[2:] == [0, 0]  # whose targets are all the same
    assert min(codec.bits[:2]) >= 2
    chosen = list(codec.bits)
    train(emb, schedule, optimizer, 2, 4)
    assert codec.bits == chosen
    served = codec.code(emb.stores[0].weight)
    assert embcomp.served_nbytes(emb) == served.codes.nbytes + sum(part.nbytes for part in served.constants.values())
    assert embcomp.served_nbytes(emb) <= codec.mixed.served_with(chosen, IDS, DIM)


def test_a_search_that_was_killed_ends_as_one_that_was_not():
    whole, optimizer, schedule = start()
    train(whole, schedule, optimizer, 0, 4)
    for killed in (1, 3):
        emb, optimizer, schedule = start()
        train(emb, schedule, optimizer, 0, killed)
        saved = copy.deepcopy((emb.state_dict(), optimizer.state_dict(), schedule.state_dict()))
        emb, optimizer, schedule = start()
        for part, state in zip((emb, optimizer, schedule), saved, strict=True):
            part.load_state_dict(state)
        train(emb, schedule, optimizer, killed, 4)
        assert all(
            torch.equal(a, b) for a, b in zip(whole.state_dict().values(), emb.state_dict().values(), strict=True)
        )


def test_fitting_gives_bits_to_what_is_read_often_and_wide():
    torch.manual_seed(0)
    table = torch.randn(1000, 16) + 3.0
    table[500:] = 3.0 + 0.01 * torch.randn(500, 16)
    counts = torch.arange(1000, 0, -1).pow(2)

    def lost(method) -> float:
        model = nn.ModuleDict({"t": nn.Embedding.from_pretrained(table.clone())})
        embcomp.compress_(model, method, init="fit")
        return float(((model["t"].materialize().detach() - table).square().sum(1) * counts).sum())

    mixed = FrequencyBits(counts=counts, mean_bits=2, groups=20)
    assert lost(mixed) < 0.3 * lost(embcomp.LowBit(bits=2))


def test_bytes_count_the_stream_its_bits_and_its_starts():
    tables, counts = [Table("t", 1000, 16)], torch.arange(1000)
    method = FrequencyBits(counts=counts, mean_bits=2, groups=10)
    (store,) = method.sizes(tables).stores.values()
    values = sum(100 * bits for bits in store.coding.bits) * 16
    blocks = -(-1000 // 32)
    expected = -(-values // 32) * 4 + 8 + (blocks * 32 * 3 // 32) * 4 + 8 + 4 * blocks + 4 * (7 + 16)
    assert method.plan(tables).served_nbytes() == expected
    training = 4 * 16_000 + 1000 + 10 * 5 + 1 + 4 * (10 * 7 + 7 + 16)
    assert method.plan(tables).training_nbytes() == training
    for share, bits in (("10%", 2.9), ("3%", 0.66)):
        sized = FrequencyBits.for_budget(tables, share, counts=counts)
        assert sized.mean_bits == pytest.approx(bits, abs=0.05)
        assert sized.sizes(tables).nbytes() <= float(share[:-1]) / 100 * 64_000


def test_shared_rows_are_searched_once():
    counts = {"a": torch.arange(40), "b": torch.arange(50)}
    model = nn.ModuleDict({"a": nn.Embedding(40, 8), "b": nn.Embedding(50, 8)})
    method = FrequencyBits(counts=counts, mean_bits=2, groups=4, of=embcomp.UnifiedEmbedding(rows=60, chunk_dim=4))
    embcomp.compress_(model, {"*": method})
    schedule = Schedule(model, epochs=2, steps=1)
    codec = codec_of(model["a"])
    assert codec is codec_of(model["b"])
    assert float(schedule.penalty().detach()) == pytest.approx(float(codec.penalty().detach()))
    schedule.epoch_ended()
    assert not codec.searching


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mean_bits": 7.0}, r"mean_bits=7.0 is above bits=6"),
        ({"mean_bits": -1.0}, "mean_bits"),
        ({"bits": 0}, "bits must be an integer from 1 to 8"),
        ({"bits": 9}, "bits must be an integer from 1 to 8"),
        ({"groups": 0}, "groups"),
        ({"groups": 256}, "groups"),
        ({"temperature": 0.0}, "temperature"),
        ({"strength": -1.0}, "strength"),
        ({"search": 1.0}, "search"),
        ({"of": embcomp.LowBit(bits=4)}, r"table 't': its rows are coded already"),
        ({"counts": torch.ones(3)}, r"table 't': counts must have shape \[60\]"),
    ],
)
def test_impossible_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        FrequencyBits(**{"counts": COUNTS, **settings}).plan([Table("t", IDS, DIM)])


def test_a_schedule_without_an_epoch_to_train_is_refused():
    with pytest.raises(ValueError, match="its bits are searched in 1 of 1 epochs"):
        Schedule(made(), epochs=1, steps=5)
