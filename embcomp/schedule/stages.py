"""The changes of one table while it is trained; each kind of method registers its own for `embcomp.Schedule`."""

from collections.abc import Callable, Mapping, Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from embcomp.codecs.base import Codec
from embcomp.holders import Held


class Site(NamedTuple):
    """A table in training.

    Attributes:
        module: the module that holds the table.
        table: the name of the table in that module; None if the module is one table.
        held: the table.
        optimizer: the optimizer that trains the rows outside the backward pass.
        epochs: the epochs of the training.
        steps: the steps of an epoch.
        validate: the loss on a held-out batch, by its number; None if the training has no such data.
    """

    module: nn.Module
    table: str | None
    held: Held
    optimizer: torch.optim.Optimizer | None
    epochs: int
    steps: int
    validate: Callable[[int], Tensor] | None = None

    @property
    def name(self) -> str:
        """The name of the table, for errors."""
        return self.held.names[0] or self.held.table.name

    @property
    def by_engine(self) -> bool:
        """True if a fused optimizer trains the rows, which need no gradient then."""
        return any(store.states or hasattr(store.weight, "frozen") for store in self.held.stores.values())

    @property
    def frozen(self) -> bool:
        """True if no rows of the table are trained."""
        if self.by_engine:
            return all(getattr(rows, "frozen", False) for rows in self.held.rows)
        return not any(rows.requires_grad for rows in self.held.rows)

    def search_epochs(self, share: float, what: str) -> int:
        """Return the epochs of a search. Raise ValueError if none is left to train `what` it found."""
        epochs = max(1, round(share * self.epochs))
        if epochs >= self.epochs:
            raise ValueError(
                f"table {self.name!r}: {what} is searched in {epochs} of {self.epochs} epochs, and none is left to "
                "train what it keeps; train for more epochs, or lower search"
            )
        return epochs


class TableStages:
    """The changes of a table between steps and epochs; this base does nothing.

    Attributes:
        search: the epochs in which the table searches what it will be; 0 for a table of one stage.
        begins_again: True if the model trains from its initial values once more after the search.
    """

    search: int = 0
    begins_again: bool = False

    def begin(self) -> None:
        """Start the search."""

    def step(self, done: int) -> None:
        """Change the table after a step; `done` steps are done."""

    def epoch_ended(self, done: int) -> None:
        """Change the table after an epoch, but not after the last; `done` epochs are done."""

    def penalty(self) -> Tensor | None:
        """Return what the search adds to the loss, a scalar; None if nothing."""
        return None

    def held_out(self) -> Sequence[nn.Parameter]:
        """Return what the search trains on held-out data if there is some, in turns with the rest of the model."""
        return ()

    def found(self) -> bool:
        """Return whether the search may end before its last epoch."""
        return False

    def choose(self) -> None:
        """End the search: fix what the table will be."""

    @classmethod
    def choose_together(cls, tables: Sequence[Any]) -> None:
        """End the search of all tables of this kind."""
        for stages in tables:
            stages.choose()

    @classmethod
    def check_together(cls, tables: Sequence[Any]) -> None:
        """Raise ValueError if the searches of all tables of this kind do not go together."""

    def codecs(self) -> Sequence[Codec]:
        """Return the codecs that the search changes, whose state is kept in that of the stages, too."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, beside the module's.

        It holds that of the codecs: a `Schedule` that is made for a model with loaded weights begins them anew.
        """
        return {"codecs": [{name: t.clone() for name, t in codec.state_dict().items()} for codec in self.codecs()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state."""
        for codec, own in zip(self.codecs(), state.get("codecs", ()), strict=False):  # earlier versions kept none
            codec.load_state_dict(own)

    def close(self) -> None:
        """Take off what was put on the module."""


@singledispatch
def stages_of(part: Any, site: Site) -> TableStages | None:
    """Return the stages of a table by its encoder, codec or combiner; None if the part does not change in training.

    Raises:
        ValueError: the stages do not fit the length of the training; the text names the table.
    """
    return None
