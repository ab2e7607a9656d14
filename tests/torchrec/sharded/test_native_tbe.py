"""Sharded tables on CPU under the optimizers that FBGEMM has on GPUs alone: as the fused tables of one process."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import LAMB, PartialRowWiseAdam

import embcomp
from embcomp.checkpoints import Checkpoints
from embcomp.torchrec import (
    CompressedEmbeddingBagCollection,
    CompressedEmbeddingCollection,
    fuse_,
    fused_optimizer,
    shard,
)
from experiments.processes.distributed import gathered_state
from experiments.studies.parity import batch
from tests.torchrec.batches import bag_tables, sequence_tables

PLAIN = EmbeddingBagConfig(name="plain", num_embeddings=12, embedding_dim=8, feature_names=["tag"])
CASES = {
    "momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}, {}),
    "decayed": (torch.optim.Adagrad, {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.1}, {}),
    "Adam": (torch.optim.Adam, {"lr": 0.05, "eps": 1e-3}, {"clip_grad_value": 0.05}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.05, "eps": 1e-3, "betas": (0.8, 0.9)}, {}),
    "PartialRowWiseAdam": (PartialRowWiseAdam, {"lr": 0.05, "eps": 1e-3}, {}),
    "LAMB": (LAMB, {"lr": 0.05, "eps": 1e-3}, {}),
}
STORES = ("shared", "users", "tags", "films", "plain")


def build() -> nn.ModuleDict:
    """Pooled and not, compressed and not."""
    torch.manual_seed(0)
    methods = {"films": embcomp.UnifiedEmbedding(rows=20, chunk_dim=4), "*": embcomp.DoubleHash(rows=6)}
    parts = {
        "bags": CompressedEmbeddingBagCollection(bag_tables(), methods),
        "sequences": CompressedEmbeddingCollection(sequence_tables(), {"*": embcomp.DoubleHash(rows=5)}),
        "plain": EmbeddingBagCollection(tables=[PLAIN]),
    }
    return nn.ModuleDict(parts)


def sharded(case: str, sharding: str, **more) -> nn.Module:
    kind, settings, clip = CASES[case]
    rows = {name: ParameterConstraints(sharding_types=[sharding]) for name in STORES}
    return shard(build(), optimizer=kind, optimizer_kwargs=settings, device="cpu", constraints=rows, **{**clip, **more})


def fused(case: str) -> nn.Module:
    kind, settings, clip = CASES[case]
    return fuse_(build(), optimizer=kind, optimizer_kwargs=settings, **clip)


def loss_of(parts: nn.ModuleDict, features) -> torch.Tensor:
    sequences = torch.cat([jagged.values().reshape(-1) for jagged in parts["sequences"](features).values()])
    pooled = [parts[name](features).values().reshape(-1) for name in ("bags", "plain")]
    return torch.cat([*pooled, sequences]).square().sum()


def step(model: nn.Module, number: int) -> None:
    """One batch; each of two processes sees a half, and the gradients are averaged over them."""
    rank = dist.get_rank()
    loss_of(model.module, batch(number, slice(4 * rank, 4 * rank + 4)).sparse).backward()


def rows_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The rows by name."""
    return {name: value.clone() for name, value in gathered_state(model.state_dict()).items()}


def trained(case: str, sharding: str) -> dict[str, torch.Tensor]:
    model = sharded(case, sharding)
    for number in range(3):
        step(model, number)
    return rows_of(model)


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_fused_tables_of_one(pair, case, sharding):
    model = fused(case)
    start = copy.deepcopy(model.state_dict())
    for number in range(3):
        (loss_of(model, batch(number, slice(8)).sparse) / 2).backward()
    expected = model.state_dict()
    for found in pair.run(trained, case, sharding):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
            assert not value.is_floating_point() or not torch.equal(value, start[name])


def saved(folder: Path) -> dict[str, torch.Tensor]:
    model = sharded("AdamW", "row_wise")
    for number in range(2):
        step(model, number)
    Checkpoints(folder, model, []).save(1)
    step(model, 2)
    return rows_of(model)


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    model = sharded("AdamW", "table_wise")
    Checkpoints(folder, model, []).load()
    step(model, 2)
    return rows_of(model)


def test_a_checkpoint_fits_another_sharding_and_one_process(pair, tmp_path):
    """Both moments and the count of each row, since the step after the checkpoint is the same."""
    expected, _ = pair.run(saved, tmp_path)
    for found in pair.run(loaded, tmp_path):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, msg=name)
    alone = fused("AdamW")
    handle = fused_optimizer(alone)
    Checkpoints(tmp_path, alone, [handle]).load()
    assert all(list(states) == ["exp_avg", "exp_avg_sq", "row_counter"] for states in handle.state.values())
    (loss_of(alone, batch(2, slice(8)).sparse) / 2).backward()
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(expected[name], value, rtol=1e-4, atol=1e-5, msg=name)


def overflows() -> list[str]:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    model = sharded("Adam", "row_wise", grad_scaler=scaler)
    scaler.scale(loss_of(model.module, batch(0, slice(4)).sparse)).backward()
    scaler.update(2.0**127)
    before = {**rows_of(model), **kept(model)}
    scaler.scale(64 * loss_of(model.module, batch(1, slice(4)).sparse)).backward()
    after = {**rows_of(model), **kept(model)}
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


def kept(model: nn.Module) -> dict[str, torch.Tensor]:
    """The shards of this rank of what the optimizer keeps."""
    found = {}
    for table, states in model.fused_optimizer.state_dict()["state"].items():
        for name, state in states.items():
            found |= {f"{table} {name} {i}": each.tensor.clone() for i, each in enumerate(state.local_shards())}
    return found


def test_a_step_that_overflows_moves_no_row_by_its_momentum(pair):
    assert pair.run(overflows) == [[], []]


def half() -> str:
    tables = [
        EmbeddingBagConfig(name="t", num_embeddings=9, embedding_dim=8, feature_names=["f"], data_type=DataType.FP16)
    ]
    try:
        shard(nn.ModuleDict({"c": EmbeddingBagCollection(tables=tables)}), optimizer=torch.optim.Adam, device="cpu")
    except ValueError as error:
        return str(error)
    return ""


def test_tables_of_half_precision_are_refused(pair):
    for said in pair.run(half):
        assert said.startswith(
            "FBGEMM has no adam on a CPU; take float32 tables, which embcomp trains itself; ['t'] have"
        )
