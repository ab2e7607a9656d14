"""`python -m experiments parity`: a comparison of training on two processes with training in one, for every method.

Both start from the same values and see the same batches; each of two processes gets one half of every batch. The single
process trains its tables by the optimizers of torch and torchrec outside the backward pass, so that the two trainings
share neither look-up nor update.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor, PoolingType
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.optimizers import in_backward_optimizer_filter

import embcomp
from data.batch import Batch
from embcomp.testing.examples import EXAMPLES
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection, shard
from embcomp.torchrec.contents import configs_of
from embcomp.torchrec.trainable import trained_collections
from experiments.processes.distributed import gathered_state
from experiments.processes.processes import Processes
from experiments.runs.results import RESULTS
from experiments.studies import study

EXPERIMENT = "sharded-parity"
TOLERANCE = 1e-6
FEATURES = {"user": 20, "friend": 20, "film": 33, "tag": 12}
BATCH, LONGEST = 8, 3
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"lr": 1.0}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 0.05, "eps": 1e-3}),
    "RowWiseAdagrad": (RowWiseAdagrad, {"lr": 0.05, "eps": 1e-3}),
    "Adam": (torch.optim.Adam, {"lr": 0.05, "eps": 1e-2}),
}
SHARDINGS = ("table_wise", "row_wise")
KINDS = ("bags", "sequences")


@dataclass(frozen=True)
class Case:
    """A comparison: an example of `embcomp.testing.examples` by name, pooled or id by id."""

    method: str
    kind: str
    sharding: str
    optimizer: str


@dataclass(frozen=True)
class Row:
    """The largest differences of a case: of the loss over all steps, of tables and dense weights at the end."""

    method: str
    kind: str
    sharding: str
    optimizer: str
    processes: int
    steps: int
    loss: float
    tables: float
    dense: float
    moved: float  # how far the tables have gone, for scale

    @property
    def worst(self) -> float:
        return max(self.loss, self.tables, self.dense)


_NAMES = [field.name for field in fields(Row)]


def cases(kinds: Iterable[str] = KINDS) -> Iterator[Case]:
    """Yield every method x sharding x optimizer."""
    for example, kind, sharding, optimizer in itertools.product(map(str, EXAMPLES), kinds, SHARDINGS, OPTIMIZERS):
        yield Case(example, kind, sharding, optimizer)


def run_all(
    results: Path | None, console: Console, processes: int, steps: int, force: bool = False
) -> tuple[Path, list[Row]]:
    """Compare all cases, or those that the file lacks; return the file and its rows.

    Each row has the versions that it was measured with; `force` measures all rows again.
    """
    path = (results or RESULTS) / EXPERIMENT / f"{processes}-processes.json"
    every = list(cases())
    settings = [{**asdict(case), "processes": processes, "steps": steps} for case in every]
    rows: list[dict[str, Any] | None] = [None] * len(every)
    if not force:
        rows = study.current_rows(path, settings)
    with Processes(processes) as group, Progress(console=console, transient=True) as bars:
        todo = [place for place, row in enumerate(rows) if row is None]
        for place in bars.track(todo, description=EXPERIMENT):
            rows[place] = study.stamped(asdict(group.run(compare, every[place], steps)[0]))
    measured = [row for row in rows if row is not None]
    study.write_rows(path, measured)
    return path, [Row(**{name: row[name] for name in _NAMES}) for row in measured]


def compare(case: Case, steps: int) -> Row:
    """Train the model of a case in this process, and over all processes of the group."""
    alone, outside, sharded, inside = twins(case)
    start = copy.deepcopy(alone.state_dict())
    losses = []
    for step in range(steps):
        mine = _step(sharded, inside, batch(step, share())).clone()
        dist.all_reduce(mine)
        expected = _step(alone, outside, batch(step, slice(BATCH)))
        losses.append((mine / dist.get_world_size() - expected).abs().item())
    gathered, expected = gathered_state(sharded.state_dict()), alone.state_dict()
    assert gathered.keys() == expected.keys()
    return Row(
        *asdict(case).values(),
        processes=dist.get_world_size(),
        steps=steps,
        loss=max(losses),
        tables=largest(gathered, expected, "model.collection."),
        dense=largest(gathered, expected, "model.head."),
        moved=largest(start, expected, "model.collection."),
    )


Optimizers = list[torch.optim.Optimizer]


def twins(case: Case) -> tuple[Training, Optimizers, DistributedModelParallel, Optimizers]:
    """Make a model and its optimizers in one process, and the same with the same values over all of the group."""
    torch.manual_seed(0)
    alone = Training(Model(_collection(case), case.kind))
    twin = copy.deepcopy(alone)
    kind, settings = OPTIMIZERS[case.optimizer]
    tables = [table for collection in trained_collections(twin, "shard") for table in configs_of(collection)]
    stores = {table.name for table in tables if _splits(table.num_embeddings, dist.get_world_size())}
    sharded = shard(
        twin,
        optimizer=kind,
        optimizer_kwargs={**settings, "lazy": False},  # as torch trains rows that no batch reads
        device="cpu",
        constraints={name: ParameterConstraints(sharding_types=[case.sharding]) for name in stores},
    )
    dense = dict(in_backward_optimizer_filter(sharded.named_parameters())).values()
    rows = {name: weight for name, weight in alone.named_parameters() if ".collection.embedding" in name}
    others = [weight for name, weight in alone.named_parameters() if name not in rows]  # codecs too
    outside = [kind(rows.values(), **settings), torch.optim.SGD(others, lr=0.05)]
    return alone, outside, sharded, [torch.optim.SGD(dense, lr=0.05), sharded.fused_optimizer]


def _splits(rows: int, processes: int) -> bool:
    """Return whether `shard` splits so many rows with any optimizer: one row for each process, or more for all."""
    block = -(-rows // processes)
    return rows >= processes and (block == 1 or rows % block != 1)


def share() -> slice:
    """Return the rows of a batch that belong to this process."""
    rank, number = dist.get_rank(), dist.get_world_size()
    return slice(BATCH * rank // number, BATCH * (rank + 1) // number)


def batch(seed: int, rows: slice) -> Batch:
    """Draw bags of 0 to 3 ids for each feature, and labels: some rows of a batch of `BATCH`."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, LONGEST + 1, (len(FEATURES), BATCH), generator=random)
    ids = torch.randint(0, min(FEATURES.values()), (len(FEATURES), BATCH, LONGEST), generator=random)
    labels = torch.randint(0, 2, (BATCH,), generator=random).float()
    there = torch.arange(LONGEST) < lengths.unsqueeze(-1)
    sparse = KeyedJaggedTensor(
        keys=list(FEATURES), values=ids[:, rows][there[:, rows]], lengths=lengths[:, rows].reshape(-1)
    )
    return Batch(torch.empty(labels[rows].numel(), 0), sparse, labels[rows], {})


class Training(nn.Module):
    """A module from a batch to its loss and logits, as torchrec's pipelines require."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.model(batch.sparse)
        return F.binary_cross_entropy_with_logits(logits, batch.label), logits.detach()


class Model(nn.Module):
    """A compressed collection and a small network after it."""

    def __init__(self, collection: nn.Module, kind: str) -> None:
        super().__init__()
        self.collection = collection
        keys = ["user@users", "friend", "film", "user@films", "tag"]
        self.pool = Pool(keys, kind)
        width = 8 * len(keys) + (16 if kind == "bags" else 0)
        self.head = nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        return self.head(self.pool(self.collection(features))).squeeze(1)


class Pool(nn.Module):
    """A module that puts bags, or summed sequences, side by side, which is one step when the model is traced."""

    def __init__(self, keys: list[str], kind: str) -> None:
        super().__init__()
        self.keys, self.kind = keys, kind

    def forward(self, result: Any) -> Tensor:
        if self.kind == "bags":
            return torch.cat([result[key] for key in self.keys], dim=1)
        return torch.cat([_sums(result[key]) for key in self.keys], dim=1)


def _sums(jagged: Any) -> Tensor:
    lengths, values = jagged.lengths(), jagged.values()
    bag = torch.repeat_interleave(torch.arange(lengths.numel()), lengths)
    return values.new_zeros(lengths.numel(), values.shape[1]).index_add(0, bag, values)


def _collection(case: Case) -> nn.Module:
    names = {"users": ["user", "friend"], "films": ["film", "user"], "tags": ["tag"]}
    sizes = {name: FEATURES[features[0]] for name, features in names.items()}
    widths = {"users": 8, "films": 16 if case.kind == "bags" else 8, "tags": 8}
    tables = [embcomp.Table(name, sizes[name], widths[name]) for name in names]
    example = next(example for example in EXAMPLES if str(example) == case.method)
    method = {"*": example.make(tables)}
    settings = [
        {
            "name": t.name,
            "num_embeddings": sizes[t.name],
            "embedding_dim": t.embedding_dim,
            "feature_names": names[t.name],
        }
        for t in tables
    ]
    if case.kind == "sequences":
        return CompressedEmbeddingCollection([EmbeddingConfig(**each) for each in settings], method)
    pooling = {"films": PoolingType.MEAN}
    configs = [EmbeddingBagConfig(**each, pooling=pooling.get(each["name"], PoolingType.SUM)) for each in settings]
    return CompressedEmbeddingBagCollection(configs, method)


def _step(model: nn.Module, optimizers: Optimizers, batch: Batch) -> Tensor:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss, _ = model(batch)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.detach()


def largest(gathered: dict[str, Tensor], expected: dict[str, Tensor], prefix: str) -> float:
    """Return the largest difference between two states, among the weights whose names have this prefix."""
    names = [name for name in expected if name.startswith(prefix) and expected[name].is_floating_point()]
    return max((gathered[name] - expected[name]).abs().max().item() for name in names)
