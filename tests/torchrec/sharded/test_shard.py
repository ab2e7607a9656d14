"""`shard` over two processes: what is kept, what is chosen, what is refused, and that all ranks raise together."""

import copy
import os
import re
import time
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ShardedModule
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim import RowWiseAdagrad

import embcomp
from embcomp.ops.optimizers import FusedOptimizerSettings
from embcomp.sdim import SDIM
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection, fuse_, shard, sharding
from embcomp.torchrec.sharded.constraints import table_constraints
from experiments.processes.distributed import gathered_state
from experiments.processes.processes import Processes
from experiments.studies.parity import batch
from tests.torchrec.batches import bag_tables, sequence_tables

METHODS = {
    "users": embcomp.HashEmbedding(rows=6),
    "films": embcomp.FrequencyHash(rows=8, counts=torch.arange(33), tail="double"),
    "tags": embcomp.UnifiedEmbedding(rows=9, chunk_dim=4),
}


def build(methods=None, device: str | None = None, **more) -> nn.ModuleDict:
    """Compressed and plain collections, one frozen, and dense parts with a buffer."""
    parts = {
        "bags": CompressedEmbeddingBagCollection(bag_tables(), methods or METHODS, device=device),
        "sequences": CompressedEmbeddingCollection(sequence_tables(), {"*": embcomp.DoubleHash(rows=5)}, device=device),
        "plain": EmbeddingBagCollection(tables=[own("plain_bags", EmbeddingBagConfig)], device=device),
        "plain_sequences": EmbeddingCollection(tables=[own("plain_ids", EmbeddingConfig)], device=device),
        "norm": nn.BatchNorm1d(8),
        "head": nn.Linear(8, 1),
        **more,
    }
    return nn.ModuleDict(parts)


def own(name: str, kind: type):
    return kind(name=name, num_embeddings=11, embedding_dim=8, feature_names=["tag"])


def frozen() -> EmbeddingBagCollection:
    collection = EmbeddingBagCollection(tables=[own("frozen", EmbeddingBagConfig)])
    return collection.requires_grad_(False)


def tables(model: nn.Module) -> dict[str, str]:
    """Table -> sharding type."""
    return {
        name: part.sharding_type
        for module in model.modules()
        if isinstance(module, ShardedModule)
        for name, part in module.module_sharding_plan.items()
    }


def adagrad(model: nn.Module, **more) -> DistributedModelParallel:
    settings = {"optimizer": torch.optim.Adagrad, "optimizer_kwargs": {"lr": 0.1, "eps": 1e-6}, "device": "cpu"}
    return shard(model, **{**settings, **more})


# what is kept


def kept(block: int) -> list[str]:
    """What differs from the values of rank 0, other values having been drawn on each rank; `block` are sent at once."""
    sharding._BLOCK, usual = block, sharding._BLOCK
    torch.manual_seed(dist.get_rank())
    model = build(frozen=frozen())
    model["norm"].running_mean.fill_(dist.get_rank() + 1.0)
    model.register_buffer("small", torch.tensor(dist.get_rank(), dtype=torch.int16))  # which gloo does not send
    torch.manual_seed(0)
    first = build(frozen=frozen()).state_dict()
    first["norm.running_mean"].fill_(1.0)
    first["small"] = torch.tensor(0, dtype=torch.int16)
    before = torch.get_rng_state()
    rows = {name: ParameterConstraints(sharding_types=["row_wise"]) for name in ("films", "plain_ids")}
    sharded = adagrad(model, constraints=rows)
    sharding._BLOCK = usual
    assert torch.equal(before, torch.get_rng_state()), "random numbers were taken"
    assert type(sharded.module["frozen"]) is EmbeddingBagCollection
    assert {*tables(sharded).values()} <= {"table_wise", "row_wise"}
    assert tables(sharded).keys() == {"users", "users_importance", "films", "shared", "tags", "plain_bags", "plain_ids"}
    found = gathered_state(sharded.state_dict())
    assert found.keys() == first.keys()
    return [name for name, value in first.items() if not torch.equal(value, found[name])]


@pytest.mark.parametrize("block", [1, 40, 1 << 24])  # a row, a few of them, whole tables
def test_the_values_of_rank_0_are_kept(pair, block):
    assert pair.run(kept, block) == [[], []]


def tables_alone() -> list[bool]:
    """Whether the frozen rest is that of rank 0, where tables are all that is trained."""
    torch.manual_seed(dist.get_rank())
    rest = nn.Linear(8, 1).requires_grad_(False)
    model = nn.ModuleDict({"bags": CompressedEmbeddingBagCollection(bag_tables(), METHODS), "rest": rest})
    sharded = adagrad(model)
    torch.manual_seed(0)
    first = nn.Linear(8, 1)
    sharded.module["bags"](batch(0, slice(8)).sparse).values().sum().backward()
    return [torch.equal(rest.weight, first.weight), torch.equal(rest.bias, first.bias)]


def test_tables_may_be_all_that_is_trained(pair):
    assert pair.run(tables_alone) == [[True, True], [True, True]]


def drawn() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # as programs do, on every rank
    sizes = {"users": 4_000, "films": 4_000, "tags": 4_000}
    model = nn.ModuleDict(
        {"bags": CompressedEmbeddingBagCollection(bag_tables(), {"*": embcomp.HashingTrick(rows=sizes)}, device="meta")}
    )
    rows = {name: ParameterConstraints(sharding_types=["row_wise"]) for name in sizes}
    return gathered_state(adagrad(model, constraints=rows).state_dict())


def test_tables_without_values_are_drawn_and_no_row_twice(pair):
    state, other = pair.run(drawn)
    for name in ("users", "films", "tags"):
        rows = state[f"bags.branches.bags.collection.embedding_bags.{name}.weight"]
        assert torch.equal(rows, other[f"bags.branches.bags.collection.embedding_bags.{name}.weight"])
        assert rows.unique(dim=0).shape[0] == 4_000
        assert 0.9 * 4_000**-0.5 < rows.abs().max() <= 4_000**-0.5


def learning_rates() -> list[bool]:
    """Whether the tables have moved at learning rates 0 and .1."""
    torch.manual_seed(0)
    sharded = adagrad(build())
    moved = []
    for lr in (0.0, 0.1):
        before = {name: value.clone() for name, value in gathered_state(sharded.state_dict()).items()}
        for group in sharded.fused_optimizer.param_groups:
            group["lr"] = lr
        sharded.fused_optimizer.zero_grad()
        bags = sharded.module["bags"](batch(0, slice(8)).sparse)
        bags["tag"].sum().backward()
        after = gathered_state(sharded.state_dict())
        moved.append(any(not torch.equal(before[name], after[name]) for name in before))
    return moved


def test_the_learning_rate_of_tables_can_change(pair):
    assert pair.run(learning_rates) == [[False, True]] * 2


# what is chosen


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad"])
def test_the_planner_may_choose_table_wise_and_row_wise_alone(name):
    settings = FusedOptimizerSettings(name, 0.1)
    given = {"b": ParameterConstraints(min_partition=8), "c": ParameterConstraints(sharding_types=["row_wise"])}
    found = table_constraints({"a": 1, "b": 2, "c": 2}, given, settings, world_size=2)
    assert [found[table].sharding_types for table in "abc"] == [
        ["table_wise"],
        ["table_wise", "row_wise"],
        ["row_wise"],
    ]
    assert found["b"].min_partition == 8
    assert given["b"].sharding_types is None
    with pytest.raises(ValueError, match=r"table 'c': row_wise needs a row for each rank, and it has 1 for 2"):
        table_constraints({"a": 1, "b": 2, "c": 1}, given, settings, world_size=2)


@pytest.mark.parametrize(("rows", "splits"), [(1, False), (2, True), (3, False), (4, True), (5, True)])
def test_no_rank_is_left_with_one_row_of_a_state_that_torchrec_cannot_save(rows, splits):
    given = {"a": ParameterConstraints(sharding_types=["row_wise"])}
    adagrad, adam = FusedOptimizerSettings("rowwise_adagrad", 0.1), FusedOptimizerSettings("adam", 0.1)
    assert table_constraints({"a": 3}, given, adagrad, 2)["a"].sharding_types == ["row_wise"]
    assert (table_constraints({"a": rows}, None, adam, 2)["a"].sharding_types == ["table_wise", "row_wise"]) == splits
    with nullcontext() if splits else pytest.raises(ValueError, match=r"table 'a': row_wise .*take table_wise"):
        table_constraints({"a": rows}, given, adam, 2)


@pytest.mark.parametrize("kind", ["column_wise", "table_column_wise", "grid_shard"])
def test_columns_are_for_optimizers_without_a_state_per_row(kind):
    given = {"a": ParameterConstraints(sharding_types=[kind])}
    assert table_constraints({"a": 9}, given, FusedOptimizerSettings("adagrad", 0.1), 2)["a"].sharding_types == [kind]
    with pytest.raises(ValueError, match=f"'a': {kind} gives each column shard its own state.*torch.optim.Adagrad"):
        table_constraints({"a": 9}, given, FusedOptimizerSettings("rowwise_adagrad", 0.1), 2)


# what is refused


def refused(make_model, settings) -> tuple[str, bool]:
    """The message, and whether the model is as it was."""
    torch.manual_seed(0)
    model = make_model(dist.get_rank()) if make_model else build()
    before = [(name, id(part)) for name, part in model.named_modules()]
    state = copy.deepcopy(model.state_dict())
    try:
        adagrad(model, **(settings[dist.get_rank()] if isinstance(settings, list) else settings))
    except (ValueError, RuntimeError) as error:
        same = all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
        said = ", ".join([str(error), *getattr(error, "__notes__", [])])
        return f"{type(error).__name__}: {said}", same and before == [(n, id(p)) for n, p in model.named_modules()]
    return "", False


def fused(rank: int) -> nn.Module:
    return fuse_(build(), optimizer=torch.optim.SGD)


def without_tables(rank: int) -> nn.Module:
    return nn.ModuleDict({"head": nn.Linear(2, 2)})


def odd_width(rank: int) -> nn.Module:
    table = EmbeddingBagConfig(name="urls", num_embeddings=9, embedding_dim=6, feature_names=["item"])
    return nn.ModuleDict({"plain": EmbeddingBagCollection(tables=[table])})


@pytest.mark.parametrize(
    ("make_model", "settings", "text"),
    [
        (None, {"constraints": {"users": ParameterConstraints(sharding_types=["data_parallel"])}}, "never be trained"),
        (None, {"constraints": {"userz": ParameterConstraints()}}, "name no table of the model: .'userz'.; the tables"),
        (None, {"constraints": {"users": ParameterConstraints(sharding_types=["rows"])}}, "no sharding type 'rows'"),
        (None, {"optimizer": torch.optim.RMSprop}, "cannot shard .*RMSprop.*choose one of"),
        (
            None,
            {"optimizer_kwargs": {"momentum": 0.9}},
            "Adagrad with .'momentum'.: it takes eps, lazy, lr, weight_decay",
        ),
        (None, {"optimizer_kwargs": {"weight_decay": -0.1}}, "cannot shard Adagrad with weight_decay=-0.1"),
        (fused, {}, "is fused: give shard the model as it is before fuse_"),
        (without_tables, {}, "no torchrec collection"),
        (odd_width, {}, "a multiple of 4, got .'urls': 6."),
        (
            None,
            {
                "optimizer": RowWiseAdagrad,
                "constraints": {"users": ParameterConstraints(sharding_types=["column_wise"])},
            },
            "'users': column_wise gives each column shard",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_sharded_is_refused(pair, make_model, settings, text):
    for said, same in pair.run(refused, make_model, settings):
        assert same
        assert said.startswith("ValueError: ")
        assert re.search(text, said)


def again() -> str:
    try:
        adagrad(nn.ModuleDict({"inner": adagrad(build()).module}))
    except ValueError as error:
        return str(error)
    return ""


def test_a_sharded_model_is_refused(pair):
    assert all("is sharded already" in text for text in pair.run(again))


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match="torchrun"):
        adagrad(build())


# ranks that differ


def other_map(rank: int) -> nn.Module:
    counts = torch.arange(33)
    counts[3] += 100 * rank
    return build({**METHODS, "films": embcomp.FrequencyHash(rows=8, counts=counts, tail="double")})


def other_seed(rank: int) -> nn.Module:
    return build({"*": embcomp.HashingTrick(rows=9, seed=rank)})


def other_rows(rank: int) -> nn.Module:
    return build({"*": embcomp.HashingTrick(rows=9 + rank)})


def other_method(rank: int) -> nn.Module:
    return build({"*": [embcomp.HashingTrick, embcomp.DoubleHash][rank](rows=9)})


def other_hashes(rank: int) -> nn.Module:
    return build(history=SDIM(8, num_hashes=12, hash_width=3 + rank))


def other_head(rank: int) -> nn.Module:
    return build(head=nn.Linear(8, 1 + rank))


def other_version(rank: int) -> nn.Module:
    model = build()
    embcomp.__version__ = f"0.{rank + 1}.0"
    return model


@pytest.mark.parametrize(
    ("make_model", "settings", "text"),
    [
        (
            other_map,
            {},
            "'films' in .*map 'hot_ids': rank 1 has tensor .4. .*, rank 0 has .*load the same file on every",
        ),
        (
            other_seed,
            {},
            "'users' in .*configuration 'seed': rank 1 has 1, rank 0 has 0; give every rank the same method",
        ),
        (other_rows, {}, "'users' in .*configuration 'rows': rank 1 has 10, rank 0 has 9(?s:.*)and .* more"),
        (other_method, {}, "configuration 'method': rank 1 has DoubleHash, rank 0 has HashingTrick"),
        (other_hashes, {}, "SDIM 'history', configuration 'hash_width': rank 1 has 4, rank 0 has 3; give every rank"),
        (
            other_head,
            {},
            "parameter 'head.weight', shape: rank 1 has .2, 8. .*, rank 0 has .1, 8.*build the same model",
        ),
        (other_version, {}, "version of embcomp: rank 1 has 0.2.0, rank 0 has 0.1.0; install the same versions"),
        (
            None,
            [{}, {"optimizer_kwargs": {"lr": 0.3}}],
            "setting optimizer: rank 1 has .*lr=0.3.*pass the same",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_ranks_that_differ_are_named_on_every_rank(pair, make_model, settings, text):
    try:
        said = pair.run(refused, make_model, settings)
    finally:
        pair.run(_own_version)
    assert said[0] == said[1]
    assert said[0][1], "the model was changed"
    assert re.search(text, said[0][0])


def _own_version() -> None:
    embcomp.__version__ = "0.1.0"


def test_where_one_rank_raises_all_do(pair):
    wrong = {"constraints": {"users": ParameterConstraints(sharding_types=["data_parallel"])}}
    (first, kept_there), (second, kept_here) = pair.run(refused, None, [{}, wrong])
    assert kept_here
    assert kept_there
    assert first == f"{second}, on rank 1 of 2"
    assert second.startswith("ValueError: table 'users': data_parallel")


# a rank that dies


def die_while_training(rank: int) -> None:
    torch.manual_seed(0)
    sharded = adagrad(build())
    for step in range(100):
        if step == 2 and dist.get_rank() == rank:
            os._exit(9)
        sharded.module["bags"](batch(step, slice(8)).sparse)["tag"].sum().backward()


def die_before_sharding(rank: int) -> None:
    if dist.get_rank() == rank:
        os._exit(9)
    adagrad(build())


@pytest.mark.parametrize("function", [die_while_training, die_before_sharding])
def test_where_one_rank_dies_the_other_ends_within_a_minute(function):
    with Processes(2) as pair:
        pair.start(function, 1)
        while not pair.ended():
            time.sleep(0.05)
        begin = time.monotonic()
        first, second = pair.outcomes()
    assert second.error == "the process has died"
    assert "RuntimeError" in first.error
    assert time.monotonic() - begin < 60
