"""What else holds a table (optimizers, averages, penalties, tied layers): each gets the new one or is refused."""

import copy
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import AveragedModel
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

import embcomp
from embcomp import DoubleHash, Full, HashingTrick, LowBit, QuotientRemainder, UnifiedEmbedding, compress_
from embcomp.nn import CompressedEmbedding, CompressedEmbeddingBag, TiedLinear
from embcomp.nn.table import CompressedTable
from tests.recommender import BATCH, Recommender, nothing_changes


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


KEEP: dict[str, Callable[[Recommender, torch.optim.Optimizer], object]] = {
    "attribute": lambda m, o: setattr(m, "optimizer", o),
    "scheduler": lambda m, o: setattr(m, "scheduler", StepLR(o, 1)),
    "list of a submodule": lambda m, o: setattr(m.towers[0], "optimizers", [{"adam": o}]),
    "trainer": lambda m, o: setattr(m, "trainer", SimpleNamespace(model=m, optimizers=[o])),
    "closure": lambda m, o: setattr(m, "update", lambda: o.step()),
}


@pytest.mark.parametrize("place", KEEP)
def test_an_optimizer_made_before_trains_what_it_would_if_made_after(place: str) -> None:
    def build() -> Recommender:
        torch.manual_seed(0)
        return Recommender()

    models = build(), build()
    optimizer = adam(models[0])
    KEEP[place](models[0], optimizer)
    for model in models:
        torch.manual_seed(1)
        compress_(model, {"t*": HashingTrick(rows=5), "*": UnifiedEmbedding(rows=20, chunk_dim=4)})
    for model, used in zip(models, (optimizer, adam(models[1])), strict=True):
        for _ in range(3):
            used.zero_grad()
            model(*BATCH).square().sum().backward()
            used.step()
    assert [p.shape for p in optimizer.param_groups[0]["params"]] == [p.shape for p in models[0].parameters()]
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_groups_keep_their_settings() -> None:
    model = Recommender()
    model.optimizer = torch.optim.SGD(
        [{"params": [model.user.weight], "lr": 1.0}, {"params": [model.item.weight, model.out.weight], "lr": 2.0}]
    )
    with nothing_changes(model), pytest.raises(ValueError, match=r"'optimizer' .SGD. trains tables that would share"):
        compress_(model, {"*": UnifiedEmbedding(rows=9, chunk_dim=8)})
    compress_(model, {"*": QuotientRemainder()})
    rates = {group["lr"]: set(map(id, group["params"])) for group in model.optimizer.param_groups}
    assert rates == {
        1.0: set(map(id, model.user.parameters())),
        2.0: {*map(id, model.item.parameters()), id(model.out.weight)},
    }


def stepped(model: Recommender) -> torch.optim.Optimizer:
    optimizer = adam(model)
    model(*BATCH).sum().backward()
    optimizer.step()
    return optimizer


class Shadow:
    """As torch_ema keeps it: copies, and weak references to what they are copies of."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow = [parameter.detach().clone() for parameter in model.parameters()]
        self._refs = [weakref.ref(parameter) for parameter in model.parameters()]


TROUBLES: dict[str, tuple[Callable[[Recommender], object], str]] = {
    "stepped": (
        lambda m: setattr(m, "optimizer", stepped(m)), r"'user': 'optimizer' \(Adam\) has trained it.*after compress_"
    ),
    "LBFGS": (lambda m: setattr(m, "optimizer", torch.optim.LBFGS(m.parameters())), r"\(LBFGS\) keeps more"),
    "named": (lambda m: setattr(m, "o", torch.optim.SGD(m.named_parameters())), r"'o' \(SGD\) keeps more"),
    "stepped, under a scheduler": (
        lambda m: setattr(m, "scheduler", StepLR(stepped(m), 1)), r"'scheduler' \(Adam\) has trained it"
    ),
    "average in the model": (lambda m: setattr(m, "ema", AveragedModel(nn.ModuleList([m.user]))), "'ema' .AveragedM"),
    "average beside the model": (
        lambda m: setattr(m, "averages", [AveragedModel(nn.ModuleList([m.user]))]), "'averages' .AveragedModel. averag"
    ),
    "average of a library": (lambda m: setattr(m, "shadow", Shadow(m)), "'user': 'shadow' keeps track of its weight"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")
@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_cannot_be_handed_over_is_refused_by_name(trouble: str) -> None:
    disturb, message = TROUBLES[trouble]
    model = Recommender()
    disturb(model)
    for init in ("fresh", "warm"):
        with nothing_changes(model), pytest.raises(ValueError, match=message):
            compress_(model, {"user": HashingTrick(rows=5)}, init=init)


def test_optimizers_of_other_weights_and_of_collections() -> None:
    model = Recommender()
    model.heads = torch.optim.SGD(model.out.parameters(), lr=0.1)
    before = list(model.heads.param_groups[0]["params"])
    compress_(model, {"*": HashingTrick(rows=5)})
    assert all(ours is theirs for ours, theirs in zip(model.heads.param_groups[0]["params"], before, strict=True))
    tables = [EmbeddingBagConfig(name=n, num_embeddings=30, embedding_dim=8, feature_names=[n]) for n in "ab"]
    recommender = nn.ModuleDict({"c": EmbeddingBagCollection(tables=tables), "out": nn.Linear(8, 1)})
    recommender.optimizer = adam(recommender)
    compress_(recommender, {"a": DoubleHash(rows=5)})
    assert {id(p) for p in recommender.optimizer.param_groups[0]["params"]} == set(map(id, recommender.parameters()))


# --- Penalties ---


class Penalised(nn.Module):
    """Keeps its penalties as DeepCTR-Torch does: (weights or (name, weight) pairs, l1, l2)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.ModuleDict({"user": nn.Embedding(50, 8), "item": nn.Embedding(40, 8)})
        self.net = nn.Linear(8, 1)
        self.penalties = [
            (list(self.table.parameters()), 0.0, 1e-2),
            ([self.net.weight], 0.0, 1e-3),
            (list(self.net.named_parameters()), 1e-4, 0.0),
            (list(self.table["user"].named_parameters()), 1e-5, 0),
            ([], 0.0, 1e-2),  # of a model without such features
        ]

    def loss(self) -> Tensor:
        total = torch.zeros(())
        for weights, l1, l2 in self.penalties:
            for weight in weights:
                parameter = weight[1] if isinstance(weight, tuple) else weight
                total = total + l1 * parameter.abs().sum() + l2 * parameter.square().sum()
        return total


def test_lists_of_penalties_penalise_the_rows() -> None:
    model = Penalised()
    items = model.penalties
    compress_(model, {"*": QuotientRemainder()})
    assert model.penalties is items
    rows, user = list(model.table.parameters()), list(model.table["user"].parameters())
    expected = 1e-2 * sum(row.square().sum() for row in rows) + 1e-5 * sum(row.abs().sum() for row in user)
    expected += 1e-3 * model.net.weight.square().sum() + 1e-4 * sum(p.abs().sum() for p in model.net.parameters())
    torch.testing.assert_close(model.loss(), expected)
    model.loss().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())
    names = [name for name, _ in model.penalties[3][0]]
    assert names == ["weight.0", "weight.1"]
    shared = Penalised()
    compress_(shared, {"*": UnifiedEmbedding(rows=9, chunk_dim=4)})
    assert [len(weights) for weights, *_ in shared.penalties] == [1, 1, 2, 1, 0]  # a shared store once
    coded = Penalised()
    compress_(coded, {"*": LowBit(bits=4)}, init="warm")
    stores = [coded.table[name].stores[0] for name in ("user", "item")]
    assert [id(row) for row in coded.penalties[0][0]] == [id(store.weight) for store in stores]
    assert all(any(True for _ in store.codec.parameters()) for store in stores)  # their steps are not penalised
    for weights in ([shared.net.weight, 3], [{"w": shared.net.weight}]):
        other = Penalised()
        other.penalties = [(other.table["user"].weight, 0.1), (weights, 0.1)]
        with nothing_changes(other), pytest.raises(ValueError, match=r"'table.user': 'penalties' keeps it"):
            compress_(other, {"*": HashingTrick(rows=5)})


# --- Tied layers ---


class NextItem(nn.Module):
    """Predicts the next item by a layer that holds the table's weight, as transformers do."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.item = nn.Embedding(60, 8, padding_idx=0)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 60, bias=bias)
        self.out.weight = self.item.weight
        self.out.marked = True

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.norm(self.item(ids)))


@pytest.mark.parametrize("bias", [True, False])
def test_a_tied_output_reads_and_trains_the_compressed_table(bias: bool) -> None:
    model, ids = NextItem(bias).eval(), torch.tensor([[1, 2, 0]])
    expected, old = model(ids), model.out
    report = compress_(model, {"*": QuotientRemainder(rows=60)}, init="warm")  # a row for each id: nothing changes
    torch.testing.assert_close(model(ids), expected)
    assert isinstance(model.out, TiedLinear)
    assert model.out.table is model.item
    assert model.out.bias is old.bias
    assert model.out.marked
    assert not model.out.training
    assert len(report.tables) == 1
    assert embcomp.nbytes(model) == report.bytes_after + (8 + 8 + 60 * bias) * 4
    assert torch.equal(model.out.weight, model.item.weight)
    rows = list(model.item.parameters())
    target = torch.tensor([5, 6, 7])
    loss = nn.functional.cross_entropy(model(ids)[0], target)
    grads = torch.autograd.grad(loss, rows)
    vectors = model.item.materialize()
    logits = model.norm(vectors[ids[0]]) @ vectors.T + (model.out.bias if bias else 0)
    for got, want in zip(grads, torch.autograd.grad(nn.functional.cross_entropy(logits, target), rows), strict=True):
        torch.testing.assert_close(got, want)
    again = copy.deepcopy(model)
    assert again.out.table is again.item
    other = NextItem(bias).eval()
    compress_(other, {"*": QuotientRemainder(rows=60)})
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(ids), model(ids))
    program = torch.export.export(model, (ids,))
    torch.testing.assert_close(program.module()(ids), model(ids))
    with pytest.raises(KeyError, match="table 'item' is compressed"):
        model.out.weight = nn.Parameter(torch.zeros(60, 8))


def test_two_modules_with_one_weight_become_one() -> None:
    model = nn.ModuleDict({"a": nn.Embedding(30, 8), "b": nn.Embedding(30, 8), "c": nn.Embedding(30, 8)})
    model["b"].weight = model["a"].weight
    report = compress_(model, {"b": HashingTrick(rows=5)})
    assert model["a"] is model["b"]
    assert isinstance(model["a"], CompressedEmbedding)
    assert [table.name for table in report.tables] == ["a"]
    assert type(model["c"]) is nn.Embedding


TIED: dict[str, tuple[Callable[[NextItem], object], str]] = {
    "another padding": (
        lambda m: m.register_module("twin", nn.Embedding(60, 8, _weight=m.item.weight)), "shares its weight with 'item'"
    ),
    "hooks": (lambda m: m.out.register_forward_hook(lambda *a: None), "its weight is also 'out.weight'"),
    "a buffer of its own": (
        lambda m: m.out.register_buffer("temperature", torch.ones(1)), "its weight is also 'out.weight'"
    ),
    "the layer in a list": (lambda m: setattr(m, "layers", [m.out]), "'item': 'layers' keeps it"),
    "another class": (lambda m: setattr(m.out, "__class__", type("Head", (nn.Linear,), {})), "also 'out.weight'"),
    "a twin with hooks": (
        lambda m: m.register_module("twin", nn.Embedding(60, 8, padding_idx=0)) or tie(m), "it has hooks"
    ),
}  # fmt: skip


def tie(model: NextItem) -> None:
    model.twin.weight = model.item.weight
    model.twin.register_forward_hook(lambda *a: None)


@pytest.mark.parametrize("trouble", TIED)
def test_other_ties_are_refused(trouble: str) -> None:
    disturb, message = TIED[trouble]
    model = NextItem(bias=False)
    disturb(model)
    with nothing_changes(model), pytest.raises(ValueError, match=message):
        compress_(model, {"*": HashingTrick(rows=5)})
    assert compress_(model, {"*": Full()}).tables == []


class Scaled(nn.Embedding):
    """As Spotlight draws its tables."""

    def reset_parameters(self) -> None:
        self.weight.data.normal_(0, 1.0 / self.embedding_dim)


class Zero(Scaled):
    def reset_parameters(self) -> None:
        self.weight.data.zero_()


class Drawn(nn.Embedding):
    """Draws in its constructor."""

    def __init__(self, ids: int) -> None:
        super().__init__(ids, 8)
        self.scale = 0.01
        nn.init.normal_(self.weight, std=self.scale)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale}"


def test_subclasses_that_only_draw_rows_are_swapped() -> None:
    model = nn.ModuleDict({"scaled": Scaled(2_000, 8), "zero": Zero(50, 1)})
    compress_(model, {"*": DoubleHash(rows=300)})
    assert float(model["scaled"].weight.detach().std()) == pytest.approx(1 / 8, rel=0.1)
    assert not model["zero"].weight.any()
    drawn = nn.ModuleDict({"item": Drawn(2_000)})
    report = compress_(drawn, {"*": DoubleHash(rows=300)})
    assert report.tables[0].method == "DoubleHash"
    assert float(drawn["item"].weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert drawn["item"].scale == 0.01


# --- Code that asks for torch's classes ---


def multitask(model: nn.Module) -> tuple[list[str], list[str]]:
    """The weights of tables and of other layers, as the regulariser of FuxiCTR's multi-task models tells them apart."""
    tables, layers = [], []
    for path, module in model.named_modules():
        for name, _ in module.named_parameters():
            if name in ("weight", "bias"):
                (tables if type(module) == nn.Embedding else layers).append(f"{path}.{name}")  # noqa: E721
    return tables, layers


def test_regularisers_find_the_rows_by_either_question() -> None:
    model = nn.ModuleDict({"a": nn.Embedding(30, 8), "b": nn.Embedding(40, 8), "out": nn.Linear(8, 1)})
    compress_(model, {"a": QuotientRemainder(), "b": DoubleHash(rows=5)})
    rows = ["a.stores.0.weight", "a.stores.1.weight", "b.stores.0.weight"]
    assert multitask(model) == (rows, ["out.weight", "out.bias"])
    assert [f"{path}.weight" for path, part in model.named_modules() if isinstance(part, nn.Embedding)] == rows
    store = type(model["b"].stores[0])
    assert store in (nn.Embedding, nn.EmbeddingBag)
    assert nn.Embedding == store and store in {nn.Embedding}  # noqa: PT018
    assert store != nn.EmbeddingBag and nn.Linear != store  # noqa: PT018
    assert store is not nn.Embedding


def test_attributes_of_the_class_replaced() -> None:
    model = Recommender()
    compress_(model, {"*": DoubleHash(rows=5)})
    for module in (model.user, model.tags):
        assert (module.max_norm, module.norm_type, module.scale_grad_by_freq) == (None, 2.0, False)
        module.max_norm, module.scale_grad_by_freq = None, False
        for name, value in (("max_norm", 1.0), ("scale_grad_by_freq", True)):
            with pytest.raises(AttributeError, match=f"cannot have {name}={value}"):
                setattr(module, name, value)


def test_attributes_that_are_set_afterwards_count() -> None:
    model = Recommender()
    compress_(model, {"user": DoubleHash(rows=5), "tags": DoubleHash(rows=5)})
    model.user.padding_idx = -1
    assert model.user.padding_idx == 49
    assert not model.user(torch.tensor([49])).any()
    model.user.sparse = True
    model.user(torch.tensor([3])).sum().backward()
    assert model.user.stores[0].weight.grad.is_sparse
    torch.nn.init.ones_(model.item.weight)  # at padding_idx, too
    compress_(model, {"item": DoubleHash(rows=5)})
    assert torch.equal(model.item(torch.tensor(0)), torch.ones(8))
    model.item.padding_idx = 3
    assert not model.item(torch.tensor(3)).any()
    model.tags.mode = "max"
    bag = torch.tensor([[1, 2, 3]])
    assert torch.equal(model.tags(bag), model.tags.materialize(bag).amax(1))
    for name, value, message in (
        ("padding_idx", 50, "padding_idx 50 must lie within"),
        ("mode", "median", "mode must"),
    ):
        with pytest.raises(ValueError, match=message):
            setattr(model.tags if name == "mode" else model.user, name, value)


@pytest.mark.parametrize("kind", [CompressedEmbedding, CompressedEmbeddingBag])
def test_from_pretrained_says_what_to_write(kind: type[CompressedTable]) -> None:
    plain = "nn.EmbeddingBag" if "Bag" in kind.__name__ else "nn.Embedding"
    with pytest.raises(TypeError, match=rf"torch\.{plain}\.from_pretrained.*init='warm'"):
        kind.from_pretrained(torch.randn(4, 2), freeze=False, padding_idx=0)


class Propagated(nn.Module):
    """Keeps what its tables give between evaluations, as graph models do."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.other = nn.Embedding(30, 8), nn.Linear(2, 2)
        self.restore_item_e: Tensor | None = None
        self.kept: Tensor | None = None

    def reset_cache(self) -> None:
        self.kept = None

    def forward(self, ids: Tensor) -> Tensor:
        if self.kept is None or self.restore_item_e is None:
            self.kept = self.restore_item_e = torch.tanh(self.item.weight.detach())
        return self.kept[ids] + self.restore_item_e[ids]


def test_kept_outputs_are_dropped() -> None:
    model = nn.ModuleDict({"swapped": Propagated(), "apart": Propagated()})
    ids = torch.arange(5)
    for part in model.values():
        part(ids)
    compress_(model, {"swapped.item": HashingTrick(rows=5)})
    assert torch.equal(model["swapped"](ids), 2 * torch.tanh(model["swapped"].item(ids)))
    assert model["apart"].kept is not None
    assert model["apart"].restore_item_e is not None
