"""Ready for sharding: DistributedModelParallel shards the inner collections, pipelines see the encoders.

One process is enough to see that look-ups, training and state are those of the plain model; torchrec's code paths are
the same as with many.
"""

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim import RowWiseAdagrad

import embcomp
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection, fuse_
from tests.parts import PARTS
from tests.torchrec.batches import RAGGED, as_tables, bag_tables, batch, sequence_tables

with warnings.catch_warnings():  # torch announces the end of torch.jit while it imports its own modules
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch.distributed.optim import _apply_optimizer_in_backward

# What torchrec passes to torch.
pytestmark = pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated:FutureWarning")

every_method = pytest.mark.parametrize("example", PARTS, ids=str)
CPU = torch.device("cpu")
SHARDERS = {EmbeddingBagCollection: EmbeddingBagCollectionSharder(), EmbeddingCollection: EmbeddingCollectionSharder()}

MIXED = {
    "users": embcomp.HashEmbedding(rows=5),
    "films": embcomp.UnifiedEmbedding(rows=9, chunk_dim=4),
    "tags": embcomp.FrequencyHash(rows=6, counts=torch.arange(12), tail="double"),
}


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("gloo") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Model(nn.Module):
    """A collection and a dense layer after it."""

    def __init__(self, collection: nn.Module) -> None:
        super().__init__()
        self.collection = collection
        self.head = nn.LazyLinear(1)

    def forward(self, features):
        result = self.collection(features)
        keys = sorted(result.keys())  # sharding may put them in another order
        if isinstance(result, dict):
            values = torch.cat([result[key].values() for key in keys])
        else:
            values = torch.cat([result[key] for key in keys], dim=1)
        out = self.head(values)
        return out.square().sum(), values


class Pipelined(nn.Module):
    """Traceable from one end to the other, as a pipeline wants it: the keys are known."""

    def __init__(self, collection: nn.Module, keys: list[str]) -> None:
        super().__init__()
        self.collection, self.keys = collection, keys
        self.head = nn.LazyLinear(1)

    def forward(self, features):
        result = self.collection(features)
        values = torch.cat([result[key] for key in self.keys], dim=1)
        return self.head(values).square().sum(), values


def make(kind: str, methods=None, example=None) -> nn.Module:
    weighted = kind == "weighted bags"
    if kind == "sequences":
        configs = sequence_tables()
        return CompressedEmbeddingCollection(configs, methods or {"*": example.make(as_tables(configs))})
    configs = bag_tables(pooling=PoolingType.SUM) if weighted else bag_tables()
    return CompressedEmbeddingBagCollection(
        configs, methods or {"*": example.make(as_tables(configs))}, is_weighted=weighted
    )


def plan_of(model: nn.Module) -> ShardingPlan:
    """Every table of torchrec's collections table-wise, with fused kernels."""
    plan = {}
    for path, module in model.named_modules():
        if type(module) in SHARDERS:
            tables = module.embedding_bags if isinstance(module, EmbeddingBagCollection) else module.embeddings
            plan[path] = construct_module_sharding_plan(
                module,
                {name: table_wise(rank=0, compute_kernel="fused") for name in tables},
                sharder=SHARDERS[type(module)],
                local_size=1,
                world_size=1,
                device_type="cpu",
            )
    assert plan
    return ShardingPlan(plan)


def sharded(model: nn.Module) -> DistributedModelParallel:
    """A copy of the model, every inner collection table-wise with fused kernels; the same rows."""
    twin = copy.deepcopy(model)
    rows = [weight for name, weight in twin.named_parameters() if ".collection." in name]
    _apply_optimizer_in_backward(RowWiseAdagrad, rows, {"lr": 0.1, "eps": 1e-6})
    dmp = DistributedModelParallel(
        twin, ShardingEnv.from_process_group(dist.group.WORLD), CPU, plan_of(twin), list(SHARDERS.values())
    )
    assert not any(type(module) in SHARDERS for module in dmp.modules())
    with torch.no_grad():
        for name, value in dmp.state_dict().items():
            local(value).copy_(model.state_dict()[name])
    return dmp


def local(value):
    return value.local_shards()[0].tensor if hasattr(value, "local_shards") else value


def steps(model: nn.Module, optimizers: list[torch.optim.Optimizer], batches) -> list[torch.Tensor]:
    seen = []
    for features in batches:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss, values = model(features)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        seen.append(values.detach())
    return seen


def plain_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    rows = [weight for name, weight in model.named_parameters() if ".collection." in name]
    return [RowWiseAdagrad(rows, lr=0.1, eps=1e-6), torch.optim.SGD(model.head.parameters(), lr=0.1)]


KINDS = ["bags", "weighted bags", "sequences"]


@pytest.mark.parametrize("kind", KINDS)
@every_method
def test_sharded_training_is_plain_training(example, kind):
    check_training(make(kind, example=example), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_sharded_mixture_of_methods(kind):
    check_training(make(kind, MIXED), kind)


def check_training(collection: nn.Module, kind: str) -> None:
    model = Model(collection)
    batches = [batch(RAGGED, seed=seed, weighted=kind == "weighted bags") for seed in range(2)]
    model(batches[0])  # the lazy layer finds its width
    dmp = sharded(model)
    expected = steps(model, plain_optimizers(model), batches)
    actual = steps(dmp, [torch.optim.SGD(dmp.module.head.parameters(), lr=0.1)], batches)
    torch.testing.assert_close(actual, expected)
    plain, spread = model.state_dict(), dmp.state_dict()
    assert set(plain) == set(spread)
    for name, value in plain.items():
        torch.testing.assert_close(local(spread[name]), value, msg=lambda text, name=name: f"{name}: {text}")


@every_method
def test_sharded_state_loads_again(example):
    model = Model(make("bags", example=example))
    model(batch(RAGGED))
    dmp = sharded(model)
    steps(dmp, [], [batch(RAGGED)])
    model.load_state_dict({name: local(value) for name, value in dmp.state_dict().items()})
    torch.testing.assert_close(model(batch(RAGGED))[1], dmp(batch(RAGGED))[1])


@every_method
def test_a_pipeline_runs_encoders_ahead(example):
    """Every inner collection is pipelined: between the batch and it there is only the parameter-free encoder."""
    collection = make("bags", example=example)
    model = Pipelined(collection, ["user@users", "friend", "film", "user@films", "tag"])
    batches = [batch(RAGGED, seed=seed) for seed in range(4)]
    model(batches[0])
    dmp = sharded(model)
    optimizer = torch.optim.SGD(dmp.module.head.parameters(), lr=0.1)
    pipeline = TrainPipelineSparseDist(dmp, optimizer, CPU, pipeline_postproc=True)
    feed = iter(batches)
    actual = [pipeline.progress(feed).detach() for _ in batches]
    names = {module.forward.name for module in pipeline._pipelined_modules}
    assert names == {f"collection.branches.{name}.collection" for name in collection.branches}
    expected = steps(model, plain_optimizers(model), batches)
    torch.testing.assert_close(actual, expected)


def test_sharded_tables_start_as_the_method_says():
    """Built without memory, the rows are drawn by DistributedModelParallel through init_fn."""
    collection = CompressedEmbeddingBagCollection(bag_tables(), MIXED, device="meta")
    model = nn.ModuleDict({"collection": collection})
    rows = [weight for name, weight in model.named_parameters() if ".collection." in name]
    _apply_optimizer_in_backward(torch.optim.SGD, rows, {"lr": 0.1})
    dmp = DistributedModelParallel(
        model, ShardingEnv.from_process_group(dist.group.WORLD), CPU, plan_of(model), list(SHARDERS.values())
    )
    values = {name: local(value) for name, value in dmp.state_dict().items() if name.endswith("weight")}
    bound = {"users_importance": None, "users": (2 * 5) ** -0.5, "shared": 9**-0.5, "tags": (2 * 6) ** -0.5}
    assert {name.split(".")[-2] for name in values} == set(bound)
    for name, value in values.items():
        limit = bound[name.split(".")[-2]]
        if limit is None:
            assert (value == 1.0).all()
        else:
            assert 0.7 * limit < value.abs().max() <= limit
    eager = CompressedEmbeddingBagCollection(bag_tables(), MIXED)
    eager.load_state_dict({name.removeprefix("collection."): local(v) for name, v in dmp.state_dict().items()})
    result, expected = dmp.module["collection"](batch(RAGGED)), eager(batch(RAGGED))
    for key in expected.keys():  # noqa: SIM118 (a KeyedTensor)
        torch.testing.assert_close(result[key], expected[key])


def test_sharded_collections_are_refused(tmp_path):
    model = nn.ModuleDict({"tables": EmbeddingBagCollection(bag_tables()), "other": nn.Embedding(50, 8)})
    dmp = DistributedModelParallel(
        model, ShardingEnv.from_process_group(dist.group.WORLD), CPU, plan_of(model), list(SHARDERS.values())
    )
    before = {name: (type(part), id(part)) for name, part in dmp.named_modules()}
    for target in (dmp, dmp.module):
        with pytest.raises(ValueError, match="before"):
            embcomp.compress_(target, {"*": embcomp.HashingTrick(rows=5)})
        with pytest.raises(ValueError, match="sharded"):
            fuse_(target, optimizer=torch.optim.SGD)
        with pytest.raises(ValueError, match="is sharded: build the model in one process, load the checkpoint there"):
            embcomp.export(target, tmp_path / "model.pt2", (batch(RAGGED),))
    assert before == {name: (type(part), id(part)) for name, part in dmp.named_modules()}
