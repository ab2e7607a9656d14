"""What the processes of test_sharded.py do: train every method under DistributedModelParallel, save, load, fail."""

import itertools
import logging
import math
import os
import resource
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise, table_wise
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.keyed import KeyedOptimizerWrapper
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embcomp
from embcomp.checkpoints import Checkpoints
from embcomp.torchrec import CompressedEmbeddingBagCollection, fuse_, fused_optimizer
from embcomp.torchrec.sharded.constraints import BagSharder
from tests.parts import PARTS
from tests.torchrec.batches import RAGGED, as_tables, bag_tables, batch

with warnings.catch_warnings():  # torch announces the end of torch.jit while it imports its own modules
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch.distributed.optim import _apply_optimizer_in_backward

logging.getLogger("torchrec").setLevel(logging.ERROR)


SHARDERS = {EmbeddingBagCollection: BagSharder(), EmbeddingCollection: EmbeddingCollectionSharder()}
ADAGRAD = {"lr": 0.1, "eps": 1e-3}  # the default would divide rounding errors by about nothing
OPTIMIZERS = [(RowWiseAdagrad, ADAGRAD), (torch.optim.Adagrad, ADAGRAD), (torch.optim.SGD, {"lr": 0.1})]


class EveryMethod(nn.Module):
    """A collection for every example of a method (or those named), and a dense part."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        configs = bag_tables()
        self.collections = nn.ModuleDict(
            {
                example.name: CompressedEmbeddingBagCollection(configs, {"*": example.make(as_tables(configs))})
                for example in PARTS
                if not names or example.name in names
            }
        )
        self.head = nn.Sequential(nn.Linear(56, 4), nn.Dropout(0.5), nn.Linear(4, 1))

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        results = [collection(features) for collection in self.collections.values()]
        keys = sorted(results[0].keys())
        return sum(self.head(torch.cat([result[key] for key in keys], dim=1)).square().sum() for result in results)


class Training:
    """The sharded model, its optimizers, its checkpoints."""

    def __init__(self, folder: Path, kind: str, seed: int, names: tuple[str, ...] = (), model: Any = None) -> None:
        torch.manual_seed(seed)
        model = EveryMethod(names) if model is None else model
        for (kind_of, settings), collection in zip(itertools.cycle(OPTIMIZERS), model.collections.values()):
            tables = [weight for name, weight in collection.named_parameters() if ".collection." in name]
            _apply_optimizer_in_backward(kind_of, tables, dict(settings))
        plan = _plan(model, kind)
        env = ShardingEnv.from_process_group(dist.group.WORLD)
        self.model = DistributedModelParallel(model, env, torch.device("cpu"), plan, list(SHARDERS.values()))
        dense = dict(self.model.module.head.named_parameters())
        dense = {f"head.{name}": parameter for name, parameter in dense.items()}
        self.optimizer = (
            KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adam(parameters, lr=0.01))
            if kind == "row-wise"
            else torch.optim.Adam(dense.values(), lr=0.01)
        )
        self.checkpoints = Checkpoints(folder, self.model, [self.optimizer])

    def step(self, seed: int) -> float:
        self.optimizer.zero_grad()
        loss = self.model(batch(RAGGED, seed=2 * seed + dist.get_rank()))
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def state(self) -> dict[str, Any]:
        """Everything that training changes, by name: a tensor, or the shards of this rank with their places."""
        found = {f"model.{name}": held(value) for name, value in self.model.state_dict().items()}
        fused = self.model.fused_optimizer.state_dict()["state"]
        for name, state in fused.items():
            found |= {f"{name}.{key}": held(value) for key, value in state.items()}
        state = getattr(self.optimizer, "_optimizer", self.optimizer).state_dict()["state"]
        found |= {f"dense.{n}.{key}": held(value) for n, values in state.items() for key, value in values.items()}
        found["random"] = drawn()
        return found


class Alone:
    """The same in one process without sharding: the tables are fused, and a batch is that of both ranks."""

    def __init__(self, folder: Path, seed: int, names: tuple[str, ...] = ()) -> None:
        torch.manual_seed(seed)
        self.model = EveryMethod(names)
        for (kind_of, settings), collection in zip(itertools.cycle(OPTIMIZERS), self.model.collections.values()):
            fuse_(collection, optimizer=kind_of, optimizer_kwargs=settings)
        self.optimizers = [fused_optimizer(self.model), torch.optim.Adam(self.model.head.parameters(), lr=0.01)]
        self.checkpoints = Checkpoints(folder, self.model, self.optimizers)

    def step(self, seed: int) -> float:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        parts = [batch(RAGGED, seed=2 * seed + rank) for rank in range(2)]
        features = KeyedJaggedTensor(
            keys=parts[0].keys(),
            values=torch.cat([part[key].values() for key in parts[0].keys() for part in parts]),  # noqa: SIM118
            lengths=torch.cat([part[key].lengths() for key in parts[0].keys() for part in parts]),  # noqa: SIM118
        )
        loss = self.model(features) / 2  # ranks take the mean of gradients
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()

    def state(self) -> dict[str, Any]:
        """As of `Training`, without the random state."""
        found = {f"model.{name}": held(value) for name, value in self.model.state_dict().items()}
        fused, dense = self.optimizers
        for name, weight in self.model.named_parameters():
            if "sum" in fused.state.get(weight, {}):
                found[f"{name}.{name.split('.')[-2]}.momentum1"] = held(fused.state[weight]["sum"])
        state = dense.state_dict()["state"]
        return found | {f"dense.{n}.{key}": held(value) for n, values in state.items() for key, value in values.items()}


def drawn() -> Tensor:
    """What would be drawn next."""
    with torch.random.fork_rng([]):
        return torch.rand(3)


def held(value: Any) -> Any:
    if not hasattr(value, "local_shards"):
        return value.detach().clone()
    return [(shard.metadata.shard_offsets, shard.tensor.detach().clone()) for shard in value.local_shards()]


def _plan(model: nn.Module, kind: str) -> ShardingPlan:
    plan, world = {}, dist.get_world_size()
    for path, module in model.named_modules():
        if type(module) in SHARDERS:
            tables = module.embedding_bags if isinstance(module, EmbeddingBagCollection) else module.embeddings
            ways = {
                name: row_wise(compute_kernel="fused")
                if kind == "row-wise" and tables[name].weight.shape[0] >= world  # fewer rows are not split
                else table_wise(rank=number % world, compute_kernel="fused")
                for number, name in enumerate(tables)
            }
            plan[path] = construct_module_sharding_plan(
                module, ways, sharder=SHARDERS[type(module)], local_size=world, world_size=world, device_type="cpu"
            )
    return ShardingPlan(plan)


kept: list[Training] = []


def go_on_from_one(folder: Path) -> None:
    """Loads what one process has saved, and takes another step."""
    (training,) = kept
    found = {}
    training.checkpoints = Checkpoints(folder / "one", training.model, [training.optimizer])
    training.checkpoints.load()
    found["loaded"] = training.state()
    training.step(3)
    found["stepped"] = training.state()
    torch.save(found, folder / f"from-one-{dist.get_rank()}.pt")


def exchange(folder: Path) -> None:
    """Table-wise -> row-wise -> table-wise, each trained a little before it is saved; states go into files."""
    one = Training(folder / "table-wise", "table-wise", seed=1)
    one.step(0)
    one.checkpoints.save(1, {"batch": 1}, asynchronous=True)
    found: dict[str, Any] = {"saved": one.state()}
    found["loss"] = one.step(1)  # while the save is under way
    one.checkpoints.wait()

    two = Training(folder / "table-wise", "row-wise", seed=2)
    found["position"] = two.checkpoints.load().position
    found["loaded"] = two.state()
    found["loss again"] = two.step(1)
    two.checkpoints = Checkpoints(folder / "row-wise", two.model, [two.optimizer])
    two.checkpoints.save(2)
    found["saved again"] = two.state()

    three = Training(folder / "row-wise", "table-wise", seed=3)
    three.checkpoints.load()
    found["loaded again"] = three.state()
    three.model.module.head[1].p = 0.0
    three.step(2)
    found["stepped"] = three.state()
    kept[:] = [three]
    torch.save(found, folder / f"found-{dist.get_rank()}.pt")


def load_both(folder: Path) -> None:
    """Writes what one process finds in the checkpoints of two."""
    found = []
    for kind in ("table-wise", "row-wise"):
        training = Training(folder / kind, kind, seed=5)
        training.checkpoints.load()
        found.append(training.state())
    torch.save(found, folder / "in-one.pt")


FEW = ("FrequencyHash", "HashEmbedding")


def _settled(call) -> str:
    """What a call raised, as text."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def bad_input(folder: Path) -> dict[str, Any]:
    """Errors on rank 1 alone; every answer is what this rank heard of it."""
    rank = dist.get_rank()
    said: dict[str, Any] = {}
    good = Training(folder / "run", "table-wise", seed=1, names=FEW)
    good.step(0)
    good.checkpoints.save(1, {"batch": 1})

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    said["disk"] = _settled(lambda: good.checkpoints.save(2))
    said["disk, in the background"] = _settled(lambda: good.checkpoints.save(2, asynchronous=True))
    said["disk, in the background"] += _settled(good.checkpoints.wait)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    dist.barrier()  # rank 0 removes what was written
    said["left"] = sorted(path.name for path in (folder / "run").iterdir())
    said["position"] = _settled(lambda: good.checkpoints.save(2, {"batch": rank}))

    inside = Checkpoints(folder / "inside", good.model.module, [])
    said["not the whole"] = _settled(lambda: inside.save(1))

    embcomp.__version__, version = f"0.0.{rank}", embcomp.__version__
    said["version"] = _settled(lambda: good.checkpoints.save(2))
    embcomp.__version__ = version

    before = good.state()
    good.checkpoints.save(2, {"batch": 2, "loss": math.nan})  # the same on both, though NaN is not NaN
    if rank == 1:
        path = folder / "run" / "step-0000000002" / "__1_0.distcp"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        said["damage"] = (good.checkpoints.load().position, [str(warning.message) for warning in warned])
    after = good.state()
    said["as before"] = all(torch.equal(before[name], after[name]) for name in before if name.startswith("dense"))

    return said


def other_map(folder: Path) -> tuple[str, str]:
    """Rank 1 has another map, when saving and when loading."""
    model = EveryMethod(FEW)
    if dist.get_rank() == 1:
        encoder = model.collections["FrequencyHash"].branches["bags"].encoder.encoders["tags"]
        encoder.hot_ids.copy_(torch.tensor([0, 1, 2]))
    training = Training(folder / "other", "table-wise", seed=1, model=model)
    loading = Checkpoints(folder / "run", training.model, [training.optimizer])
    return _settled(lambda: training.checkpoints.save(1)), _settled(loading.load)


def die_in_a_save(folder: Path, asynchronous: bool) -> str:
    """Rank 1 is killed while it writes."""
    training = Training(folder, "table-wise", seed=1, names=FEW)
    training.checkpoints.save(1)
    if dist.get_rank() == 1:
        import embcomp.checkpoints.checkpoints as module

        module.write_parts = lambda *_: os.kill(os.getpid(), 9)

    def save() -> None:
        training.checkpoints.save(2, asynchronous=asynchronous)
        training.checkpoints.wait()

    return _settled(save)


def hang_before_a_save(folder: Path) -> str:
    """Rank 1 does not come before rank 0 has given up."""
    dist.barrier()  # they begin together
    checkpoints = Checkpoints(folder, nn.Linear(2, 2), timeout=timedelta(seconds=5))
    if dist.get_rank() == 1:
        while not (folder / "gave up").exists():
            time.sleep(0.05)
        return ""
    said = _settled(lambda: checkpoints.save(1))
    (folder / "gave up").touch()
    return said


def replicas(folder: Path) -> list[tuple[float, float]]:
    """FSDP2 saves, FSDP2 and DistributedDataParallel load -> losses of the next step, expected and found."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))

    def trained(seed: int, way: str):
        torch.manual_seed(seed)
        model = plain_model()
        wrapped = fully_shard(model, mesh=mesh) if way == "FSDP2" else nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        return wrapped, optimizer, Checkpoints(folder, wrapped, [optimizer])

    def step(model, optimizer) -> float:
        loss = model(torch.tensor([1, 2, 30 + dist.get_rank()])).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    model, optimizer, checkpoints = trained(0, "FSDP2")
    step(model, optimizer)
    checkpoints.save(1, asynchronous=True)
    state = {name: value.full_tensor() for name, value in model.state_dict().items() if hasattr(value, "full_tensor")}
    torch.save(state, folder / f"state-{dist.get_rank()}.pt")
    expected = step(model, optimizer)
    losses = []
    checkpoints.wait()
    for way in ("FSDP2", "DDP"):
        model, optimizer, checkpoints = trained(7, way)
        checkpoints.load()
        losses.append((expected, step(model, optimizer)))
    return losses


def plain_model() -> nn.Module:
    method = embcomp.UnifiedEmbedding(rows=33, chunk_dim=4)
    return nn.Sequential(embcomp.nn.CompressedEmbedding(100, 8, method), nn.Linear(8, 3))
