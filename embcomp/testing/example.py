"""One configuration of a method, for tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embcomp.methods import METHODS, Method, Table


@dataclass(frozen=True)
class Example:
    """One configuration of a method.

    Attributes:
        name: the name of the method's class, and after a dash the variant.
        make: a function that makes it for tables, whose widths are multiples of 8. Few rows make collisions, which
            tests need.
        open_ids: True if num_embeddings may be None.
    """

    name: str
    make: Callable[[Sequence[Table]], Method]
    open_ids: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def method(self) -> type[Method]:
        """The class of the method, named before the first dash."""
        return METHODS[self.name.partition("-")[0]]
