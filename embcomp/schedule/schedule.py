"""The stages of methods that change while a model is trained: search, choose, train."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

import embcomp.schedule.bit_stages
import embcomp.schedule.mask_stages
import embcomp.schedule.width_stages  # noqa: F401 (they register their stages)
from embcomp.codecs.base import Codec
from embcomp.holders import Held, Holder, Spread, holders
from embcomp.methods.clustered_hash import ClusteredEncoder
from embcomp.methods.hot_rows import OwnersEncoder
from embcomp.nn.table import CompressedTable
from embcomp.schedule.held_out import HeldOutTurns, evaluating
from embcomp.schedule.hot_tracker import HotTracker
from embcomp.schedule.reclustering import recluster_
from embcomp.schedule.stages import Site, TableStages, stages_of
from embcomp.settings import Within, checked

UNTIL = 0.75
"""The share of the epochs after which tables are clustered, as in the paper of `ClusteredHash`."""


class _MovingRows(TableStages):
    """The stages of a table of `HotRows`: rows move to other owners every few steps."""

    def __init__(self, site: Site) -> None:
        self._tracker = HotTracker(site.module, table=site.table, optimizer=site.optimizer)

    def step(self, done: int) -> None:
        self._tracker.step()

    def state_dict(self) -> dict[str, Any]:
        return self._tracker.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._tracker.load_state_dict(state)

    def close(self) -> None:
        self._tracker.close()


class _Clusters(TableStages):
    """The stages of a table of `ClusteredHash`: it is clustered after the epochs of the first part of the training."""

    def __init__(self, site: Site) -> None:
        self._site = site
        if any(store.codec is not None for store in site.held.stores.values()):
            raise ValueError(
                f"table {site.name!r}: ClusteredHash is clustered again in training, for which its rows must be "
                "floats; take it without the method around it"
            )

    def epoch_ended(self, done: int) -> None:
        site = self._site
        if done <= UNTIL * site.epochs and not site.frozen:
            recluster_(site.module, table=site.table, optimizer=site.optimizer)


@stages_of.register
def _(part: OwnersEncoder, site: Site) -> TableStages:
    return _MovingRows(site)


@stages_of.register
def _(part: ClusteredEncoder, site: Site) -> TableStages:
    return _Clusters(site)


class Schedule:
    """The changes of a model's tables while it is trained, for every method that has some; a loop calls it.

    Own rows of `HotRows` move between steps, and tables of `ClusteredHash` are clustered between epochs. Methods that
    learn what to store have two stages: they "search" in the first epochs, choose, and "train" what was chosen, most of
    them from the initial values of the whole model, as their papers do.

    Make it before training, for the model as it starts. Its state belongs into checkpoints: a training that was killed
    and continues ends as one that was not.

    Searches may judge by data that the model is not trained on. With `validate`, each `step` of a search also moves the
    logits of `LearnedWidths` and the gates of `LearnedMask` down the gradient of a held-out batch, in place of that of
    the training, with the same optimizer; `LearnedWidths(rule="evolution")` needs it to choose. This uses the data up:
    a test needs other data, and early stopping by the same data is a little too hopeful.

    Args:
        model: the model, or the module of its tables; in one process.
        epochs: the number of epochs of the training.
        steps: the number of steps of an epoch.
        optimizer: the optimizer that trains the rows outside the backward pass, whose state changes with them.
        validate: a function from a number (0, 1, ...) to the loss of the model on the held-out batch of this number, a
            scalar with gradients. The same number is to give the same batch, and numbers may go around: 1000 may be
            batch 1000 % 64.

    Attributes:
        stage: "search", or "train" for the stage after it, or without one.

    Raises:
        ValueError: the model is sharded, the stages of a table do not fit the length of the training, or what they
            need to search with held-out data is missing.

    Example:
        >>> import torch, embcomp
        >>> model = torch.nn.ModuleDict({"item": torch.nn.Embedding(1000, 8)})
        >>> _ = embcomp.compress_(model, embcomp.HotRows(rows=100))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> schedule = embcomp.Schedule(model, epochs=2, steps=100, optimizer=optimizer)
        >>> for epoch in range(2):
        ...     for step in range(100):
        ...         loss = model["item"](torch.tensor([7, 9])).square().sum() + schedule.penalty()
        ...         loss.backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        ...         schedule.step()
        ...     _ = schedule.epoch_ended()
        >>> schedule.stage, model["item"].encoder.owners[: int(model["item"].encoder.number)]
        ('train', tensor([7, 9]))
    """

    stage: Literal["search", "train"]

    def __init__(
        self,
        model: nn.Module,
        *,
        epochs: int,
        steps: int,
        optimizer: torch.optim.Optimizer | None = None,
        validate: Callable[[int], Tensor] | None = None,
    ) -> None:
        self.epochs = checked(epochs, Annotated[int, Within(1)], "Schedule: epochs")
        self.steps = checked(steps, Annotated[int, Within(1)], "Schedule: steps")
        self._model, self._optimizer = model, optimizer
        self._steps_done = self._epochs_done = 0
        sites = [Site(*place, optimizer, self.epochs, self.steps, validate) for place in _tables(model)]
        parts = {id(part): (part, site) for site in sites for part in _parts(site.held)}  # which tables may share
        made = [(site, stages_of(part, site)) for part, site in parts.values()]
        changing = [(site, stages) for site, stages in made if stages is not None]
        for site, stages in changing:
            _check(site, stages)
        self._stages, self._names = [stages for _, stages in changing], [site.name for site, _ in changing]
        for kind in dict.fromkeys(map(type, self._stages)):
            kind.check_together([stages for stages in self._stages if type(stages) is kind])
        self.stage = "search" if any(stages.search for stages in self._stages) else "train"
        self._rates = [group["lr"] for group in optimizer.param_groups] if optimizer is not None else []
        self._initial: dict[str, Tensor] | None = None
        if any(stages.begins_again for stages in self._stages):
            self._initial = {name: tensor.detach().clone() for name, tensor in self._rewound()}
        for stages in self._stages:
            stages.begin()
        self._turns = HeldOutTurns(changing, optimizer, validate)
        self._turns.hold(self.stage == "search")

    def close(self) -> None:
        """Stop following the model, which stays as it is."""
        for stages in self._stages:
            stages.close()

    def __bool__(self) -> bool:
        """Return whether any table changes."""
        return bool(self._stages)

    def penalty(self) -> Tensor | float:
        """Return what searching tables add to the loss, a scalar; 0.0 if nothing."""
        if self.stage != "search":
            return 0.0
        return sum((p for p in (stages.penalty() for stages in self._stages) if p is not None), 0.0)

    @torch.no_grad()
    def step(self) -> None:
        """Change the tables after a step of the optimizer."""
        if self.stage == "search":
            self._turns.take(self._steps_done)
        self._steps_done += 1
        for stages in self._stages:
            stages.step(self._steps_done)

    @torch.no_grad()
    def epoch_ended(self) -> bool:
        """Change the tables after an epoch.

        Returns:
            True if a search has ended and the model has its initial values again; its optimizer then has no state and
            its first learning rates. An optimizer that the schedule was not given is to be made anew.
        """
        self._epochs_done += 1
        if self._epochs_done >= self.epochs:
            return False
        for stages in self._stages:
            stages.epoch_ended(self._epochs_done)
        searching = [stages for stages in self._stages if stages.search]
        over = self._epochs_done >= max((stages.search for stages in searching), default=0)
        if self.stage == "train" or not (over or all(stages.found() for stages in searching)):
            return False
        with evaluating(self._model):
            for kind in dict.fromkeys(type(stages) for stages in searching):
                kind.choose_together([stages for stages in searching if type(stages) is kind])
        self.stage = "train"
        self._turns.hold(False)
        if self._initial is None:
            return False
        for name, tensor in self._rewound():
            tensor.copy_(self._initial[name])
        self._initial = None
        if self._optimizer is not None:
            self._optimizer.state.clear()
            for group, rate in zip(self._optimizer.param_groups, self._rates, strict=False):  # not of added groups
                group["lr"] = rate
        return True

    def _rewound(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all that begins again, with its name: not what codecs hold, which the search has found."""
        chosen = {
            id(tensor)
            for module in self._model.modules()
            if isinstance(module, Codec)
            for tensor in (*module.parameters(), *module.buffers())
        }
        for name, tensor in (*self._model.named_parameters(), *self._model.named_buffers()):
            if id(tensor) not in chosen:
                yield name, tensor

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, beside the model's: while it searches, with the model's initial values."""
        return {
            "stage": self.stage,
            "steps": self._steps_done,
            "epochs": self._epochs_done,
            "initial": self._initial,
            "tables": [stages.state_dict() for stages in self._stages],
            "of": self._of(),
        }

    def _of(self) -> dict[str, Any]:
        """The training and the tables that a state must be of to be loaded."""
        kinds = [f"{type(s).__name__} of {name!r}" for s, name in zip(self._stages, self._names, strict=True)]
        return {"epochs": self.epochs, "steps": self.steps, "tables": kinds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state.

        Raises:
            ValueError: the state is of a model with other tables or methods, or of a training of another length.
        """
        if len(state["tables"]) != len(self._stages):
            raise ValueError(
                f"the state has the stages of {len(state['tables'])} tables, the model those of {len(self._stages)}"
            )
        for name, own in self._of().items():
            if (saved := state.get("of", {}).get(name, own)) != own:  # earlier versions did not say
                raise ValueError(f"the state is of a Schedule with {name}={saved}, and this one has {name}={own}")
        self.stage = state["stage"]
        self._steps_done, self._epochs_done = int(state["steps"]), int(state["epochs"])
        self._initial = state["initial"]
        self._turns.hold(self.stage == "search")
        for stages, own in zip(self._stages, state["tables"], strict=True):
            stages.load_state_dict(own)


def _check(site: Site, stages: TableStages) -> None:
    """Raise ValueError if a table is trained in a way that its stages cannot change."""
    if stages.begins_again and any(store.states for store in site.held.stores.values()):
        raise ValueError(
            f"table {site.name!r} begins again after its search, but a fused optimizer trains it: train it by an "
            "optimizer of its own"
        )
    if stages.search and site.frozen:
        raise ValueError(
            f"table {site.name!r} is frozen, but its method searches what to store while it is trained: unfreeze it, "
            "or take a method that does not"
        )
    if site.optimizer is None or site.by_engine or site.frozen:
        return
    known = {id(parameter) for group in site.optimizer.param_groups for parameter in group["params"]}
    if not any(id(rows) in known for rows in site.held.rows):
        raise ValueError(
            f"table {site.name!r}: the optimizer of the Schedule does not hold its rows (was it made before the model "
            "was compressed?); give the one that trains them"
        )


def changes_in_training(model: nn.Module) -> bool:
    """Return whether a method of a model's tables changes while it is trained; tables that are sharded are left out."""
    nothing = stages_of.dispatch(object)
    held = [held for holder in holders(model) for held in holder.tables.values()]
    return any(stages_of.dispatch(type(part)) is not nothing for table in held for part in _parts(table))


def _tables(model: nn.Module) -> Iterator[tuple[nn.Module, str | None, Held]]:
    """Yield the tables of a model, each with its module and its name there."""
    for holder in holders(model):
        if isinstance(holder, Spread):
            raise ValueError(
                f"{holder.paths[0] or 'the model'!r} {holder.state}: a Schedule is for one process; under `shard` "
                "rows of HotRows move by a HotTracker in each process"
            )
        yield from ((holder.module, _name(holder, name), held) for name, held in holder.tables.items())


def _name(holder: Holder, name: str) -> str | None:
    return None if isinstance(holder.module, CompressedTable) else name


def _parts(held: Held) -> list[Any]:
    """Return the encoder, the combiner and the codecs of a table."""
    if held.plan is None:
        return []
    codecs = [store.codec for store in held.stores.values() if store.codec is not None]
    return [held.plan.encoder, held.plan.combiner, *codecs]
