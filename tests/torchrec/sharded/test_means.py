"""Means of sharded collections are those of one process, whatever the shardings, poolings and shared features."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_configs import PoolingType

import embcomp
from embcomp.torchrec import CompressedEmbeddingBagCollection, shard
from embcomp.torchrec.sharded.constraints import BagSharder

FEATURES = [
    [["a"], ["b"], ["c"]],
    [["a", "b"], ["a"], ["c"]],
    [["a", "b"], ["c"], ["a"], ["b"]],
]
SHARDINGS = [["row_wise"], ["table_wise"], ["table_wise", "row_wise"], ["row_wise", "table_wise"]]
BATCH = 8


def batch(rows: slice) -> KeyedJaggedTensor:
    random = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, 4, (3, BATCH), generator=random)
    ids = torch.randint(0, 9, (3, BATCH, 3), generator=random)
    there = torch.arange(3) < lengths.unsqueeze(-1)
    return KeyedJaggedTensor(["b", "c", "a"], ids[:, rows][there[:, rows]], lengths=lengths[:, rows].reshape(-1))


def difference(features: list[list[str]], poolings: str, shardings: list[str], compressed: bool) -> dict[str, float]:
    """How far two steps of training come apart from those of one process, by key."""
    kinds = {"s": PoolingType.SUM, "m": PoolingType.MEAN}
    tables = [
        EmbeddingBagConfig(
            name=f"t{i}",
            num_embeddings=10 + i,
            embedding_dim=4 * (1 + i % 2),
            feature_names=names,
            pooling=kinds[poolings[i % len(poolings)]],
        )
        for i, names in enumerate(features)
    ]
    torch.manual_seed(0)
    method = {"*": embcomp.QuotientRemainder(rows=4, combine="sum")}
    alone = CompressedEmbeddingBagCollection(tables, method) if compressed else EmbeddingBagCollection(tables)
    twin = nn.ModuleDict({"c": copy.deepcopy(alone)})
    names = [name.split(".")[-2] for name, _ in alone.named_parameters()]
    chosen = {n: ParameterConstraints(sharding_types=[shardings[i % len(shardings)]]) for i, n in enumerate(names)}
    kwargs = {"optimizer": torch.optim.SGD, "optimizer_kwargs": {"lr": 0.5}, "device": "cpu"}
    sharded = shard(twin, constraints=chosen, **kwargs)
    rank, sgd = dist.get_rank(), torch.optim.SGD(alone.parameters(), 0.5)
    mine, apart = slice(4 * rank, 4 * rank + 4), {}
    for _ in range(2):
        expected, got = alone(batch(slice(0, BATCH))), sharded.module["c"](batch(mine))
        for key in expected.keys():  # noqa: SIM118
            apart[key] = max(apart.get(key, 0.0), float((expected[key][mine] - got[key]).abs().max()))
        sgd.zero_grad()
        expected.values().square().mean(1).mean().backward()
        sgd.step()
        torch.cat([got[key] for key in expected.keys()], 1).square().mean(1).mean().backward()  # noqa: SIM118
    return apart


@pytest.mark.parametrize("shardings", SHARDINGS, ids="-".join)
@pytest.mark.parametrize("poolings", ["m", "sm"])
@pytest.mark.parametrize("features", FEATURES, ids=["own", "shared", "many"])
def test_they_are_those_of_one_process(pair, features, poolings, shardings):
    for apart in pair.run(difference, features, poolings, shardings, False):
        assert max(apart.values()) < 1e-6, apart


@pytest.mark.parametrize("shardings", SHARDINGS[2:], ids="-".join)
def test_compressed_collections_are_right_too(pair, shardings):
    for apart in pair.run(difference, FEATURES[1], "sm", shardings, True):
        assert max(apart.values()) < 1e-6, apart


def variable() -> str:
    tables = [
        EmbeddingBagConfig(name="t", num_embeddings=9, embedding_dim=4, feature_names=["a"], pooling=PoolingType.MEAN)
    ]
    model = nn.ModuleDict({"c": EmbeddingBagCollection(tables)})
    chosen = {"t": ParameterConstraints(sharding_types=["row_wise"])}
    kwargs = {"optimizer": torch.optim.SGD, "optimizer_kwargs": {"lr": 0.5}, "device": "cpu"}
    sharded = shard(model, constraints=chosen, **kwargs)
    features = KeyedJaggedTensor(
        ["a"], torch.tensor([1, 2]), lengths=torch.tensor([1, 1]), stride_per_key_per_rank=[[2]],
        inverse_indices=(["a"], torch.tensor([[0, 1, 1]])),
    )  # fmt: skip
    try:
        sharded.module["c"](features)
    except ValueError as error:
        return str(error)
    return ""


def test_batches_of_several_sizes_are_refused_by_name(pair):
    for said in pair.run(variable):
        assert "tables ['t']" in said
        assert "one batch size" in said


def by_torchrec(shardings: list[str]) -> str:
    """What `DistributedModelParallel` itself comes to for a compressed collection of means: an error, or nothing."""
    tables = [
        EmbeddingBagConfig(name=n, num_embeddings=9, embedding_dim=4, feature_names=[n], pooling=PoolingType.MEAN)
        for n in "ab"
    ]
    torch.manual_seed(0)
    model = nn.ModuleDict({"c": CompressedEmbeddingBagCollection(tables, {"*": embcomp.HashingTrick(rows=6)})})
    features = KeyedJaggedTensor(["a", "b"], torch.tensor([1, 2, 3]), lengths=torch.tensor([2, 0, 1, 0]))
    expected = model["c"](features).values()
    device, env = torch.device("cpu"), ShardingEnv.from_process_group(dist.group.WORLD)
    chosen = {n: ParameterConstraints(sharding_types=[k]) for n, k in zip("ab", shardings, strict=True)}
    sharders = [BagSharder()]
    topology = Topology(world_size=2, compute_device="cpu")
    plan = EmbeddingShardingPlanner(topology=topology, constraints=chosen).plan(model, sharders)
    sharded = DistributedModelParallel(model, env, device, plan, [EmbeddingBagCollectionSharder()])
    try:
        got = sharded.module["c"](features).values()
    except ValueError as error:
        return str(error)
    assert got.shape == expected.shape
    return ""


def test_what_torchrec_alone_would_get_wrong_is_refused(pair):
    for said in pair.run(by_torchrec, ["row_wise", "table_wise"]):
        assert "tables ['a', 'b']" in said
        assert "embcomp.torchrec.shard" in said
    assert pair.run(by_torchrec, ["row_wise", "row_wise"]) == ["", ""]
    assert pair.run(by_torchrec, ["table_wise", "table_wise"]) == ["", ""]
