"""`shard` under a GradScaler: two processes train as without one, or the scaler is named on every rank."""

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.planner import ParameterConstraints
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

import embcomp
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection, shard
from experiments.processes.distributed import gathered_state
from experiments.studies.parity import batch
from tests.torchrec.batches import bag_tables, sequence_tables

PLAIN = EmbeddingBagConfig(name="plain", num_embeddings=12, embedding_dim=8, feature_names=["tag"])
STEPS = (0, 1)
KEYS = ["user@users", "friend", "film", "user@films", "tag"]


def sharded(**settings) -> nn.Module:
    """Pooled and not, compressed and not, rows drawn alike."""
    torch.manual_seed(0)
    methods = {"films": embcomp.UnifiedEmbedding(rows=20, chunk_dim=4), "*": embcomp.DoubleHash(rows=6)}
    parts = {
        "bags": CompressedEmbeddingBagCollection(bag_tables(), methods),
        "sequences": CompressedEmbeddingCollection(sequence_tables(), {"*": embcomp.DoubleHash(rows=5)}),
        "plain": EmbeddingBagCollection(tables=[PLAIN]),
    }
    settings = {"optimizer": torch.optim.SGD, "optimizer_kwargs": {"lr": 0.125}, "device": "cpu", **settings}
    return shard(nn.ModuleDict(parts), **settings)


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    features = batch(step, slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)).sparse
    parts = model.module
    sequences = torch.cat([jagged.values().reshape(-1) for jagged in parts["sequences"](features).values()])
    pooled = [parts[name](features).values().reshape(-1) for name in ("bags", "plain")]
    return torch.cat([*pooled, sequences]).square().sum()


def rows(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in gathered_state(model.state_dict()).items()}


def trained(scaled: bool) -> dict[str, torch.Tensor]:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    model = sharded(grad_scaler=scaler if scaled else False)
    before = rows(model)
    for step in STEPS:
        loss = loss_of(model, step)
        (scaler.scale(loss) if scaled else loss).backward()
    after = rows(model)
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("weight"))
    return after


def test_tables_train_as_without_a_scaler(pair) -> None:
    for ours, theirs in zip(pair.run(trained, True), pair.run(trained, False), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, msg=name)


def overflows() -> list[str]:
    """The tables that a step with gradients that are not finite has changed."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    model = sharded(grad_scaler=scaler)
    before = rows(model)
    scaler.scale(64 * loss_of(model, 0)).backward()
    after = rows(model)
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


def test_a_step_that_overflows_changes_no_row(pair) -> None:
    assert pair.run(overflows) == [[], []]


def overflows_on_one_rank() -> list[str]:
    """The tables of `bags` that have changed after a step whose gradients overflow for one feature of one rank."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    whole = {name: ParameterConstraints(sharding_types=["table_wise"]) for name in ("users", "tags", "shared")}
    model = sharded(grad_scaler=scaler, constraints=whole)
    before = rows(model)
    features = batch(0, slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)).sparse
    pooled = model.module["bags"](features)
    large = {KEYS[0]: 2.0**40} if dist.get_rank() else {}
    scaler.scale(sum(large.get(key, 1.0) * pooled[key].sum() for key in KEYS)).backward()
    after = rows(model)
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


def test_a_step_that_overflows_on_one_rank_changes_no_row_on_any(pair) -> None:
    """As of dense parameters, whose gradients are averaged before the scaler looks at them."""
    assert pair.run(overflows_on_one_rank) == [[], []]


def unnamed() -> tuple[str, list[str]]:
    scaler = torch.amp.GradScaler("cpu")
    model = sharded()
    before, said = rows(model), ""
    try:
        scaler.scale(loss_of(model, 0)).backward()
    except ValueError as error:
        said = str(error)
    after = rows(model)
    return said, [name for name, value in before.items() if not torch.equal(value, after[name])]


def test_a_scaler_that_was_not_named_is_an_error_on_every_rank(pair) -> None:
    for said, changed in pair.run(unnamed):
        assert "scales a loss by 65536" in said
        assert "shard(..., grad_scaler=scaler)" in said
        assert changed == []
