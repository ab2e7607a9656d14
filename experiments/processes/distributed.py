"""The runs on several processes: each process reads its share of every batch, and the result is that of one process.

`torchrun --nproc-per-node N -m experiments run FILE` starts them. The tables of a run with a fused optimizer are
sharded by `embcomp.torchrec.shard`. Runs whose optimizer holds the tables, retrieval runs and runs on behavior
sequences keep them on every process and average their gradients. Without torchrun there is one process, and the
functions here do nothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from embcomp.ranks import Ranks
from experiments.errors import InputError

TIMEOUT = timedelta(seconds=60)  # for a process that hangs; one that dies is noticed at once


class Lost(RuntimeError):
    """One of several processes has ended, by an error of its own or because another one has gone."""

    def __init__(self, text: str) -> None:
        super().__init__(
            f"process {rank()} of {size()} has ended: {text}\nWhere it has lost the connection or waited in vain, see "
            "what another process says. The same command continues from the last checkpoint."
        )


def start(device: str) -> str:
    """Join the group of torchrun, if it has started this process; return the device of this process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # torchrec's calls
    dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", timeout=TIMEOUT)
    return device


def stop() -> None:
    """Leave the group, once all processes have called this."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share() -> tuple[int, int]:
    """Return this process's part of every batch: part `rank` of `size`."""
    return rank(), size()


def agreed(value: Any) -> Any:
    """Return the value of the first process, on all of them."""
    if size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def mean_(value: Tensor) -> None:
    """Replace a tensor by its mean over processes, in place."""
    if size() > 1:
        dist.all_reduce(value)
        value /= size()


def gathered(rows: Tensor) -> Tensor:
    """Return the rows of all processes, one after the other."""
    if size() == 1:
        return rows
    parts: list[Any] = [None] * size()
    dist.all_gather_object(parts, rows)
    return torch.cat(parts)


def sum_(value: Tensor) -> None:
    """Replace a tensor by its sum over processes, in place."""
    if size() > 1:
        dist.all_reduce(value)


def weighed(mean: Tensor, rows: int, total: int) -> Tensor:
    """Weight a mean over `rows` of this process, so that the mean over processes is that over all `total` rows."""
    return mean if size() == 1 else mean * (rows * size() / total)


class _Gather(torch.autograd.Function):
    """The rows of all processes, the same number of each, with gradients of a loss that all processes compute alike."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        # The mean over processes, which is taken of the parameters' gradients, is to be the sum of all parts.
        return grads[0].chunk(size())[rank()] * size()


def gathered_rows(rows: Tensor, total: int) -> Tensor:
    """Return the first `total` rows of all processes, with gradients; the last process may hold padding."""
    return rows if size() == 1 else _Gather.apply(rows)[:total]  # type: ignore[no-any-return,index]


class Parallel(nn.Module):
    """A model over all processes, whose state dict is that of one process."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Any) -> Any:
        return self.inner(*inputs)

    def look_up(self, *inputs: Any) -> Any:
        """Look up in a retrieval model, which is replicated."""
        return self.inner(*inputs, method="look_up")

    def examples(self, *inputs: Any) -> Any:
        """Return the examples of a sequence model, which is replicated."""
        return self.inner(*inputs, method="examples")

    def _whole(self) -> nn.Module:
        replicated = isinstance(self.inner, nn.parallel.DistributedDataParallel)
        return self.inner.module.model if replicated else self.inner  # type: ignore[return-value,union-attr]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return gathered_state(self._whole().state_dict())

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        mine = self._whole().state_dict()
        if mine.keys() != state_dict.keys():
            raise ValueError("the state has other names")
        fill_state(mine, state_dict)


class _Methods(nn.Module):
    """A module whose `forward`, which DistributedDataParallel watches, calls any method of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any, method: str = "__call__") -> Any:
        return getattr(self.model, method)(*inputs)


def local(model: nn.Module) -> nn.Module:
    """Return the model inside `Parallel`: itself if it is replicated, else torchrec's DistributedModelParallel."""
    return model._whole() if isinstance(model, Parallel) else model


def spread(
    model: nn.Module, device: torch.device, fused: tuple[type[Optimizer], Mapping[str, Any]] | None
) -> tuple[Parallel, list[Any]]:
    """Return the model over all processes, and the optimizers of its sharded tables.

    Args:
        model: the model, the same on every process.
        device: the device of this process.
        fused: the optimizer of the tables and its settings; None keeps whole tables on every process.

    Raises:
        InputError: tables cannot be sharded, or processes differ.
    """
    from embcomp.torchrec import shard
    from embcomp.torchrec.sharded.same_on_ranks import check_same, facts_of

    try:
        if fused is None:
            check_same(Ranks(timeout=TIMEOUT), facts_of(model, {}))
            # Maps and graphs are the same everywhere, then, and stay as they are.
            changing = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
            return Parallel(nn.parallel.DistributedDataParallel(_Methods(model), broadcast_buffers=changing)), []
        optimizer, settings = fused
        sharded = shard(model, optimizer=optimizer, optimizer_kwargs=settings, device=device)
    except ValueError as error:
        raise InputError(str(error)) from error
    return Parallel(sharded), [sharded.fused_optimizer]


@dataclass(frozen=True)
class _Shards:
    """The parts of a tensor that one process holds."""

    size: tuple[int, ...]
    parts: list[tuple[tuple[slice, ...], Tensor]]


def gathered_state(state: Any) -> Any:
    """Return nested state with whole tensors, the same on every process, from all of them; their names may differ."""
    everyone: list[Any] = [None] * size()
    dist.all_gather_object(everyone, _portable(state))
    return _merged(everyone)


def _portable(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {name: _portable(value) for name, value in state.items()}
    if not hasattr(state, "local_shards"):
        return state if rank() == 0 else None  # the same everywhere
    parts = [(_place(shard), shard.tensor.detach().cpu().clone()) for shard in state.local_shards()]
    return _Shards(tuple(state.metadata().size), parts)


def _merged(everyone: list[Any]) -> Any:
    first = everyone[0]
    if isinstance(first, Mapping):
        names = dict.fromkeys(name for state in everyone for name in state)
        return {name: _merged([state[name] for state in everyone if name in state]) for name in names}
    if not isinstance(first, _Shards):
        return first
    parts = [part for shards in everyone for part in shards.parts]
    whole = torch.empty(first.size, dtype=parts[0][1].dtype)
    for index, part in parts:
        whole[index] = part
    return whole


def fill_state(state: Any, saved: Any) -> None:
    """Write whole tensors into nested state, of which this process may hold shards."""
    if isinstance(state, Mapping):
        for name, value in state.items():
            fill_state(value, saved[name])
    elif hasattr(state, "local_shards"):
        for shard in state.local_shards():
            shard.tensor.detach().copy_(saved[_place(shard)])
    elif isinstance(state, Tensor):
        state.copy_(saved)


def _place(shard: Any) -> tuple[slice, ...]:
    spans = zip(shard.metadata.shard_offsets, shard.metadata.shard_sizes, strict=True)
    return tuple(slice(begin, begin + length) for begin, length in spans)
