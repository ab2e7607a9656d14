"""`compress_` on models of plain torch; tests/torchrec and tests/test_third_party.py hold the rest."""

import copy
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import embcomp
from embcomp import DoubleHash, Full, HashingTrick, QuotientRemainder, UnifiedEmbedding, compress_
from embcomp.nn import CompressedEmbedding, CompressedEmbeddingBag
from tests.recommender import BATCH, PATHS, Recommender, kinds, methods_of, nothing_changes


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
    compress_(new, {"frozen": HashingTrick(rows=7)}, init="warm")
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
    methods = {"user": UnifiedEmbedding(rows=5, chunk_dim=8), "[it]*": UnifiedEmbedding(rows=5, chunk_dim=8)}
    compress_(model, methods, init="warm")
    assert not model.user.stores[0].weight.requires_grad
    model = Recommender()
    model.user.requires_grad_(False)
    compress_(model, {"*": UnifiedEmbedding(rows=5, chunk_dim=8)}, init="warm")
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
        assert len({len(line.partition("x  ")[0].removesuffix("x")) for line in text[1:]}) == 1  # but for notes


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


def test_the_same_seed_draws_the_same_model() -> None:
    def drawn() -> dict[str, Tensor]:
        torch.manual_seed(3)
        model = Recommender()
        compress_(model, {"*": embcomp.HashEmbedding(rows=5)})
        return model.state_dict()

    first, second = drawn(), drawn()
    assert all(torch.equal(first[key], second[key]) for key in first)
