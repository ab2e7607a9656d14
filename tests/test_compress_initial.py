"""A swap keeps how the model drew its tables: their mean and deviation, padding vectors, frozen weights."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig

import embcomp
from embcomp import DoubleHash, Full, HashingTrick, MultiHash, QuotientRemainder, UnifiedEmbedding, compress_
from embcomp.initial_rows import draw_rows, moments_of, pooled
from embcomp.methods.base import Table
from embcomp.testing.example import Example
from embcomp.testing.examples import EXAMPLES
from embcomp.torchrec.holders import stores_of

N, D = 300, 16


def model_of(mean: float, std: float, **settings) -> nn.ModuleDict:
    model = nn.ModuleDict({"t": nn.Embedding(N, D, **settings)})
    nn.init.normal_(model["t"].weight, mean, std)
    return model


def spread(vectors: Tensor) -> tuple[float, float]:
    return vectors.detach().double().mean().item(), vectors.detach().double().std().item()


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.name != "Full"], ids=str)
def test_fresh_vectors_have_the_moments_of_those_replaced(example: Example) -> None:
    """Means of some hundred numbers are within some errors of those asked for; so again after a reset."""
    for mean, std in ((0.0, 1e-4), (0.5, 0.1), (0.0, 0.0)):
        torch.manual_seed(0)
        model = model_of(mean, std)
        compress_(model, {"t": example.make([Table("t", N, D)])})
        # Four values around zero hold numbers around .5 to half a step; and a grid has no zero.
        rounding = 1e-30 + (0.5 * math.hypot(mean, std) if mean and example.name == "LowBit-unified" else 0)
        for _ in range(2):
            vectors = model["t"].weight
            # Zeros are not stored.
            if mean and example.name.startswith(("Nested", "Pruned", "LearnedMask", "LearnedWidths-rows")):
                vectors = vectors[vectors != 0]
            got = spread(vectors)
            assert got[1] == pytest.approx(std, abs=0.45 * std + rounding)
            assert got[0] == pytest.approx(mean, abs=0.25 * mean + 0.6 * std + rounding)
            model["t"].reset_parameters()


@pytest.mark.parametrize("mean", [0.0, -0.3])
@pytest.mark.parametrize(
    "method",
    [
        HashingTrick(rows=2_000),
        DoubleHash(rows=2_000),
        MultiHash(rows=2_000, num_hashes=4),
        QuotientRemainder(),
        QuotientRemainder(combine="sum"),
        embcomp.HashEmbedding(rows=2_000),
        UnifiedEmbedding(rows=4_000, chunk_dim=8),
    ],
    ids=lambda method: type(method).__name__,
)
def test_sums_and_products_are_scaled(method: embcomp.Method, mean: float) -> None:
    """With many rows the moments are sharp: a sum of unscaled rows would be off by its root, or by its number."""
    model = nn.ModuleDict({"t": nn.Embedding(20_000, 16)})
    nn.init.normal_(model["t"].weight, mean, 0.02)
    compress_(model, {"t": method})
    for module in (model["t"], copy.deepcopy(model["t"])):
        got = spread(module.weight)
        assert got[1] == pytest.approx(0.02, rel=0.1)
        assert got[0] == pytest.approx(mean, abs=0.01)
        module.reset_parameters()


def test_moments_are_those_of_numpy_over_all_but_the_padding_row() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        weight = torch.randn(1_000, 3).add_(2).to(dtype)
        weight[-1] = 1e4
        found, rows = moments_of(weight, padding_idx=999), weight[:-1].double().numpy()
        assert (found.mean, found.std) == pytest.approx((rows.mean(), rows.std()), rel=1e-5)
    both = torch.cat([torch.randn(70_000, 2), 5 + 3 * torch.randn(30_000, 2)])
    found = pooled([moments_of(both[:70_000]), moments_of(both[70_000:])])
    assert (found.mean, found.std) == pytest.approx(spread(both), rel=0.01)
    assert moments_of(torch.randn(400, 4)).mean == 0.0  # the noise of a draw is no mean


def test_a_shared_store_is_drawn_like_all_its_tables_together() -> None:
    model = nn.ModuleDict({"a": nn.Embedding(3_000, 8), "b": nn.EmbeddingBag(1_000, 8)})
    nn.init.normal_(model["a"].weight, std=0.01)
    nn.init.normal_(model["b"].weight, std=0.1)
    compress_(model, {"*": UnifiedEmbedding(rows=2_000, chunk_dim=4)})
    assert spread(model["a"].weight)[1] == pytest.approx(math.sqrt(0.75 * 0.01**2 + 0.25 * 0.1**2), rel=0.1)


def test_an_empty_table_is_drawn_as_its_class_does_and_nan_is_refused() -> None:
    model = nn.ModuleDict({"t": nn.Embedding(N, D, device="meta")})
    compress_(model, {"t": DoubleHash(rows=500)})
    model.to_empty(device="cpu")
    model["t"].reset_parameters()
    assert spread(model["t"].weight)[1] == pytest.approx(1, rel=0.1)
    model = model_of(0, 1)
    with torch.no_grad():
        model["t"].weight[3, 2] = torch.nan
    for init in ("fresh", "warm"):
        with pytest.raises(ValueError, match="cannot compress 't': its weight holds NaN"):
            compress_(model, {"t": DoubleHash(rows=5)}, init=init)


def test_rules_without_known_moments() -> None:
    """What a torchrec table's own `init_fn` draws, added up or multiplied, keeps its moments too."""
    for init, summands in (("table", 1), ("table", 4), ("factor", 1), ("unit", 1)):
        weight = torch.empty(20_000, 4)
        draw_rows(weight, init, summands, lambda w: nn.init.uniform_(w, 0.0, 2.0))
        mean, std = spread(weight)
        power, part = 1 + 1 / 3, (1 + 1 / 3) ** -0.5  # of the rule: mean 1, variance 1/3
        if init == "table":
            assert (mean * summands, std * summands**0.5) == pytest.approx((1, (1 / 3) ** 0.5), rel=0.02)
        else:
            scale = 1.0 if init == "unit" else power**0.5
            assert (mean, std) == pytest.approx((scale * part**0.5, scale * (1 - part) ** 0.5), rel=0.02)


@pytest.mark.parametrize("bags", [True, False])
@pytest.mark.parametrize("method", [DoubleHash(rows=500), QuotientRemainder()], ids=lambda m: type(m).__name__)
def test_weights_set_by_hand_in_torchrec(bags: bool, method: embcomp.Method) -> None:
    kind = EmbeddingBagConfig if bags else EmbeddingConfig
    tables = [kind(name=n, num_embeddings=2_000, embedding_dim=8, feature_names=[n]) for n in ("a", "b", "kept")]
    old = EmbeddingBagCollection(tables=tables) if bags else EmbeddingCollection(tables=tables)
    model = nn.ModuleDict({"c": old})
    held = old.embedding_bags if bags else old.embeddings
    with torch.no_grad():
        held["a"].weight.normal_(0, 1e-4)
        held["b"].weight.normal_(0.25, 0.02)
    kept = held["kept"].weight.detach().clone()
    compress_(model, {"[ab]": method})
    new = model["c"]
    assert [config.name for config in (new.embedding_bag_configs() if bags else new.embedding_configs())] == [
        "a", "b", "kept"
    ]  # fmt: skip
    for _ in range(2):
        stores = {name: store.detach() for name, store in stores_of(new).items()}
        for name, mean, std in (("a", 0.0, 1e-4), ("b", 0.25, 0.02)):
            if isinstance(method, DoubleHash):
                assert spread(stores[name])[1] == pytest.approx(std / 2**0.5, rel=0.1)
                assert spread(stores[name])[0] == pytest.approx(mean / 2, abs=0.1 * std)
            else:
                ids = torch.arange(2_000)
                rows = new.assemble.outputs[name == "b"].plan.encoder(ids)
                got = spread(stores[f"{name}_quotient"][rows[0].rows[:, 0]] * stores[name][rows[1].rows[:, 0]])
                assert got == pytest.approx((mean, std), rel=0.25, abs=2e-5)
        if _ == 0:
            assert torch.equal(stores["kept"], kept)
            for branch in new.branches.values():
                branch.collection.reset_parameters()


def test_a_frozen_table_is_not_drawn_anew() -> None:
    vectors = torch.randn(N, D)
    tables = [EmbeddingBagConfig(name="t", num_embeddings=N, embedding_dim=D, feature_names=["t"])]
    collection = nn.ModuleDict({"c": EmbeddingBagCollection(tables=tables).requires_grad_(False)})
    for model in (
        nn.ModuleDict({"t": nn.Embedding.from_pretrained(vectors)}),
        nn.ModuleDict({"t": nn.EmbeddingBag.from_pretrained(vectors)}),
        collection,
    ):
        with pytest.raises(ValueError, match=r"cannot compress 't': its weight is frozen.*init='warm'.*Full"):
            compress_(model, {"*": HashingTrick(rows=9)})
        assert compress_(model, {"*": Full()}).tables == []
        compress_(model, {"*": HashingTrick(rows=9)}, init="warm")
        assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("init", ["fresh", "warm"])
@pytest.mark.parametrize("bag", [False, True])
def test_a_padding_vector_that_is_not_zero_is_kept(init: str, bag: bool) -> None:
    def build() -> nn.ModuleDict:
        torch.manual_seed(0)
        table = nn.EmbeddingBag(N, D, padding_idx=-1, mode="sum") if bag else nn.Embedding(N, D, padding_idx=-1)
        nn.init.xavier_normal_(table.weight)
        return nn.ModuleDict({"t": table})

    old, new = build(), build()
    report = compress_(new, {"t": DoubleHash(rows=50)}, init=init)
    assert report.bytes_after == embcomp.nbytes(new) == 50 * D * 4 + 2 * 8 + D * 4
    ids = torch.tensor([[3, N - 1], [N - 1, N - 1]])
    vectors = new["t"].materialize(ids)
    assert torch.equal(vectors[ids == N - 1], old["t"].weight.detach()[-1].expand(3, D))
    assert torch.equal(new["t"].weight[-1], old["t"].weight[-1])
    out = new["t"](ids)
    torch.testing.assert_close(out, torch.stack([vectors[0, 0], torch.zeros(D)]) if bag else vectors)
    (grad,) = torch.autograd.grad(out[1].sum(), new["t"].stores[0].weight, allow_unused=True)
    assert grad is None or not grad.any()
    assert "padding_vector" not in dict(new["t"].named_parameters())

    again = build()
    with torch.no_grad():
        again["t"].weight[-1] = 0
    compress_(again, {"t": DoubleHash(rows=50)}, init=init)
    assert list(again.state_dict()) == [key for key in new.state_dict() if key != "t.padding_vector"]
    state = again.state_dict()
    again.load_state_dict(new.state_dict())
    assert torch.equal(again["t"].weight, new["t"].weight)
    assert torch.equal(copy.deepcopy(new).double()["t"].weight[-1], old["t"].weight[-1].double())
    new.load_state_dict(state)  # as files of before, without that vector
    assert not new["t"].weight[-1].any()
    again["t"].reset_parameters()  # zero, as torch's own
    assert not again["t"].weight[-1].any()
