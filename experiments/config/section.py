"""The section of a file that selects the kind of the runs, and the types of values that sections share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

strict = ConfigDict(extra="forbid")


def many(value: Any) -> Any:
    """Make a tuple of one value or of a list of them."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seeds = Annotated[tuple[NotNegative, ...], BeforeValidator(many), Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=strict)
class Section:
    """The settings of a kind of runs; each kind in `experiments.tasks` adds its fields. This base has no settings.

    Attributes:
        key: the name of the section in the file, and in the configuration of a result file.
        compares_models: True if the names of runs contain that of the model.
    """

    key: ClassVar[str] = ""
    compares_models: ClassVar[bool] = False

    @property
    def seeds_of_run(self) -> tuple[int, ...] | None:
        """The seeds in place of the experiment's; None if there are none."""
        return None

    @property
    def needs_content(self) -> bool:
        """True if the runs read content vectors, whatever their method."""
        return False

    def variants(self) -> Sequence[Section]:
        """Return the sections of the runs, for an experiment that compares settings of its section."""
        return [self]

    def dataset(self, name: str) -> str:
        """Return the name of the data set `name` in tables and pictures."""
        return name

    def label(self, label: str, method: str) -> str:
        """Return the name of a run in tables and pictures, from the label and the class name of its method."""
        return label

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values, which are part of a result's key."""
        return asdict(self)


def label_of(name: str, options: dict[str, Any]) -> str:
    """Return the label of settings without one: `name(option=value, ...)`."""
    given = ", ".join(f"{option}={value}" for option, value in options.items())
    return f"{name}({given})" if given else name
