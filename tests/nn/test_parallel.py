"""The drop-ins under DDP and FSDP2: two processes train as one, for every method."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import embcomp
from embcomp.testing.examples import EXAMPLES
from tests.parts import PARTS

BATCH = 8
TABLES = [embcomp.Table("users", 20, 8), embcomp.Table("films", 33, 16)]


class Model(nn.Module):
    """An embedding, bags, and a layer after them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        example = next(example for example in EXAMPLES if str(example) == name)
        model = nn.ModuleDict({"users": nn.Embedding(20, 8), "films": nn.EmbeddingBag(33, 16, mode="sum")})
        embcomp.compress_(model, {"*": example.make(TABLES)})
        self.users, self.films = model["users"], model["films"]
        self.head = nn.Linear(24, 1)

    def forward(self, users, films):
        return torch.tanh(self.head(torch.cat([self.users(users), self.films(films)], dim=1))).squeeze(1)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("example", PARTS, ids=str)
def test_two_processes_train_as_one(pair, example, kind):
    for difference, moved in pair.run(train, str(example), kind):
        assert difference < 1e-6
        assert moved > 1e-3


def train(name: str, kind: str, steps: int = 4) -> tuple[float, float]:
    """The largest difference of a weight from one process, and how far weights have gone."""
    torch.manual_seed(0)
    alone = Model(name)
    start = copy.deepcopy(alone.state_dict())
    spread = wrap(copy.deepcopy(alone), kind)
    optimizers = [torch.optim.Adagrad(model.parameters(), lr=0.05, eps=1e-3) for model in (alone, spread)]
    rank, number = dist.get_rank(), dist.get_world_size()
    mine = slice(BATCH * rank // number, BATCH * (rank + 1) // number)
    for step in range(steps):
        random = torch.Generator().manual_seed(step)
        users = torch.randint(0, 20, (BATCH,), generator=random)
        films = torch.randint(0, 20, (BATCH, 3), generator=random)
        target = torch.rand(BATCH, generator=random)
        for model, optimizer, rows in zip((alone, spread), optimizers, (slice(BATCH), mine), strict=True):
            optimizer.zero_grad()
            (model(users[rows], films[rows]) - target[rows]).square().mean().backward()
            optimizer.step()
    expected = dict(alone.named_parameters())
    found = {name.removeprefix("module."): whole(weight) for name, weight in spread.named_parameters()}
    assert found.keys() == expected.keys()
    return (
        max((found[name] - weight).abs().max().item() for name, weight in expected.items()),
        max((start[name] - weight).abs().max().item() for name, weight in expected.items()),
    )


def wrap(model: nn.Module, kind: str) -> nn.Module:
    if kind == "ddp":
        return DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if kind == "fsdp, tables in one call":
        fully_shard([model.users, model.films], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(weight: torch.Tensor) -> torch.Tensor:
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def shared() -> nn.ModuleDict:
    model = nn.ModuleDict({"users": nn.Embedding(20, 8), "films": nn.EmbeddingBag(33, 8, mode="sum")})
    embcomp.compress_(model, {"*": embcomp.UnifiedEmbedding(rows=9, chunk_dim=4)})
    return model


def wrapped_apart() -> list[str]:
    """What is said of look-ups in a table whose rows another one has sharded."""
    model, said = shared(), []
    wrap(model["users"], "fsdp")
    for call in (
        lambda: model["films"](torch.tensor([[1, 2]])),
        lambda: model["films"].materialize(),
    ):
        try:
            call()
            said.append("")
        except ValueError as error:
            said.append(str(error))
    return said


def test_fsdp_around_one_of_the_tables_that_share_rows_is_refused(pair):
    for said in pair.run(wrapped_apart):
        assert len(said) == 2
        for text in said:
            assert "sharded by fully_shard on another table" in text
            assert "fully_shard([model.user, model.item])" in text


def test_fsdp_around_the_tables_that_share_rows_together(pair):
    unified = next(str(example) for example in EXAMPLES if str(example).startswith("UnifiedEmbedding"))
    for difference, moved in pair.run(train, unified, "fsdp, tables in one call"):
        assert difference < 1e-6
        assert moved > 1e-3
