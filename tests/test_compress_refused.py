"""What `compress_` refuses, with the reason, and without a change to the model."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.optim import _apply_optimizer_in_backward
from torch.distributed.tensor import distribute_tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune

import embcomp
from embcomp import DoubleHash, Full, HashingTrick, UnifiedEmbedding, compress_
from tests.recommender import BATCH, Recommender, methods_of, nothing_changes


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
        lambda m: (setattr(m.item, "num_embeddings", 50), setattr(m.item, "weight", m.user.weight)),
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
    "subclass": (
        hold("user", lambda m: Subclass(50, 8)),
        "'user': Subclass is a subclass with its own forward; .*Full",
    ),
    "a weight of more rows": (
        lambda m: setattr(m.user, "weight", nn.Parameter(torch.randn(60, 8))),
        r"'user': its weight is \[60, 8\], but num_embeddings and embedding_dim say \[50, 8\]",
    ),
    "complex numbers": (hold("user", lambda m: nn.Embedding(50, 8, dtype=torch.complex64)), r"is torch.complex64; con"),
    "integers": (
        hold("user", lambda m: nn.Embedding.from_pretrained(torch.ones(50, 8, dtype=torch.int64))),
        r"'user': its weight is torch.int64; convert the table with \.float",
    ),
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
        "'user': its weight is parametrized.*remove_parametrizations.*'weight'",
    ),
    "pruned": (lambda m: prune.l1_unstructured(m.user, "weight", 0.5), "'user': it has hooks.*prune.remove"),
    "hook of the state": (lambda m: m.user.register_state_dict_post_hook(lambda *a: None), "'user': it has hooks"),
    "hook before the state": (lambda m: m.user.register_state_dict_pre_hook(lambda *a: None), "'user': it has hooks"),
    "hook before loading": (lambda m: m.user.register_load_state_dict_pre_hook(lambda *a: None), "it has hooks"),
    "hook after loading": (lambda m: m.user.register_load_state_dict_post_hook(lambda *a: None), "it has hooks"),
    "another buffer": (
        lambda m: m.user.register_buffer("seen", torch.zeros(50)),
        r"'user': it also holds \['seen'\].*lost",
    ),
    "another parameter": (
        lambda m: m.user.register_parameter("scale", nn.Parameter(torch.ones(1))),
        r"'user': it also holds \['scale'\]",
    ),
    "a layer inside": (lambda m: setattr(m.user, "drop", nn.Dropout()), r"'user': it also holds \['drop'\]"),
    "compiled in place": (lambda m: m.user.compile(backend="eager"), "'user': it was compiled.*compile it afterwards"),
    "optimizer in the backward pass": (
        lambda m: _apply_optimizer_in_backward(torch.optim.SGD, m.user.parameters(), {"lr": 1.0}),
        "'user': apply_optimizer_in_backward.*after compress_",
    ),
    "a method kept on itself": (lambda m: setattr(m.user, "draw", m.user.reset_parameters), "'user.draw' keeps it"),
    "a name that the drop-in uses": (
        lambda m: setattr(m.user, "encoder", 1),
        "'user': its attribute 'encoder' has another meaning.*rename",
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
        {"item": HashingTrick(rows=5), "user": HashingTrick(rows={"item": 5})}, {}, ValueError,
        "rows names no table 'user'",
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
    "init": ({"*": HashingTrick(rows=5)}, {"init": "hot"}, ValueError, "init must be 'fresh', 'warm' or 'fit', got"),
    "counts without a warm start": (
        {"*": HashingTrick(rows=5)}, {"counts": {"user": torch.ones(50)}}, ValueError, "counts weight .* init='warm'",
    ),
    "counts of no table": (
        {"*": HashingTrick(rows=5)}, {"init": "warm", "counts": {"usr": torch.ones(50)}}, ValueError,
        "counts names 'usr', which is not a table to compress",
    ),
    "counts of a table that stays": (
        {"item": HashingTrick(rows=5)}, {"init": "warm", "counts": {"user": torch.ones(50)}}, ValueError,
        r"counts names 'user', which is not a table to compress; these are \['item'\]",
    ),
    "length of counts": (
        {"*": HashingTrick(rows=5)}, {"init": "warm", "counts": {"user": torch.ones(40)}}, ValueError,
        r"counts\['user'\] has shape \[40\], but the table has 50 ids",
    ),
    "negative counts": (
        {"*": HashingTrick(rows=5)}, {"init": "warm", "counts": {"user": -torch.ones(50)}}, ValueError,
        r"counts\['user'\] has negative, infinite or NaN entries",
    ),
    "NaN counts": (
        {"*": HashingTrick(rows=5)}, {"init": "warm", "counts": {"user": torch.full((50,), torch.nan)}}, ValueError,
        "negative, infinite or NaN",
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", BAD_CALLS)
def test_bad_calls_change_nothing(call: str) -> None:
    methods, options, error, message = BAD_CALLS[call]
    model = Recommender()
    with nothing_changes(model), pytest.raises(error, match=message):
        compress_(model, methods, **options)


def test_a_table_alone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"swaps tables inside a model.*build the drop-in itself"):
        compress_(nn.Embedding(5, 4), {"*": HashingTrick(rows=2)})
    with pytest.raises(ValueError, match="no embedding table"):
        compress_(nn.Linear(2, 2), {"*": HashingTrick(rows=2)})


def test_a_store_cannot_span_types_or_devices() -> None:
    model = Recommender()
    model.item.double()
    with (
        nothing_changes(model),
        pytest.raises(ValueError, match="share a store, but differ in device, dtype or sparse"),
    ):
        compress_(model, {"*": UnifiedEmbedding(rows=5, chunk_dim=8)})
    mixed = Recommender()
    mixed.user.sparse = True
    with nothing_changes(mixed), pytest.raises(ValueError, match="differ in device, dtype or sparse"):
        compress_(mixed, {"*": UnifiedEmbedding(rows=5, chunk_dim=8)})
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
