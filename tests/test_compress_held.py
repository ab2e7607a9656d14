"""What else holds a table (optimizers, averages, penalties): each gets the new one or is refused."""

import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import AveragedModel
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

from embcomp import DoubleHash, HashingTrick, LowBit, QuotientRemainder, UnifiedEmbedding, compress_
from embcomp.nn import CompressedEmbedding, CompressedEmbeddingBag
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
