"""Sequence models against torch's own layers, one event at a time; what each may see; outputs tied to the table."""

import pytest
import torch
from torch import nn

import embcomp
from recsys_models import SEQUENCE_MODELS, BERT4Rec, GRU4Rec, SASRec, build_sequence, softmax_loss
from recsys_models.transformer import Block

ITEMS, DIM, LENGTH = 40, 8, 12
CODES = torch.stack([torch.arange(ITEMS) % 4, torch.arange(ITEMS) % 5], 1)
METHODS = {
    "plain": None,
    "double": embcomp.DoubleHash(rows=9),
    "product": embcomp.QuotientRemainder(rows=7),
    "codes and hot rows": embcomp.SemanticIds(
        CODES, embcomp.PrefixNgram(2), rows=30, id_rows=6, counts=torch.arange(ITEMS)
    ),
    "4 bit": embcomp.LowBit(bits=4, of=embcomp.HashingTrick(rows=12)),
}


def table(method=None, seed=0):
    torch.manual_seed(seed)
    if method is None:
        return nn.Embedding(ITEMS, DIM)
    return embcomp.nn.CompressedEmbedding(ITEMS, DIM, method)


@pytest.fixture(params=SEQUENCE_MODELS)
def model(request):
    return build_sequence(request.param, table(), length=LENGTH, codes=CODES, dropout=0.0)


@pytest.fixture
def histories():
    """Of 9, 1 and 5 events."""
    lengths = torch.tensor([[9], [1], [5]])
    mask = torch.arange(9) < lengths
    return torch.randint(1, ITEMS, (3, 9)) * mask, mask


def test_padding_changes_nothing(model, histories):
    history, mask = histories
    together = model(history, mask)
    for row in range(3):
        own = history[row : row + 1, mask[row]]
        torch.testing.assert_close(model(own, torch.ones_like(own, dtype=torch.bool))[0], together[row])
    other = torch.where(mask, history, 17)
    torch.testing.assert_close(model(other, mask), together)


@pytest.mark.parametrize("name", ["GRU4Rec", "SASRec", "H2Rec"])
def test_a_causal_example_asks_what_its_prefix_asks(name, histories):
    model = build_sequence(name, table(), length=LENGTH, codes=CODES, dropout=0.0).eval()
    history, mask = histories
    queries, targets, penalty = model.examples(history, mask)
    prefixes = [history[row, :n] for row in range(3) for n in range(1, int(mask[row].sum()))]
    follow = [history[row, n] for row in range(3) for n in range(1, int(mask[row].sum()))]
    assert targets.tolist() == follow
    assert penalty is None
    for query, prefix in zip(queries, prefixes, strict=True):
        torch.testing.assert_close(query, model(prefix[None], torch.ones(1, len(prefix), dtype=torch.bool))[0])


@pytest.mark.parametrize("causal", [True, False])
def test_a_block_is_the_encoder_layer_of_torch(causal):
    block = Block(DIM, heads=2, hidden=12)
    layer = nn.TransformerEncoderLayer(DIM, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    copies = {
        "self_attn.in_proj_weight": block.project.weight, "self_attn.in_proj_bias": block.project.bias,
        "self_attn.out_proj.weight": block.join.weight, "self_attn.out_proj.bias": block.join.bias,
        "linear1.weight": block.network[0].weight, "linear1.bias": block.network[0].bias,
        "linear2.weight": block.network[2].weight, "linear2.bias": block.network[2].bias,
        "norm1.weight": block.norm.weight, "norm1.bias": block.norm.bias,
        "norm2.weight": block.norm_hidden.weight, "norm2.bias": block.norm_hidden.bias,
    }  # fmt: skip
    layer.load_state_dict(copies)
    x = torch.randn(2, 5, DIM)
    later = nn.Transformer.generate_square_subsequent_mask(5) if causal else None
    torch.testing.assert_close(block(x, causal=causal), layer(x, src_mask=later, is_causal=causal))


def test_sasrec_is_places_then_blocks(histories):
    model = SASRec(table(), length=LENGTH, blocks=3, dropout=0.0)
    history, mask = histories
    x = model.items.weight[history] * DIM**0.5 + model.positions.weight[:9]
    for block in model.blocks:
        x = block(x, causal=True)
    last = torch.stack([model.norm(x)[row, int(n) - 1] for row, n in enumerate(mask.sum(1))])
    torch.testing.assert_close(model(history, mask), last)


def test_gru4rec_is_one_step_after_the_other(histories):
    model = GRU4Rec(table(), length=LENGTH, hidden=6, dropout=0.0)
    cell = nn.GRUCell(DIM, 6)
    cell.load_state_dict({name[:-3]: value for name, value in model.gru.state_dict().items()})
    history, mask = histories
    for row, query in enumerate(model(history, mask)):
        state = torch.zeros(1, 6)
        for item in history[row, mask[row]]:
            state = cell(model.items.weight[item][None] * DIM**0.5, state)
        torch.testing.assert_close(query, model.out(state)[0])


def test_bert4rec_does_not_see_what_it_is_asked(histories):
    model = BERT4Rec(table(), length=LENGTH, dropout=0.0, mask_share=0.5, last_share=0.0)
    history, mask = histories
    hidden = torch.rand(history.shape) < 0.5
    states = model.states(history, mask, hidden)
    others = torch.where(hidden, (history + 7) % ITEMS, history)
    torch.testing.assert_close(model.states(others, mask, hidden), states)
    seen = torch.where(hidden, history, (history + 7) % ITEMS)
    assert not torch.allclose(model.states(seen, mask, hidden)[0], states[0])


@pytest.mark.parametrize(("mask_share", "last_share", "expected"), [(0.3, 0.0, 0.3), (0.3, 1.0, 1 / 50), (1.0, 0.0, 1)])
def test_bert4rec_masks_its_share_and_one_event_at_least(mask_share, last_share, expected):
    model = BERT4Rec(table(), length=50, dropout=0.0, mask_share=mask_share, last_share=last_share)
    history = torch.randint(ITEMS, (200, 50))
    _, targets, _ = model.examples(history, torch.ones_like(history, dtype=torch.bool))
    assert len(targets) / history.numel() == pytest.approx(expected, abs=0.03)
    one = torch.tensor([[3, 0, 0], [4, 5, 0]])
    assert len(model.examples(one, one > 0).targets) >= 2
    if last_share:
        assert torch.equal(targets, history[:, -1])


def test_bert4rec_asks_a_mask_behind_the_history(histories):
    model = BERT4Rec(table(), length=LENGTH, dropout=0.0)
    history, mask = histories
    for row, query in enumerate(model(history, mask)):
        longer = torch.cat([history[row, mask[row]], torch.tensor([0])])[None]
        hidden = torch.arange(longer.shape[1])[None] == longer.shape[1] - 1
        torch.testing.assert_close(query, model.states(longer, torch.ones_like(hidden), hidden)[0, -1])


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
@pytest.mark.parametrize("name", SEQUENCE_MODELS)
def test_outputs_are_the_table_and_train_it(name, method, histories):
    """Scores and gradients of a tied compressed table are those of its full table, and reach the rows by it."""
    history, mask = histories
    model = build_sequence(name, table(method), length=LENGTH, codes=CODES, dropout=0.0)
    torch.testing.assert_close(model.scorer()(history, mask), model(history, mask) @ model.vectors().T)
    torch.testing.assert_close(model.vectors()[:, :DIM], model.items.weight + 0)
    some = torch.tensor([5, 3, 3])
    torch.testing.assert_close(model.scorer(some)(history, mask), model.scorer()(history, mask)[:, some])

    def loss_of(items):
        model.items = items
        torch.manual_seed(1)
        queries, targets, _ = model.examples(history, mask)
        return softmax_loss(queries, model.vectors(), targets)

    compressed = model.items
    full = nn.Embedding.from_pretrained(compressed.weight.detach().clone(), freeze=False)
    (wanted,) = torch.autograd.grad(loss_of(full), full.weight)
    rows = [parameter for parameter in compressed.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss_of(compressed), rows)
    vectors = compressed.materialize() if method else compressed.weight
    for gradient, expected in zip(found, torch.autograd.grad(vectors, rows, wanted), strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_a_model_is_exported_for_any_number_of_users(histories):
    history, mask = histories
    model = SASRec(table(METHODS["codes and hot rows"]), length=LENGTH, blocks=1).eval()
    users = {0: torch.export.Dim("users")}
    exported = torch.export.export(model, histories, dynamic_shapes={"history": users, "mask": users}).module()
    more = torch.cat([history, history.flip(0)]), torch.cat([mask, mask.flip(0)])
    torch.testing.assert_close(exported(*more), model(*more))


def test_a_model_is_compressed_where_it_stands(histories):
    """`compress_` finds the table of a sequence model, and the output follows it."""
    model = SASRec(table(), length=LENGTH)
    embcomp.compress_(model, {"*": embcomp.HashingTrick(rows=7)})
    assert len(model.eval().scorer()(*histories)[0].unique()) <= 7


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("SASRec", {"heads": 3}, "3 heads do not divide a width of 8"),
        ("SASRec", {"length": 0}, "length is 0"),
        ("BERT4Rec", {"mask_share": 0.0}, "mask_share=0.0"),
        ("GRU4Rec", {"blocks": 1}, "GRU4Rec takes no option 'blocks'"),
        ("H2Rec", {}, "H2Rec reads semantic codes of the items: give codes"),
        ("SAS", {}, "model 'SAS' is unknown"),
    ],
)
def test_what_models_reject(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_sequence(name, table(), **{"length": LENGTH, **options})


def test_open_id_spaces_and_long_histories_are_rejected(model):
    items = embcomp.nn.CompressedEmbedding(None, DIM, embcomp.HashingTrick(rows=7))
    with pytest.raises(ValueError, match="open id space"):
        SASRec(items)
    long = torch.ones(1, LENGTH + 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"a history of {LENGTH + 1} events is longer than length={LENGTH}"):
        model(long, long.bool())
