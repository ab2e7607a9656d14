"""The checks of options in a file against the signature of their function: names, and types of plain values."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

_PLAIN = {int, float, bool, str, type(None), list, tuple, Sequence, Mapping, Collection, dict}
_NOT_SWEPT = "; a list is swept for budgets, seeds and optimizer settings alone, so write an entry for each value"


def unknown(key: str, given: Iterable[str], known: Iterable[str]) -> Iterable[str]:
    """Return a message for each option that does not exist."""
    known = sorted(known)
    return [f"{key}: unknown option {name!r}{hint(name, known)}" for name in given if name not in known]


def misfits(key: str, given: Mapping[str, Any], call: Callable[..., Any]) -> Iterator[str]:
    """Yield a message for each value that the parameter's type does not admit, such as true for a number.

    Parameters of types that a file cannot write (tensors, maps) are not checked here.
    """
    kinds = _annotations(call)
    for name, value in given.items():
        if name in kinds and _is_plain(kinds[name]):
            try:
                TypeAdapter(kinds[name]).validate_json(to_json(value, inf_nan_mode="constants"), strict=True)
            except ValidationError as error:
                said = error.errors()[0]["msg"]
                listed = _NOT_SWEPT if isinstance(value, list) and not _takes_lists(kinds[name]) else ""
                yield f"{key}.{name}: {said[0].lower()}{said[1:]}, not {value!r}{listed}"


def hint(name: str, known: Iterable[str]) -> str:
    """Return the nearest known name, or all of them."""
    by_plain = {plain(other): other for other in known}
    near = get_close_matches(plain(name), by_plain, n=1, cutoff=0.5)
    if near:
        return f": did you mean {by_plain[near[0]]!r}?"
    return f": there are {', '.join(by_plain.values())}" if by_plain else ""


def plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _annotations(call: Callable[..., Any]) -> dict[str, Any]:
    """Return the type of each parameter, if it is known at run time."""
    function: Any = call.__init__ if isinstance(call, type) else inspect.unwrap(getattr(call, "__func__", call))
    hints = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        one = types.SimpleNamespace(__annotations__={name: annotation})
        with suppress(NameError, TypeError):
            hints |= typing.get_type_hints(one, function.__globals__)
    return hints


def _is_plain(kind: Any) -> bool:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal or kind is Ellipsis:
        return True
    if origin in (typing.Union, types.UnionType) or origin in _PLAIN:
        return all(map(_is_plain, inner))
    return kind in _PLAIN


def _takes_lists(kind: Any) -> bool:
    inner = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else [kind]
    return any((typing.get_origin(argument) or argument) in (list, tuple, Sequence, Collection) for argument in inner)
