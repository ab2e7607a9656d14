"""What is set on modules and weights beside what their classes make: it goes over to the drop-ins, or is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig

from embcomp import DoubleHash, HashingTrick, LowRank, UnifiedEmbedding, compress_
from tests.recommender import BATCH, Recommender, nothing_changes


def collection(bags: bool) -> Any:
    sizes = {"num_embeddings": 30, "embedding_dim": 8}
    if bags:
        return EmbeddingBagCollection(tables=[EmbeddingBagConfig(name=n, feature_names=[n], **sizes) for n in "ab"])
    return EmbeddingCollection(tables=[EmbeddingConfig(name=n, feature_names=[n], **sizes) for n in "ab"])


def weight_of(model: nn.ModuleDict, name: str) -> nn.Parameter:
    held: Any = model["c"]
    return (held.embedding_bags if hasattr(held, "embedding_bags") else held.embeddings)[name].weight


@pytest.mark.parametrize("init", ["fresh", "warm"])
def test_attributes_of_modules_and_marks_of_weights_go_over(init: Any) -> None:
    model = Recommender()
    model.user.l2 = 1e-3
    model.tags.vocabulary = {"a": 0}
    model.user.weight.no_decay = True
    model.towers[0][0].weight.group = "towers"
    compress_(model, {"user": LowRank(rank=2, of=HashingTrick(rows=5)), "*": HashingTrick(rows=5)}, init=init)
    assert model.user.l2 == 1e-3
    assert model.tags.vocabulary == {"a": 0}
    assert [vars(parameter) for parameter in model.user.parameters()] == [{"no_decay": True}] * 2  # rows, and a matrix
    assert [vars(parameter) for parameter in model.towers[0][0].parameters()] == [{"group": "towers"}]
    assert not any(vars(parameter) for parameter in [*model.tags.parameters(), *model.towers[1][0].parameters()])


@pytest.mark.parametrize("bags", [True, False])
def test_those_of_collections_too(bags: bool) -> None:
    model = nn.ModuleDict({"c": collection(bags)})
    model["c"].owner = "ads"
    weight_of(model, "a").no_decay = True
    weight_of(model, "b").no_decay = False  # a full table, whose weight is a new parameter, too
    compress_(model, {"a": HashingTrick(rows=5)})
    assert model["c"].owner == "ads"
    assert {name[-8]: vars(parameter) for name, parameter in model.named_parameters()} == {
        "a": {"no_decay": True},
        "b": {"no_decay": False},
    }


def test_marks_of_tables_that_share_rows_must_agree() -> None:
    model = Recommender()
    model.user.weight.group, model.item.weight.group = "users", "items"
    with nothing_changes(model), pytest.raises(ValueError, match=r"'item': it would share rows with 'user'.*'group'"):
        compress_(model, {"[ui]*": UnifiedEmbedding(rows=9, chunk_dim=8)})
    model.item.weight.group = "users"
    compress_(model, {"[ui]*": UnifiedEmbedding(rows=9, chunk_dim=8)})
    assert [vars(parameter) for parameter in model.user.parameters()] == [{"group": "users"}]


class Doubled(nn.EmbeddingBag):
    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return 2 * super().forward(*args, **kwargs)


TROUBLES: dict[str, tuple[Callable[[Any], object], str]] = {
    "hook of a weight": (lambda c: c.embedding_bags["a"].weight.register_hook(lambda g: g), "table 'a': it has hooks"),
    "hook of a table": (lambda c: c.embedding_bags["a"].register_forward_hook(lambda *a: None), "'a': it has hooks"),
    "hook of the state": (lambda c: c.register_state_dict_post_hook(lambda *a: None), "'c': it has hooks"),
    "another forward": (lambda c: setattr(c, "forward", str), "'c': its forward was replaced"),
    "a layer inside": (lambda c: setattr(c, "drop", nn.Dropout()), r"'c': it also holds \['drop'\]"),
    "a table of one's own": (
        lambda c: c.embedding_bags.update({"a": Doubled(30, 8, mode="sum", include_last_offset=True)}),
        "table .a.: Doubled is a subclass with its own forward",
    ),
    "a table beside the others": (
        lambda c: c.embedding_bags.update({"z": nn.EmbeddingBag(3, 8)}), r"'c': it also holds \['z'\]"
    ),
    "padding by hand": (lambda c: setattr(c.embedding_bags["a"], "padding_idx", 0), "'a': padding_idx was set to 0"),
    "pooling by hand": (lambda c: setattr(c.embedding_bags["a"], "mode", "max"), "mode was set to 'max'.*to 'sum'"),
    "optimizer in the backward pass": (
        lambda c: _apply_optimizer_in_backward(torch.optim.SGD, c.parameters(), {"lr": 1.0}),
        "'a': apply_optimizer_in_backward.*after compress_",
    ),
}  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_a_compressed_collection_would_lose_is_refused(trouble: str) -> None:
    disturb, message = TROUBLES[trouble]
    model = nn.ModuleDict({"c": collection(bags=True)})
    disturb(model["c"])
    with nothing_changes(model), pytest.raises(ValueError, match=message):
        compress_(model, {"*": HashingTrick(rows=5)})


def test_an_optimizer_in_the_backward_pass_is_set_afterwards() -> None:
    """A step of plain SGD, worked out from the gradient of a twin."""
    model = Recommender()
    compress_(model, {"user": DoubleHash(rows=9)})
    rows = model.user.stores[0].weight
    before = rows.detach().clone()
    (grad,) = torch.autograd.grad(model(*BATCH).sum(), rows)
    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.5})
    model(*BATCH).sum().backward()
    torch.testing.assert_close(rows.detach(), before - 0.5 * grad)


def test_a_compiled_model_reads_the_new_tables() -> None:
    model = Recommender()
    compiled: Any = torch.compile(model, backend="eager")
    compiled(*BATCH)
    compress_(compiled, {"*": HashingTrick(rows=5)})
    assert torch.equal(compiled(*BATCH), model(*BATCH))
    assert type(model.user).__name__ == "CompressedEmbedding"
    table = nn.ModuleDict({"item": torch.compile(nn.Embedding(30, 8), backend="eager")})
    with nothing_changes(table), pytest.raises(ValueError, match=r"'item._orig_mod': it is compiled by torch.compile"):
        compress_(table, {"*": HashingTrick(rows=5)})
