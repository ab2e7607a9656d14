"""H2Rec against its formulas, level by level; what its penalty aligns; items without content."""

import pytest
import torch
from torch import nn

import embcomp
from recsys_models import H2Rec, multi_positive_loss
from recsys_models.code_levels import CodeLevels
from recsys_models.h2rec import CrossAttention, masked_levels
from recsys_models.sequence import last_of

ITEMS, DIM, LEVELS, SIZE = 30, 8, 3, 5


@pytest.fixture
def codes():
    codes = torch.randint(SIZE, (ITEMS, LEVELS))
    codes[7] = -1
    return codes


@pytest.fixture
def model(codes):
    return H2Rec(nn.Embedding(ITEMS, DIM), codes=codes, codebook_size=SIZE, length=12, heads=2, dropout=0.0)


@pytest.fixture
def histories():
    lengths = torch.tensor([[6], [1], [4]])
    mask = torch.arange(6) < lengths
    return torch.randint(1, ITEMS, (3, 6)) * mask, mask


def test_levels_are_rows_of_codes_and_zeros_without(codes):
    levels = CodeLevels(codes, DIM)
    ids = torch.tensor([[3, 7], [7, 9]])
    found = levels(ids)
    for place, id in ((place, int(ids[place])) for place in ((0, 0), (0, 1), (1, 0), (1, 1))):
        for level in range(LEVELS):
            code = int(codes[id, level])
            expected = torch.zeros(DIM) if code < 0 else levels.rows[level, code]
            assert torch.equal(found[place][level], expected)
    assert embcomp.nbytes(levels) == ITEMS * LEVELS + 4 * LEVELS * levels.size * DIM


def test_groups_share_all_codes_but_the_last():
    codes = torch.tensor([[0, 1, 2], [0, 1, 3], [0, 2, 2], [-1, -1, -1], [-1, -1, -1], [0, 1, 2]])
    groups = CodeLevels(codes, 4).groups().tolist()
    assert [groups[0] == other for other in groups] == [True, True, False, False, False, True]
    assert groups[3] != groups[4]
    assert len(set(CodeLevels(codes[:, :1], 4).groups().tolist())) == 6


def test_cross_attention_is_that_of_torch():
    look = CrossAttention(DIM, 2, 0.0)
    other = nn.MultiheadAttention(DIM, 2, batch_first=True)
    other.load_state_dict({
        "in_proj_weight": torch.cat([look.query.weight, look.key_value.weight]),
        "in_proj_bias": torch.cat([look.query.bias, look.key_value.bias]),
        "out_proj.weight": look.join.weight, "out_proj.bias": look.join.bias,
    })  # fmt: skip
    x, seen = torch.randn(2, 2, 5, DIM)
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    attended, _ = other(look.norm(x), look.norm_seen(seen), look.norm_seen(seen), attn_mask=later)
    torch.testing.assert_close(look(x, seen), x + attended)


def test_states_are_two_passes_of_one_transformer(model, histories):
    history, mask = histories
    own, codes = model.items(history), model.codes(history)
    prior = torch.tensor([1.0, 0.6, 0.2])
    fused = torch.zeros_like(own)
    for b in range(3):
        for t in range(6):
            inside = model.gate[1](model.gate[0](torch.cat([own[b, t], prior])))
            weights = (model.gate[2](inside) + prior).softmax(0)
            for v in range(LEVELS):
                fused[b, t] += weights[v] * model.to_own[v](codes[b : b + 1, : t + 1, v], own[b : b + 1, : t + 1])[0, t]

    def backbone(x):
        x = x * DIM**0.5 + model.positions.weight[:6]
        for block in model.blocks:
            x = block(x, causal=True)
        return model.norm(x)

    expected = torch.cat([backbone(model.to_codes(own, codes.mean(2))), backbone(fused)], 2)
    torch.testing.assert_close(model.states(history), expected)
    torch.testing.assert_close(model(history, mask), last_of(expected, mask))
    items = torch.cat([model.items.weight, model.codes(torch.arange(ITEMS)).mean(1)], 1)
    torch.testing.assert_close(model.vectors(), items)


def test_the_penalty_aligns_items_and_views(model, histories):
    history, mask = histories
    seen, before = history[:, :-1], mask[:, :-1]
    met = torch.tensor(sorted(set(seen[before].tolist())))
    items = multi_positive_loss(model.items(met), model.codes(met).mean(1), model.groups[met], 0.5)
    torch.testing.assert_close(model.alignment(seen[before]), items)
    branches = model.branches(seen)
    masked = branches._replace(weights=masked_levels(branches.weights))
    views = [
        last_of(model._backbone((each.weights.unsqueeze(3) * each.levels).sum(2))[0], before)
        for each in (branches, masked)
    ]
    between = multi_positive_loss(*views, torch.arange(3), 0.5)
    queries, targets, penalty = model.examples(history, mask)
    torch.testing.assert_close(penalty, 0.1 * items + 0.1 * between)
    for mine, plain in zip((queries, targets), model.eval().examples(history, mask), strict=False):
        torch.testing.assert_close(mine, plain)
    assert model.examples(history, mask).penalty is None
    model.train().view = 0.0
    torch.testing.assert_close(model.examples(history, mask).penalty, 0.1 * items)
    assert model.examples(history, torch.zeros_like(mask)).penalty == 0


def test_half_of_the_levels_are_masked_and_these_are_the_lightest():
    weights = torch.rand(4, 6, 5).softmax(2)
    masked = masked_levels(weights)
    torch.testing.assert_close(masked.sum(2), torch.ones(4, 6))
    for before, after in zip(weights.flatten(0, 1), masked.flatten(0, 1), strict=True):
        kept = after > 0
        assert kept.sum() == 3
        assert before[kept].min() >= before[~kept].max()
        torch.testing.assert_close(after[kept] / after[kept].sum(), before[kept] / before[kept].sum())


def test_all_of_it_trains(model, histories):
    history, mask = histories
    queries, targets, penalty = model.examples(history, mask)
    loss = nn.functional.cross_entropy(queries @ model.vectors().T, targets) + penalty
    loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda codes: codes[:-1], "codes of 29 items, but 30 items"),
        (lambda codes: codes.float(), r"integers \[num_items, levels\], got torch.float32"),
        (lambda codes: codes + 1, "but a level has 5 codes"),
        (lambda codes: codes - 2, "codes lie within -3"),
    ],
)
def test_codes_that_do_not_fit_are_said(codes, change, message):
    codes[:2] = torch.tensor([[0], [SIZE - 1]])
    with pytest.raises(ValueError, match=message):
        H2Rec(nn.Embedding(ITEMS, DIM), codes=change(codes), codebook_size=SIZE)
