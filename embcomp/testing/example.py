"""One configuration of a method, for tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embcomp.methods import METHODS, Method, Table


@dataclass(frozen=True)
class Example:
    """One configuration of a method.

    Attributes:
        name: the method's class, and after a dash what tells this example from others of it.
        make: builds it for tables, whose widths are multiples of 8. Few rows make collisions, which tests want.
        open_ids: whether num_embeddings may be None.
    """

    name: str
    make: Callable[[Sequence[Table]], Method]
    open_ids: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def method(self) -> type[Method]:
        """The class, named before the first dash."""
        return METHODS[self.name.partition("-")[0]]
