"""`shard`: a model with compressed tables on several processes, with torchrec's engine."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.proposers import GreedyProposer, UniformProposer
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.modules.embedding_configs import DataType

from embcomp.holders import Spread, holders, sharded
from embcomp.methods.base import Encoder
from embcomp.ranks import Ranks
from embcomp.torchrec.contents import configs_of
from embcomp.torchrec.fused.fbgemm import check_fbgemm_scale, fbgemm_lacks
from embcomp.torchrec.fused.loss_scale import LossScale, Scaler
from embcomp.torchrec.fused.settings import optimizer_settings
from embcomp.torchrec.holders import IntegerHolder
from embcomp.torchrec.sharded.constraints import is_native, make_sharders, table_constraints
from embcomp.torchrec.sharded.native_tbe import NativeTbe, native_tbe
from embcomp.torchrec.sharded.same_on_ranks import check_same, facts_of
from embcomp.torchrec.trainable import plain_collections, trained_collections

_BLOCK = 1 << 24  # values that are sent at a time: 64 MB of float32


def shard(
    model: nn.Module,
    *,
    optimizer: type[torch.optim.Optimizer],
    optimizer_kwargs: Mapping[str, Any] | None = None,
    device: torch.device | str,
    pg: dist.ProcessGroup | None = None,
    constraints: Mapping[str, ParameterConstraints] | None = None,
    grad_scaler: Scaler = None,
    clip_grad_value: float | None = None,
) -> DistributedModelParallel:
    """Spread the torchrec collections of a model, compressed or not, over the processes of a group.

    Every rank calls it with the same model. The tables are sharded table-wise or row-wise, as torchrec's planner
    chooses, and `optimizer` updates them inside the backward pass. All other parameters are replicated and trained by
    your own optimizer, with averaged gradients; encoders keep their maps on every rank. Current values are kept: those
    of rank 0. Tables on the meta device are drawn by their `init_fn`, differently on each rank. A collection whose
    tables are all frozen stays whole on every rank.

    Args:
        model: the model with torchrec collections; its modules are taken over, so use only the result.
        optimizer: the class of the optimizer, one of those of `fuse_`.
        optimizer_kwargs: the settings of the optimizer, as in `fuse_`. On a GPU FBGEMM updates the tables, and settings
            that it ignores are refused; on CPU embcomp's engine updates them if FBGEMM does not support the settings.
        device: the device of this rank, "cpu" or "cuda:<n>".
        pg: the process group, by default that of all processes.
        constraints: constraints for the planner, by the name of the inner table (a `UnifiedEmbedding` has "shared").
        grad_scaler: the `torch.amp.GradScaler` that scales this rank's loss, if any. The gradients that reach this
            rank's rows are divided by its scale; if gradients are not finite on any rank, no rank changes rows of that
            collection in this step. False asserts that the loss is not scaled, although other models of the process use
            a scaler.
        clip_grad_value: the largest magnitude of a value in the gradient of a row, as in `fuse_`; on CPU. There is no
            `clip_grad_norm`: no rank sees the gradient of a whole table.

    Returns:
        The sharded model. Its `fused_optimizer` holds the state and learning rate of the tables.

    Raises:
        ValueError: raised on every rank, with the model unchanged: a rank has another version of embcomp, model,
            configuration, map or setting (the text names it and the remedy); the optimizer or a sharding cannot train
            these tables; there is no collection to shard; or the model is already sharded or fused. The backward pass
            raises if a scaler is in use that `grad_scaler` does not name.
        RuntimeError: there is no process group, or another process is gone.

    Example:
        >>> import torch, torch.distributed as dist
        >>> import embcomp
        >>> from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.optim import RowWiseAdagrad
        >>> from embcomp.torchrec import CompressedEmbeddingBagCollection, shard
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun: no arguments
        >>> tables = [EmbeddingBagConfig(name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"])]
        >>> collection = CompressedEmbeddingBagCollection(tables, {"*": embcomp.HashingTrick(rows=100)})
        >>> model = torch.nn.ModuleDict({"embeddings": collection})
        >>> model = shard(model, optimizer=RowWiseAdagrad, optimizer_kwargs={"lr": 0.1}, device="cpu")
        >>> batch = KeyedJaggedTensor.from_lengths_sync(["item"], torch.tensor([3, 5]), torch.tensor([1, 1]))
        >>> model.module["embeddings"](batch)["item"].shape
        torch.Size([2, 8])
        >>> dist.destroy_process_group()
    """
    group = _group(pg)
    device = torch.device(device)
    loss_scale = LossScale(grad_scaler, "shard", group if group.size() > 1 else None)

    def prepare():
        settings = optimizer_settings(optimizer, optimizer_kwargs, "shard", clip_grad_value)
        tables = _tables(model)
        native = is_native(settings, device)
        halves = [table.name for table in tables if table.data_type != DataType.FP32]
        if native and halves:
            raise ValueError(f"{fbgemm_lacks(settings, on_gpu=False)}; {halves} have another data type")
        if not native:
            check_fbgemm_scale(settings, loss_scale)
        rows: dict[str, int] = {}
        for table in tables:  # two collections may have tables of one name
            rows[table.name] = min(table.num_embeddings, rows.get(table.name, table.num_embeddings))
        limits = table_constraints(rows, constraints, settings, group.size())
        said = {f"constraints of {name!r}": limit for name, limit in limits.items()}
        facts = facts_of(model, {"optimizer": settings, "device": device.type, **said})
        return make_sharders(settings, device), limits, facts, native

    ranks = Ranks(group)
    sharders, limits, facts, native = ranks.together(prepare)
    check_same(ranks, facts)
    plan = ranks.broadcast(lambda: _plan(model, sharders, limits, device, group))
    with native_tbe() if native else contextlib.nullcontext():
        parallel = _shard(model, plan, sharders, device, group)
    _unscale(parallel, loss_scale)
    return parallel


def _group(pg: dist.ProcessGroup | None) -> dist.ProcessGroup:
    if not dist.is_initialized():
        raise RuntimeError("shard needs a process group: start with torchrun, and call init_process_group first")
    group = pg or dist.group.WORLD
    assert group is not None
    return group


def _tables(model: nn.Module) -> list[Any]:
    """The trained tables of the model. Raise ValueError if there are none, or if one cannot be sharded."""
    for holder in holders(model, opened=lambda holder: holder.form in ("plain", "compressed")):
        path = holder.paths[0]
        if isinstance(holder, IntegerHolder):
            raise ValueError(
                f"cannot shard {list(holder.tables)}: rows without a float copy (copy='none') are trained in one "
                "process, by fuse_; for shard take copy='float'"
            )
        if holder.form == "fused":
            raise ValueError(f"{path!r} is fused: give shard the model as it is before fuse_, which is for one process")
        if isinstance(holder, Spread) and holder.sharded:
            raise ValueError(f"{path!r} is sharded already")
    owned = [name for name, weight in model.named_parameters() if hasattr(weight, "_optimizer_classes")]
    if owned:
        raise ValueError(f"{owned} have an optimizer in the backward pass already: leave it to shard")
    tables = [config for collection in trained_collections(model, "shard") for config in configs_of(collection)]
    if not tables:
        raise ValueError("shard found no torchrec collection to train inside the model")
    odd = {config.name: config.embedding_dim for config in tables if config.embedding_dim % 4}
    if odd:
        raise ValueError(f"FBGEMM reads rows whose width is a multiple of 4, got {odd}; choose other widths")
    return tables


def _plan(
    model: nn.Module,
    sharders: list[Any],
    constraints: dict[str, ParameterConstraints],
    device: torch.device,
    group: dist.ProcessGroup,
) -> ShardingPlan:
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    topology = Topology(
        world_size=group.size(),
        local_world_size=get_local_size(group.size()),
        compute_device=device.type,
        hbm_cap=memory,
        created_by_factory=True,  # else it warns
    )
    # Not the exhaustive search, which is the default too: with two choices per table it takes minutes.
    proposers = [GreedyProposer(), GreedyProposer(use_depth=False), UniformProposer()]
    planner = EmbeddingShardingPlanner(
        topology=topology,
        constraints=constraints,
        proposer=proposers,
        storage_reservation=FixedPercentageStorageReservation(0.15),
        debug=False,
    )
    return planner.plan(model, sharders)


def _shard(
    model: nn.Module, plan: ShardingPlan, sharders: list[Any], device: torch.device, group: dist.ProcessGroup
) -> DistributedModelParallel:
    rows = dict(_rows(model))
    env = ShardingEnv.from_process_group(group)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), warnings.catch_warnings():
        # Ranks mostly start from one seed; tables without values must not get the same rows on each.
        torch.manual_seed(torch.initial_seed() + 1 + group.rank())
        dmp = DistributedModelParallel(model, env, device, plan, sharders, init_data_parallel=False)
        dmp.module.to(device)
        state = dmp.state_dict()
        for name in list(rows):
            _fill(state[name], rows.pop(name), device, group)
        held = list(_replicated(dmp.module))
        for tensor in held:
            _broadcast(tensor, group)
        if any(tensor.requires_grad for tensor in held):  # else there is nothing for DDP to do, which it refuses
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # torchrec's call
            dmp.init_data_parallel()
    return dmp


def _unscale(model: nn.Module, loss_scale: LossScale) -> None:
    """Remove the scale of the loss from gradients that reach the rows of this rank."""

    def unscaled(lookup: nn.Module, features: Any, values: Tensor) -> Tensor:
        return loss_scale.unscaled(values, overflow=torch.nan if native else 0.0)

    modules: list[Any] = [holder.module for holder in sharded(model)]
    lookups: list[nn.Module] = [lookup for module in modules for lookup in module._lookups]
    native = [submodule for lookup in lookups for submodule in lookup.modules() if isinstance(submodule, NativeTbe)]
    for tables in native:
        tables.leave_out_overflows(loss_scale.scales)
    for lookup in lookups:
        lookup.register_forward_hook(unscaled)


def _rows(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tables that have values, by state-dict name."""
    for holder in plain_collections(model):
        for name, weight in holder.module.named_parameters(prefix=holder.paths[0]):
            if weight.requires_grad and not weight.is_meta:
                yield name, weight.detach()


def _fill(target: Any, rows: Tensor, device: torch.device, group: dist.ProcessGroup) -> None:
    """Write the rows of rank 0 into the shards of a table, block by block, so that no device holds all of them."""
    height = max(1, _BLOCK // rows.shape[1])
    for start in range(0, rows.shape[0], height):
        own = rows[start : start + height]
        block = own.to(device) if group.rank() == 0 else torch.empty_like(own, device=device)
        dist.broadcast(block, group_src=0, group=group)
        for shard in target.local_shards():
            (row, column), (_, width) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
            begin, end = max(row, start), min(row + shard.tensor.shape[0], start + block.shape[0])
            if begin < end:
                values = block[begin - start : end - start, column : column + width]
                shard.tensor.detach()[begin - row : end - row].copy_(values)


def _replicated(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and buffers that each rank holds, without those of encoders, which are equal already."""
    apart = {submodule for holder in sharded(module) for submodule in holder.module.modules()}
    for submodule in module.modules():
        if submodule not in apart:
            yield from submodule.parameters(recurse=False)
            if not isinstance(submodule, Encoder):
                yield from submodule.buffers(recurse=False)


def _broadcast(tensor: Tensor, group: dist.ProcessGroup) -> None:
    """Copy the values of rank 0 to all ranks, as bytes, because gloo does not support every dtype."""
    values = tensor.detach()
    flat = values.reshape(-1).contiguous()
    dist.broadcast(flat.view(torch.uint8), group_src=0, group=group)
    values.copy_(flat.view_as(values))
