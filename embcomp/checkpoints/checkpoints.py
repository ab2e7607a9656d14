"""`Checkpoints`: everything that a training needs to continue exactly, saved by torch.distributed.checkpoint."""

import dataclasses
import functools
import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embcomp import nested
from embcomp.checkpoints.folder import (
    Folder,
    name_of,
    read_manifest,
    step_of,
    write_manifest,
)
from embcomp.checkpoints.parts import (
    check_parts,
    check_saved,
    go_back,
    load_states,
    restore_files,
    saved_states,
    states_now,
    taken,
    write_parts,
)
from embcomp.checkpoints.random_state import random_state, set_random_state
from embcomp.files import Damaged
from embcomp.manifest import checksums, files_below, verify
from embcomp.ranks import Ranks

_RANDOM = "random state"


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a training.

    Attributes:
        step: the step given to `Checkpoints.save`.
        position: the position in the data given to `Checkpoints.save`.
    """

    step: int
    position: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training in a folder, from which it continues exactly, in one process or many.

    A checkpoint holds the weights, the state and settings of the optimizers, the maps of the encoders, the random state
    of each process, the position in the data, and the given `parts`. It is a folder of torch.distributed.checkpoint: a
    checkpoint that two processes have saved under one sharding can be loaded by any number of processes, under another
    sharding, or into the same model unsharded. Supported models are plain modules, torchrec's DistributedModelParallel,
    DistributedDataParallel and FSDP2 (`fully_shard`).

    Every process makes the object and calls its methods, all in the same order. An error in one process is raised in
    all. The folder must be on a file system that all processes see.

    Args:
        folder: the folder of the checkpoints of this one training.
        model: the model to save, and to load in place.
        optimizers: the optimizers that train it, torch's or torchrec's, and `fused_optimizer(model)` after `fuse_`. The
            fused optimizers of a DistributedModelParallel are found without being given; each of the two kinds can load
            the state of the other. Without optimizers only weights and maps are loaded.
        parts: other parts of the training, by name. An object with `state_dict` and `load_state_dict` (a scheduler) is
            saved in the state of rank 0, and loaded on all ranks; its state must hold values (see
            `embcomp.nested.flatten`). A file or folder (a tokenizer, a map) is given by its path, and a copy of it is
            saved; loading restores it if it is missing, and refuses a different one. Bytes are saved and compared
            likewise.
        keep: the number of checkpoints to keep.
        timeout: the time to wait for a process that hangs, or has more to write. A process that dies is noticed at
            once.

    Raises:
        ValueError: `keep` is below 1, `timeout` is not positive, or the name of a part is not a plain word.
        TypeError: a part cannot be saved.

    Example:
        >>> import torch, embcomp
        >>> from embcomp.checkpoints import Checkpoints
        >>> model = embcomp.nn.CompressedEmbedding(1000, 8, embcomp.HashingTrick(rows=100))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> checkpoints = Checkpoints("training", model, [optimizer])
        >>> checkpoints.load() is None  # nothing there: a new training
        True
        >>> checkpoints.save(step=10, position={"epoch": 0, "batch": 10})
        >>> checkpoints.load()
        Progress(step=10, position={'epoch': 0, 'batch': 10})
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: nn.Module,
        optimizers: Sequence[Any] = (),
        *,
        parts: Mapping[str, Any] | None = None,
        keep: int = 2,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(f"keep must be an integer of at least 1, got {keep!r}")
        if timeout <= timedelta():
            raise ValueError(f"timeout must be positive, got {timeout!r}")
        self.folder = Folder(folder)
        self.model = model
        self.optimizers = list(optimizers)
        self.parts = check_parts(parts or {})
        self.keep = keep
        self._ranks = Ranks(timeout=timeout)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._pending: Future[None] | None = None
        self._known: set[str] = set()  # checkpoints of the folder that this training has saved, loaded or passed over

    def steps(self) -> list[int]:
        """Return the steps of the existing checkpoints, the newest first."""
        return list(dict.fromkeys(step_of(name) for name in self.folder.names()))

    def save(self, step: int, position: Mapping[str, Any] | None = None, *, asynchronous: bool = False) -> None:
        """Save a checkpoint. When it is complete, those beyond `keep`, and later ones that `load` skipped, are removed.

        Args:
            step: the number of the checkpoint, which must grow.
            position: the position in the data (epoch, batch, seed), the same on all ranks: numbers, texts, lists,
                tuples and dictionaries, which are restored exactly.
            asynchronous: True to copy everything in memory, and write it in the background. An error is raised by the
                next call of `save`, `load` or `wait`; call `wait` before the process ends.

        Raises:
            ValueError: the folder holds a checkpoint of this step or a later one, which has not been loaded, or the
                ranks differ in step, position, map, configuration or version of embcomp.
            TypeError: a state of a part holds more than values.
            OSError: the checkpoint cannot be written (a full disk, say); earlier checkpoints stay.
            RuntimeError: another process is gone, or has hung for `timeout`.
        """
        from embcomp.checkpoints.contents import Contents, check_alike, merged

        self.wait()
        contents = self._ranks.together(lambda: Contents(self.model, self.optimizers))
        every = self._ranks.gather(lambda: {**contents.described(), **_facts(step, position)})
        check_alike(every)
        tensors, parts, state = self._ranks.together(lambda: self._take(contents.tensors(), asynchronous))
        part = Path(self._ranks.broadcast(lambda: str(self._begin(step))))
        facts = {name: every[0][name] for name in ("step", "position", "version", "encoders")}
        facts |= {"torch": str(torch.__version__), "world_size": self._ranks.world_size}
        facts["optimizers"] = merged(each["optimizers"] for each in every)
        write = functools.partial(self._write, part, facts, tensors, parts, state)
        if asynchronous:
            self._pending = self._thread.submit(write)
        else:
            write()

    def wait(self) -> None:
        """Wait for a save in the background. Raise the errors of `save`."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def load(self, step: int | None = None, *, random: bool = True) -> Progress | None:
        """Load the newest sound checkpoint, or that of a step, into model, optimizers, parts and random generators.

        A damaged checkpoint is named in a warning, and the one before it is loaded. Nothing is changed before the
        checkpoint was found to be sound and to fit, and the parts have taken their states. No code in it is executed.

        Args:
            step: the step to load; by default the newest.
            random: True to also set the random generators of this process. A rank beyond those that saved keeps its own
                state.

        Returns:
            The progress of the training; None if the folder holds no checkpoint.

        Raises:
            ValueError: the checkpoint is of another model, map, configuration or optimizer; the text names the
                difference.
            Damaged: no checkpoint is sound (also a ValueError).
            FileNotFoundError: there is no checkpoint of this step.
        """
        from embcomp.checkpoints import storage
        from embcomp.checkpoints.contents import Contents, check_fits, some

        self.wait()
        checkpoint = self._find(step)
        if checkpoint is None:
            return None
        path, saved = checkpoint
        contents = self._ranks.together(lambda: Contents(self.model, self.optimizers))
        every = self._ranks.gather(lambda: contents.described(loading=True))
        shapes = self._ranks.together(lambda: storage.saved_shapes(path))
        if lines := check_fits(saved, shapes, every):
            raise ValueError(f"{path} is a checkpoint of another model: {some(lines)}")
        self._ranks.together(lambda: check_saved(path / "parts", self.parts))
        states = self._ranks.together(lambda: saved_states(path / "parts", self.parts))
        generators = self._ranks.together(lambda: _saved_random(path, self._ranks.rank)) if random else None
        before = self._ranks.together(lambda: states_now(self.parts))
        try:  # parts first: what is not ours may refuse
            self._ranks.together(lambda: load_states(self.parts, states))
            targets = self._ranks.together(lambda: contents.targets(saved, shapes))
            storage.read(targets, path, self._ranks)
        except BaseException:
            go_back(self.parts, before)
            raise
        self._ranks.together(lambda: contents.load(saved, targets))
        self._ranks.broadcast(lambda: restore_files(path / "parts", self.parts))
        if generators is not None:
            set_random_state(generators)
        self._known |= {name for name in self.folder.names() if step_of(name) >= saved["step"]}
        return Progress(saved["step"], saved["position"])

    def _find(self, step: int | None) -> tuple[Path, dict[str, Any]] | None:
        """The newest sound checkpoint and its manifest."""
        names = self._ranks.broadcast(self.folder.names)
        if step is not None:
            names = [name for name in names if step_of(name) == step]
            if not names:
                raise FileNotFoundError(f"{self.folder.path} holds no step {step}; it holds {self.steps()}")
        damaged: list[str] = []
        for name in names:
            path = self.folder.path / name
            try:
                saved = self._ranks.together(lambda path=path: self._verified(path))
            except Damaged as error:
                damaged.append(str(error))
                continue
            for text in damaged:
                warnings.warn(f"{text}; step {step_of(name)} is loaded instead", RuntimeWarning, stacklevel=3)
            return path, saved
        if damaged:
            raise Damaged(f"no checkpoint in {self.folder.path} is intact: {'; '.join(damaged)}; give another folder")
        return None

    def _verified(self, path: Path) -> dict[str, Any]:
        """The manifest, after this rank's share of the files has been compared with it."""
        saved = read_manifest(path)
        share = list(saved["files"].items())[self._ranks.rank :: self._ranks.world_size]
        verify(path, dict(share))
        return saved

    def _begin(self, step: int) -> Path:
        later = [name for name in self.folder.names() if step_of(name) >= step and name not in self._known]
        if later:
            raise ValueError(
                f"{self.folder.path} holds step {step_of(later[0])}, and step {step} is to be saved: load it first, or "
                "give another folder"
            )
        return self.folder.begin(step)

    def _take(self, found: dict[str, Any], copy: bool) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The data that this rank writes: tensors, parts (rank 0) and random state; with `copy` as a snapshot."""
        from embcomp.checkpoints.storage import snapshot

        return snapshot(found) if copy else found, taken(self.parts) if self._ranks.first else {}, random_state()

    def _write(
        self, part: Path, facts: dict[str, Any], found: dict[str, Any], parts: dict[str, Any], state: dict[str, Any]
    ) -> None:
        """Write into the folder `part`; publish it on success, remove it on failure."""
        from embcomp.checkpoints.contents import merged
        from embcomp.checkpoints.storage import write

        try:
            write(found, part, self._ranks)
            files = self._ranks.gather(lambda: self._write_own(part, parts, state))
            self._ranks.broadcast(lambda: self._complete(part, {**facts, "files": merged(files)}))
        except BaseException as error:
            if self._ranks.first:
                shutil.rmtree(part, ignore_errors=True)
            if isinstance(error, OSError):
                where = f" ({error.filename})" if error.filename else ""
                text = f"{error.strerror or error}{where}: step {facts['step']} was not saved in {self.folder.path}"
                raise OSError(error.errno, f"{text}; the steps {self.steps()} are unchanged") from error
            raise
        self._known.add(name_of(facts["step"]))

    def _write_own(self, part: Path, parts: dict[str, Any], state: dict[str, Any]) -> dict[str, list[Any]]:
        """Write this rank's own files; return the checksums of all files that it wrote."""
        rank = self._ranks.rank
        nested.save(part / _random_file(rank), _RANDOM, state)
        write_parts(part / "parts", parts)
        of_a_rank = re.compile(r"__(\d+)_.*|rank-(\d+)\.safetensors")
        names = [name for name in files_below(part) if not name.endswith(".part")]  # what another rank is writing
        owners = {name: of_a_rank.fullmatch(name) for name in names}
        mine = [name for name, match in owners.items() if int((match[1] or match[2]) if match else 0) == rank]
        return checksums(part, mine)

    def _complete(self, part: Path, facts: dict[str, Any]) -> None:
        write_manifest(part, facts)
        self.folder.publish(part, facts["step"])
        names = self.folder.names()
        later = [name for name in names if step_of(name) > facts["step"]]
        for name in [*later, *names[len(later) :][self.keep :]]:
            self.folder.remove(name)


def _facts(step: int, position: Mapping[str, Any] | None) -> dict[str, Any]:
    from embcomp import __version__

    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"step must be an integer of at least 0, got {step!r}")
    try:
        structure, tensors = nested.flatten(dict(position or {}), "position")
    except TypeError as error:
        raise ValueError(str(error)) from None
    if tensors:
        raise ValueError(f"position must hold numbers and texts, not tensors: {next(iter(tensors))}")
    return {"step": step, "position": nested.unflatten(structure, {}), "version": __version__}


def _random_file(rank: int) -> str:
    return f"rank-{rank}.safetensors"


def _saved_random(path: Path, rank: int) -> Any:
    """The random state of a rank; None if fewer ranks have saved than load."""
    for file in (path / _random_file(rank), path / f"rank-{rank}.pt"):
        if file.exists():
            return nested.load(file, _RANDOM)
    return None
