"""Encoders that were pickled or saved when all maps were their own buffers."""

from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor, nn

from embcomp.methods.maps import SharedMaps
from embcomp.methods.semantic.item_codes import ItemCodes
from embcomp.methods.semantic.neighbour_rows import NeighbourRows
from embcomp.methods.semantic.reading import Range, Reading

_READING = ("size", "rows", "concat", "weighted", "dropout", "seed", "own_ids", "id_rows")
_made: WeakValueDictionary[tuple[int, ...], SharedMaps] = WeakValueDictionary()


def upgraded(state: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a `SemanticEncoder` as they are today from those of any version."""
    if "reading" in state:
        return state
    state, buffers, modules = dict(state), dict(state["_buffers"]), dict(state["_modules"])
    ranges = tuple(Range(*each) for each in state.pop("ranges"))
    spans = tuple(map(tuple, state.pop("spans")))
    state["reading"] = Reading(spans=spans, ranges=ranges, **{name: state.pop(name) for name in _READING})
    modules["items"] = _shared(ItemCodes, {n: buffers.pop(n) for n in ("codes", "supported", "as_new", "owners")}, {})
    modules["mixtures"] = None
    if "neighbour_rows" in state:
        own = {"lookups": state.pop("neighbour_rows"), "bits": state.pop("bits")}
        names = ("new_ids", "words", "shares")
        modules["mixtures"] = _shared(NeighbourRows, {name: buffers.pop(name) for name in names}, own)
    return {**state, "_buffers": buffers, "_modules": modules}


def _shared(cls: type[SharedMaps], maps: dict[str, Tensor | None], attributes: dict[str, Any]) -> SharedMaps:
    """Return the module that holds these very tensors, so that encoders which shared them still do."""
    key = tuple(map(id, maps.values()))
    held = _made.get(key)
    if held is None or any(held._buffers[name] is not tensor for name, tensor in maps.items()):
        held = cls.__new__(cls)
        nn.Module.__init__(held)
        vars(held).update(attributes)
        for name, tensor in maps.items():
            held.register_buffer(name, tensor)
        _made[key] = held
    return held
