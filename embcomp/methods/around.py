"""The base of methods that wrap another method."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from embcomp.methods.base import METHODS, Method, Store
from embcomp.methods.full import Full
from embcomp.settings import shown


class Around(Method, registered=False):
    """A method with a setting `of`, the method that it wraps."""

    of: Method

    @property
    def shares_store(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if the method inside shares its store."""
        return self.of.shares_store


def check_not_coded(wrapper: str, table: str, store: Store) -> None:
    """Raise ValueError if a store inside a wrapper has a coding, since rows have one at most."""
    coding = store.coding
    if coding is None:
        return
    if coding.rounds:
        raise ValueError(
            f"table {table!r}: its rows are coded already ({coding}); put {wrapper} around a method that is not"
        )
    raise ValueError(
        f"table {table!r}: {wrapper} cannot code rows that learn which of their values are kept (LearnedMask, "
        f"LearnedWidths): leave one of the two methods out, or put {wrapper} around Pruned or MixedDimensions, which "
        "fix them"
    )


def settings_around(cls: type[Method], fixed: Mapping[str, Any]) -> tuple[type[Method], dict[str, Any], dict[str, Any]]:
    """Split the settings of a wrapper's `ladder` into those of the wrapper and those of the method inside.

    Args:
        cls: the wrapper, a method with a setting `of`.
        fixed: the settings of both; `of` is the class of the method inside, its name, or a configuration whose `rows`
            are chosen anew; `Full` by default.

    Returns:
        The class of the method inside, the settings of the wrapper, and the settings of the method inside.

    Raises:
        ValueError: `of` is not a method.
    """
    own = {f.name for f in dataclasses.fields(cls)} - {"of"}
    outer = {name: value for name, value in fixed.items() if name in own}
    rest = {name: value for name, value in fixed.items() if name not in own and name != "of"}
    given = fixed.get("of", Full)
    if isinstance(given, Method):
        rest = {f.name: getattr(given, f.name) for f in dataclasses.fields(given) if f.name != given.sized_by} | rest
    inner = METHODS.get(given) if isinstance(given, str) else type(given) if isinstance(given, Method) else given
    if not isinstance(inner, type) or not issubclass(inner, Method):
        raise ValueError(
            f"{cls.__name__}: of must be a method's class, its name or its configuration, got {shown(given)}"
        )
    return inner, outer, rest
