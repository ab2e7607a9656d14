"""The tensors that torch.distributed.checkpoint writes and reads: those of this process, sharded or not, by name."""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from embcomp.checkpoints.metadata import Planner, Reader
from embcomp.ranks import Ranks

_NOISE: dict[str, type[Warning]] = {
    "torch.distributed is disabled, unavailable or uninitialized": UserWarning,
    "Please use DTensor instead and we are deprecating ShardedTensor": FutureWarning,
}

Shapes = dict[str, tuple[torch.dtype, torch.Size] | None]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module that names are relative to, without DistributedDataParallel and torch.compile around it."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # pyright: ignore[reportAssignmentType]
        else:
            return model


def snapshot(tensors: dict[str, Any]) -> dict[str, Any]:
    """Copy tensors to the memory of the host, where training does not change them."""
    return {name: _copied(value) for name, value in tensors.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, ShardedTensor):
        on_cpu = all(shard.tensor.device.type == "cpu" for shard in value.local_shards())
        return copy.deepcopy(value) if on_cpu else value.cpu()
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    return copy.deepcopy(value)


def shapes(tensors: dict[str, Any]) -> Shapes:
    """Return the dtype and whole shape of each value; None for values that are not tensors."""
    return {name: _shape(value) for name, value in tensors.items()}


def _shape(value: Any) -> tuple[torch.dtype, torch.Size] | None:
    if isinstance(value, ShardedTensor):  # whose own `dtype` and `size` warn that it will go
        return value.metadata().tensor_properties.dtype, torch.Size(value.metadata().size)
    return (value.dtype, value.size()) if isinstance(value, Tensor) else None


def saved_shapes(path: Path) -> Shapes:
    """Return the shapes in a checkpoint."""
    entries = Reader(path).read_metadata().state_dict_metadata
    return {
        name: (value.properties.dtype, value.size) if isinstance(value, TensorStorageMetadata) else None
        for name, value in entries.items()
    }


def compare(saved: Shapes, here: Shapes) -> list[str]:
    """List the differences, a line for each tensor."""
    lines = []
    for name in sorted({*saved, *here}):
        if name not in here or name not in saved:
            lines.append(f"{name} is {'in the checkpoint' if name in saved else 'in the model'} alone")
        elif saved[name] != here[name] and not name.endswith("_extra_state"):
            lines.append(f"{name} is {_say(saved[name])} in the checkpoint, {_say(here[name])} in the model")
    return lines


def _say(shape: tuple[torch.dtype, torch.Size] | None) -> str:
    return "no tensor" if shape is None else f"{str(shape[0]).removeprefix('torch.')} {list(shape[1])}"


def write(tensors: dict[str, Any], path: Path, ranks: Ranks) -> None:
    """Write the tensors of all ranks into a folder.

    Raises:
        OSError: a disk is full, say; raised on all ranks, with the rank in its note.
        RuntimeError: another process is gone.
    """
    _quiet()
    nested: dict[str, Any] = {}  # "model.<name>" is written as {"model": {"<name>": ...}}, which readers expect
    for name, value in tensors.items():
        head, _, rest = name.partition(".")
        nested.setdefault(head, {})[rest] = value
    try:
        save(nested, storage_writer=_Writer(path), process_group=ranks.group, no_dist=not ranks.several)
    except CheckpointException as error:
        raise _plain(error) from None
    except (
        RuntimeError
    ) as error:  # not of our writing, which would be a CheckpointException: of the calls between ranks
        raise (ranks.gone(error) if ranks.several else error) from error


def read(tensors: dict[str, Any], path: Path, ranks: Ranks) -> None:
    """Fill the tensors from a folder, and replace other values in the dictionary. Raise the errors of `write`."""
    _quiet()
    try:
        load(
            tensors,
            storage_reader=Reader(path),
            planner=Planner(),
            process_group=ranks.group,
            no_dist=not ranks.several,
        )
    except CheckpointException as error:
        raise _plain(error) from None
    except RuntimeError as error:
        raise (ranks.gone(error) if ranks.several else error) from error


class _Writer(FileSystemWriter):
    def write_data(self, plan: Any, planner: Any) -> Any:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch.save hides what the disk has said
                raise error.__context__ from None
            raise


def _quiet() -> None:
    """Silence torch's warnings about itself: a missing process group, and torchrec's deprecated tensors."""
    for text, kind in _NOISE.items():
        # Only where something else comes first: each call makes Python show all other warnings again.
        if not any(known is not None and known.pattern == text for _, known, *_ in warnings.filters[: len(_NOISE)]):
            warnings.filterwarnings("ignore", text, kind)


def _plain(error: CheckpointException) -> Exception:
    """The error of one rank, in place of the report on all ranks."""
    rank, (failed, _) = min(error.failures.items())
    failed = failed if isinstance(failed, Exception) else RuntimeError(f"{type(failed).__name__}: {failed}")
    failed.add_note(f"on rank {rank}")
    return failed
