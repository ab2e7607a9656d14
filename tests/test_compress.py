"""`compress_` on models of plain torch; tests/torchrec and tests/test_third_party.py hold the rest."""

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import embcomp
from embcomp import DoubleHash, Full, HashingTrick, QuotientRemainder, UnifiedEmbedding, compress_
from embcomp.nn import CompressedEmbedding, CompressedEmbeddingBag


class Recommender(nn.Module):
    """Two embeddings, a bag, towers in a list, an output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(50, 8)
        self.item = nn.Embedding(40, 8, padding_idx=0)
        self.tags = nn.EmbeddingBag(30, 8, mode="sum")
        self.towers = nn.ModuleList([nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8)) for _ in range(2)])
        self.out = nn.Linear(8, 1)

    def forward(self, user: Tensor, item: Tensor, tags: Tensor) -> Tensor:
        x = self.user(user) * self.item(item) + self.tags(tags)
        return self.out(x + sum(tower(user % 20) for tower in self.towers))


BATCH = (torch.arange(6), torch.arange(6), torch.arange(12).view(6, 2))
PATHS = ["user", "item", "tags", "towers.0.0", "towers.1.0"]


def kinds(model: nn.Module) -> dict[str, str]:
    return {path: type(model.get_submodule(path)).__name__ for path in PATHS}


def methods_of(report: embcomp.CompressionReport) -> dict[str, str]:
    return {table.name: f"{table.method}({table.rows})" for table in report.tables}


@contextmanager
def nothing_changes(model: nn.Module) -> Iterator[None]:
    """Same modules, same parameters, same values, same flags."""

    def picture() -> tuple[Any, ...]:
        return (
            {path: (id(module), module.training) for path, module in model.named_modules(remove_duplicate=False)},
            {
                name: (id(tensor), tensor.requires_grad)
                for name, tensor in model.named_parameters(remove_duplicate=False)
            },
        )

    before, state = picture(), {key: value.clone() for key, value in model.state_dict().items()}
    yield
    assert picture() == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items() if not value.is_meta)


def test_every_table_is_swapped_and_the_model_trains_on() -> None:
    model = Recommender()
    report = compress_(model, {"*": DoubleHash(rows=5)})
    assert [table.name for table in report.tables] == PATHS
    assert set(kinds(model).values()) == {"CompressedEmbedding", "CompressedEmbeddingBag"}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model(*BATCH)
    before.square().sum().backward()
    optimizer.step()
    assert before.shape == (6, 1)
    assert not torch.equal(model(*BATCH), before)


def test_the_first_pattern_that_matches_wins() -> None:
    wide, narrow, rest = HashingTrick(rows=9), HashingTrick(rows=3), DoubleHash(rows=5)
    assert methods_of(compress_(Recommender(), {"towers.1.*": wide, "t*": narrow, "*": rest})) == {
        "user": "DoubleHash(5)", "item": "DoubleHash(5)", "tags": "HashingTrick(3)", "towers.0.0": "HashingTrick(3)",
        "towers.1.0": "HashingTrick(9)",
    }  # fmt: skip
    assert methods_of(compress_(Recommender(), {"*": rest, "user": wide}))["user"] == "DoubleHash(5)"
    assert methods_of(compress_(Recommender(), {"towers.[!0].?": wide})) == {"towers.1.0": "HashingTrick(9)"}
    with pytest.raises(ValueError, match="pattern 'USER' matches no table"):
        compress_(Recommender(), {"USER": wide})


def test_what_no_pattern_matches_and_what_is_full_stays_the_same_object() -> None:
    model = Recommender()
    user, item = model.user, model.item
    compress_(model, {"user": Full(), "t*": HashingTrick(rows=3)})
    assert (model.user, model.item) == (user, item)
    model = Recommender()
    with nothing_changes(model):
        assert compress_(model, {"*": Full()}).tables == []
        assert compress_(model, {}).tables == []


def test_in_steps() -> None:
    """What is compressed already is passed over; a model without another table says so."""
    model = Recommender()
    compress_(model, {"user": HashingTrick(rows=3)})
    user = model.user
    report = compress_(model, {"*": DoubleHash(rows=5)})
    assert model.user is user
    assert [table.name for table in report.tables] == PATHS[1:]
    with pytest.raises(ValueError, match="no embedding table that compress_ knows"):
        compress_(model, {"*": DoubleHash(rows=5)})


@pytest.mark.parametrize(
    "make",
    [
        lambda tables: nn.ModuleList(tables),
        lambda tables: nn.ModuleDict({f"x{i}": table for i, table in enumerate(tables)}),
        lambda tables: nn.Sequential(*tables),
    ],
)
def test_containers(make: Callable[[list[nn.Module]], nn.Module]) -> None:
    container = make([nn.Embedding(9, 4), nn.Linear(4, 4), nn.EmbeddingBag(8, 4)])
    keys = list(dict(container.named_children()))
    compress_(container, {"*": QuotientRemainder()})
    assert list(dict(container.named_children())) == keys
    assert [type(child) for child in container.children()] == [CompressedEmbedding, nn.Linear, CompressedEmbeddingBag]


@pytest.mark.parametrize("pattern", ["*", "first", "nested.second", "nested.*"])
def test_a_module_in_two_places_stays_one(pattern: str) -> None:
    shared = nn.Embedding(30, 4)
    model = nn.ModuleDict({"first": shared, "nested": nn.ModuleDict({"second": shared}), "again": shared})
    report = compress_(model, {pattern: HashingTrick(rows=3)})
    assert model["first"] is model["nested"]["second"] is model["again"]
    assert isinstance(model["first"], CompressedEmbedding)
    assert [(table.name, table.bytes_before) for table in report.tables] == [("first", 480)]
    assert embcomp.nbytes(model) == 3 * 4 * 4 + 8


def test_one_unified_instance_is_one_store() -> None:
    model = Recommender()
    method, other = UnifiedEmbedding(rows=11, chunk_dim=4), UnifiedEmbedding(rows=7, chunk_dim=8)
    before = embcomp.nbytes(model)
    report = compress_(model, {"towers.*": other, "*": method})
    assert model.user.stores[0] is model.item.stores[0] is model.tags.stores[0]
    assert model.towers[0][0].stores[0] is model.towers[1][0].stores[0] is not model.user.stores[0]
    assert len(list(model.parameters())) == 2 + 2 * 2 + 2
    ids = torch.arange(20)
    assert not torch.equal(model.user(ids), model.item(ids))
    assert report.bytes_after == 4 * (11 * 4 + 7 * 8) + 8 * (2 + 2 + 2 + 1 + 1)
    assert before - embcomp.nbytes(model) == report.bytes_before - report.bytes_after
    model.user(torch.tensor([3])).sum().backward()
    assert model.tags.stores[0].weight.grad.any()


def test_one_instance_of_another_method_keeps_tables_apart() -> None:
    model = Recommender()
    compress_(model, {"*": HashingTrick(rows=11)})
    stores = [model.get_submodule(path).stores[0] for path in PATHS]
    assert len(set(map(id, stores))) == 5
    assert not torch.equal(stores[0].weight, stores[1].weight)


def test_settings_of_the_old_module_are_kept() -> None:
    def build() -> nn.ModuleDict:
        return nn.ModuleDict(
            {
                "padded": nn.Embedding(30, 4, padding_idx=-2, sparse=True),
                "small": nn.Embedding(30, 4, dtype=torch.float16),
                "bag": nn.EmbeddingBag(30, 4, mode="max", padding_idx=3, include_last_offset=True),
                "total": nn.EmbeddingBag(30, 4, mode="sum", sparse=True, dtype=torch.float64),
                "empty": nn.Embedding(30, 4, device="meta"),
                "frozen": nn.Embedding(30, 4).requires_grad_(False).eval(),
            }
        )

    old, new = build(), build()
    compress_(new, {"*": HashingTrick(rows=7)})
    for name, module in new.items():
        theirs = old[name]
        for setting in ("num_embeddings", "embedding_dim", "padding_idx", "sparse", "training"):
            assert getattr(module, setting) == getattr(theirs, setting), (name, setting)
        for parameter in module.parameters():
            assert parameter.dtype == theirs.weight.dtype
            assert parameter.device == theirs.weight.device
            assert parameter.requires_grad == theirs.weight.requires_grad
        for setting in ("mode", "include_last_offset"):
            assert getattr(module, setting, None) == getattr(theirs, setting, None)


def test_a_shared_store_trains_if_one_of_its_tables_did() -> None:
    model = Recommender()
    model.user.requires_grad_(False)
    compress_(model, {"user": UnifiedEmbedding(rows=5, chunk_dim=8), "[it]*": UnifiedEmbedding(rows=5, chunk_dim=8)})
    assert not model.user.stores[0].weight.requires_grad
    model = Recommender()
    model.user.requires_grad_(False)
    compress_(model, {"*": UnifiedEmbedding(rows=5, chunk_dim=8)})
    assert model.user.stores[0].weight.requires_grad


def test_the_report_is_the_difference() -> None:
    for method in (HashingTrick(rows=5), QuotientRemainder(), UnifiedEmbedding(rows=9, chunk_dim=4)):
        model = Recommender()
        before = embcomp.nbytes(model)
        report = compress_(model, {"i*": method, "*": embcomp.HashEmbedding(rows=3, importance_rows=2)})
        assert report.bytes_before == sum(table.bytes_before for table in report.tables) == 4 * 8 * (50 + 40 + 30 + 40)
        assert report.bytes_after == sum(table.bytes_after for table in report.tables)
        assert report.bytes_before - report.bytes_after == before - embcomp.nbytes(model)
        assert report.ratio == report.bytes_before / report.bytes_after
        assert all(table.ratio == table.bytes_before / table.bytes_after for table in report.tables)
        text = str(report).splitlines()
        assert [line.split()[0] for line in text] == ["table", *PATHS, "total"]
        assert len({len(line) for line in text[1:]}) == 1


def test_two_models_compressed_alike_exchange_states() -> None:
    first, second = Recommender(), Recommender()
    for model in (first, second):
        compress_(model, {"t*": UnifiedEmbedding(rows=9, chunk_dim=4), "*": DoubleHash(rows=5)})
    assert not torch.equal(first(*BATCH), second(*BATCH))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(*BATCH), second(*BATCH))
    third = copy.deepcopy(first)
    assert torch.equal(first(*BATCH), third(*BATCH))
    assert third.tags.stores[0] is third.towers[0][0].stores[0] is not first.tags.stores[0]


class Subclass(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def hold(attribute: str, value: Callable[[Recommender], Any]) -> Callable[[Recommender], Any]:
    return lambda model: setattr(model, attribute, value(model))


def tied(layer: nn.Linear, weight: nn.Parameter) -> nn.Linear:
    layer.weight = weight
    return layer


def scorer(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x @ weight.T


TROUBLES: dict[str, tuple[Callable[[Recommender], Any], str]] = {
    "tied to an output": (
        lambda m: setattr(m.out, "weight", m.user.weight),
        "cannot compress 'user': its weight is also 'out.weight'.*materialize",
    ),
    "tied to another table": (
        lambda m: setattr(m.item, "weight", m.user.weight),
        "cannot compress 'item': it shares its weight with 'user'",
    ),
    "over the memory of another": (
        lambda m: setattr(m.out, "weight", nn.Parameter(m.user.weight.data)),
        "'user': its weight is also 'out.weight'",
    ),
    "in a buffer": (lambda m: m.out.register_buffer("b", m.user.weight.detach()), "its weight is also 'out.b'"),
    "module in a list": (hold("all", lambda m: [m.user]), "cannot compress 'user': 'all' keeps it"),
    "module in a dictionary of tuples": (hold("all", lambda m: {"a": (1, m.user)}), "'user': 'all' keeps it"),
    "weight in a list": (hold("all", lambda m: [m.user.weight]), "'user': 'all' keeps it"),
    "data of a weight": (hold("w", lambda m: m.user.weight.data), "'user': 'w' keeps it"),
    "weight of a bag in a submodule": (
        lambda m: setattr(m.towers[1][1], "regularised", {"l2": [m.tags.weight]}),
        r"cannot compress 'tags': 'towers.1.1.regularised' keeps it",
    ),
    "bound method": (hold("look_up", lambda m: m.user.forward), "'user': 'look_up' keeps it"),
    "module that is no part of the model": (
        hold("aside", lambda m: [nn.Sequential(m.user, nn.ReLU())]),
        "'user': 'aside' keeps it",
    ),
    "weight of a module that is no part of the model": (
        hold("aside", lambda m: [tied(nn.Linear(8, 50), m.user.weight)]),
        "'user': 'aside' keeps it",
    ),
    "partial": (hold("score", lambda m: partial(torch.matmul, m.user.weight)), "'user': 'score' keeps it"),
    "keyword of a partial": (
        hold("score", lambda m: partial(F.linear, weight=m.user.weight)),
        "'user': 'score' keeps it",
    ),
    "function of a partial": (hold("score", lambda m: partial(m.user, BATCH[0])), "'user': 'score' keeps it"),
    "closure": (hold("score", lambda m: scorer(m.user.weight)), "'user': 'score' keeps it"),
    "default of a hook": (
        lambda m: m.out.register_forward_hook(lambda *a, weight=m.user.weight: None),
        "'user': 'out._forward_hooks' keeps it",
    ),
    "max_norm": (lambda m: setattr(m.user, "max_norm", 1.0), "cannot compress 'user': max_norm=1.0"),
    "scale_grad_by_freq": (lambda m: setattr(m.user, "scale_grad_by_freq", True), "'user': scale_grad_by_freq"),
    "subclass": (hold("user", lambda m: Subclass(50, 8)), "'user': Subclass is a subclass.*Full"),
    "forward hook": (lambda m: m.user.register_forward_hook(lambda *a: None), "'user': it has hooks"),
    "forward pre-hook": (lambda m: m.user.register_forward_pre_hook(lambda *a: None), "'user': it has hooks"),
    "backward hook": (lambda m: m.user.register_full_backward_hook(lambda *a: None), "'user': it has hooks"),
    "hook of the weight": (lambda m: m.user.weight.register_hook(lambda g: g), "'user': it has hooks"),
    "hook after accumulation": (
        lambda m: m.user.weight.register_post_accumulate_grad_hook(lambda p: None),
        "'user': it has hooks",
    ),
    "another forward": (lambda m: setattr(m.user, "forward", torch.zeros_like), "'user': its forward was replaced"),
    "parametrised": (
        lambda m: nn.utils.parametrizations.weight_norm(m.user),
        "'user': ParametrizedEmbedding is a subclass",
    ),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_cannot_be_swapped_is_refused_and_can_be_excluded(trouble: str) -> None:
    disturb, message = TROUBLES[trouble]
    model = Recommender()
    disturb(model)
    for init in ("fresh", "warm"):
        with nothing_changes(model), pytest.raises(ValueError, match=message):
            compress_(model, {"*": HashingTrick(rows=5)}, init=init)
    others = {"user": Full(), "tags": Full(), "item": Full(), "*": HashingTrick(rows=5)}
    assert methods_of(compress_(model, others)) == {"towers.0.0": "HashingTrick(5)", "towers.1.0": "HashingTrick(5)"}


BAD_CALLS: dict[str, tuple[Mapping[str, Any], dict[str, Any], type[Exception], str]] = {
    "pattern without a table": (
        {"usr": HashingTrick(rows=5)}, {}, ValueError,
        r"pattern 'usr' matches no table; the tables are \['user', 'item', 'tags', 'towers.0.0', 'towers.1.0'\]",
    ),
    "a class": ({"*": HashingTrick}, {}, TypeError, r"methods\['\*'\] must be a method's configuration.*rows=1000"),
    "a name": ({"user": "HashingTrick"}, {}, TypeError, r"methods\['user'\] must be .* got 'HashingTrick'"),
    "rows": (
        {"item": HashingTrick(rows=5), "user": HashingTrick(rows=0)}, {}, ValueError, "table 'user': rows .* got 0"
    ),
    "width": (
        {"tags": HashingTrick(rows=5), "user": UnifiedEmbedding(rows=5, chunk_dim=3)}, {}, ValueError,
        "table 'user': embedding_dim 8 is not a multiple of chunk_dim 3",
    ),
    "another width": (
        {"*": UnifiedEmbedding(rows=5, chunk_dim=4, lookups={"tags": 3})}, {}, ValueError,
        "cannot compress 'tags': UnifiedEmbedding would change its width from 8 to 12",
    ),
    "counts of a method": (
        {"*": embcomp.FrequencyHash(rows=5, counts=torch.ones(50))}, {}, ValueError,
        r"table 'item': counts must have shape \[40\], got \[50\]",
    ),
    "init": ({"*": HashingTrick(rows=5)}, {"init": "hot"}, ValueError, "init must be 'fresh' or 'warm', got 'hot'"),
    "counts of no table": (
        {"*": HashingTrick(rows=5)}, {"init": "warm", "counts": {"usr": torch.ones(50)}}, ValueError,
        "counts names 'usr', which is no table to compress",
    ),
    "counts of a table that stays": (
        {"item": HashingTrick(rows=5)}, {"init": "warm", "counts": {"user": torch.ones(50)}}, ValueError,
        r"counts names 'user', which is no table to compress; these are \['item'\]",
    ),
    "length of counts": (
        {"*": HashingTrick(rows=5)}, {"init": "warm", "counts": {"user": torch.ones(40)}}, ValueError,
        r"counts\['user'\] has shape \[40\], but the table has 50 ids",
    ),
    "negative counts": (
        {"*": HashingTrick(rows=5)}, {"init": "warm", "counts": {"user": -torch.ones(50)}}, ValueError,
        r"counts\['user'\] has negative or NaN entries",
    ),
    "NaN counts": (
        {"*": HashingTrick(rows=5)}, {"init": "warm", "counts": {"user": torch.full((50,), torch.nan)}}, ValueError,
        "negative or NaN",
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", BAD_CALLS)
def test_bad_calls_change_nothing(call: str) -> None:
    methods, options, error, message = BAD_CALLS[call]
    model = Recommender()
    with nothing_changes(model), pytest.raises(error, match=message):
        compress_(model, methods, **options)


def test_lists_of_registered_modules_are_no_trouble() -> None:
    """What is reached through the module tree is swapped there; only the table itself must not be held."""
    model = Recommender()
    model.blocks = [model.towers[0], (model.out, {"all": model.towers})]
    compress_(model, {"*": HashingTrick(rows=5)})
    assert isinstance(model.blocks[0][0], CompressedEmbedding)


def test_what_leads_back_to_the_model_or_holds_data_is_no_trouble() -> None:
    """The model itself, in objects and modules around it; a recursive function; data of any size."""
    model = Recommender()
    outer = nn.ModuleDict({"model": model})
    model.around = [model, outer, weakref.proxy(model)]
    model.look_up = partial(lambda ids: model.user(ids))
    model.vocabulary = {str(i): [i] for i in range(200_000)}

    def down(depth: int) -> int:
        return depth and down(depth - 1)

    def late() -> Tensor:
        return unset

    model.down, model.late = down, late
    compress_(model, {"*": HashingTrick(rows=5)})
    assert isinstance(model.look_up.func.__closure__[0].cell_contents.user, CompressedEmbedding)
    assert model.look_up(BATCH[0]).shape == (6, 8)
    unset = model.out.weight
    assert model.late() is unset


def test_a_table_alone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"swaps tables inside a model.*build the drop-in itself"):
        compress_(nn.Embedding(5, 4), {"*": HashingTrick(rows=2)})
    with pytest.raises(ValueError, match="no embedding table"):
        compress_(nn.Linear(2, 2), {"*": HashingTrick(rows=2)})


def test_a_store_cannot_span_types_or_devices() -> None:
    model = Recommender()
    model.item.double()
    with nothing_changes(model), pytest.raises(ValueError, match="share a store, but differ in device or dtype"):
        compress_(model, {"*": UnifiedEmbedding(rows=5, chunk_dim=8)})
    compress_(model, {"*": DoubleHash(rows=5)})
    assert model.item(torch.tensor(1)).dtype == torch.float64


def test_there_is_nothing_to_start_from_on_meta() -> None:
    model = Recommender().to("meta")
    with nothing_changes(model), pytest.raises(ValueError, match=r"tables \['user', .*meta device.*init='fresh'"):
        compress_(model, {"*": HashingTrick(rows=5)}, init="warm")
    compress_(model, {"*": HashingTrick(rows=5)})
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.fixture
def one_process() -> Iterator[None]:
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_models_of_several_processes_are_refused() -> None:
    model = Recommender()
    for wrapped in (DistributedDataParallel(model), nn.Sequential(DistributedDataParallel(model))):
        with nothing_changes(wrapped), pytest.raises(ValueError, match="DistributedDataParallel: compress before"):
            compress_(wrapped, {"*": HashingTrick(rows=5)})
    sharded = Recommender()
    sharded.item.weight = nn.Parameter(distribute_tensor(sharded.item.weight.data, init_device_mesh("cpu", (1,))))
    item = sharded.item
    with pytest.raises(ValueError, match="cannot compress 'item': its weight is sharded"):
        compress_(sharded, {"*": HashingTrick(rows=5)})
    assert sharded.item is item


def test_the_same_seed_draws_the_same_model() -> None:
    def drawn() -> dict[str, Tensor]:
        torch.manual_seed(3)
        model = Recommender()
        compress_(model, {"*": embcomp.HashEmbedding(rows=5)})
        return model.state_dict()

    first, second = drawn(), drawn()
    assert all(torch.equal(first[key], second[key]) for key in first)
