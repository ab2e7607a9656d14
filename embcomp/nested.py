"""Nested Python values as JSON and tensors, restored exactly: number keys, tuples, NumPy numbers, bytes.

JSON alone turns the key 3 into "3", and a tuple into a list. Values that JSON lacks are written as an object with one
key that begins with "$". Reading makes only values and executes no code.
"""

import collections
import json
import math
import sys
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from embcomp import artifact
from embcomp.files import Damaged, StrPath

_MAPPINGS = {"$dict": dict, "$OrderedDict": collections.OrderedDict, "$Counter": collections.Counter}
_SEQUENCES = {"$tuple": tuple, "$set": set, "$frozenset": frozenset, "$Size": torch.Size}


def save(path: StrPath, kind: str, value: Any) -> None:
    """Write a value as an artifact. Raise TypeError, naming the place, for values that `flatten` refuses."""
    structure, tensors = flatten(value)
    artifact.save(path, kind, {"value": structure}, tensors)


def load(path: StrPath, kind: str) -> Any:
    """Read a value that `save`, or `torch.save` in embcomp 0.1, wrote; its tensors are on the CPU.

    Raises:
        ValueError, FileNotFoundError: the same errors as from `artifact.load`.
    """
    with open(path, "rb") as file:
        if file.read(2) == b"PK":
            return _load_torch(path)
    header, tensors = artifact.load(path, kind)
    return unflatten(header["value"], tensors)


def _load_torch(path: StrPath) -> Any:
    """Read a file that `torch.save` wrote: only values, no code."""
    try:
        with zipfile.ZipFile(path) as records:
            if wrong := records.testzip():  # torch.load compares no checksum
                raise Damaged(f"{path} is damaged: the checksum of {wrong} in it does not fit")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, Damaged):
        raise
    except Exception as error:
        raise Damaged(f"{path} is damaged, or holds more than values ({error})") from None


def flatten(value: Any, name: str = "value") -> tuple[Any, dict[str, Tensor]]:
    """Split a value into JSON and tensors.

    Args:
        value: None, numbers, strings, bytes, tensors, NumPy numbers and arrays, torch dtypes, devices and sizes, and
            lists, tuples, sets and dictionaries of these (also OrderedDict and Counter) with any of them as keys.
        name: the name of the value, for errors.

    Raises:
        TypeError: the value holds anything else; the text says where.

    Example:
        >>> from embcomp.nested import flatten, unflatten
        >>> structure, tensors = flatten({"steps": {3: 0.5}, "betas": (0.9, 0.999)})
        >>> structure
        {'steps': {'$dict': [[3, 0.5]]}, 'betas': {'$tuple': [0.9, 0.999]}}
        >>> unflatten(structure, tensors)
        {'steps': {3: 0.5}, 'betas': (0.9, 0.999)}
    """
    tensors: dict[str, Tensor] = {}
    return _flat(value, name, tensors, ()), tensors


def _flat(value: Any, path: str, tensors: dict[str, Tensor], above: tuple[int, ...]) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if kind is complex:
        return {"$complex": [_flat(number, path, tensors, above) for number in (value.real, value.imag)]}
    if kind is bytes:
        return {"$bytes": value.hex()}
    if isinstance(value, Tensor):
        return {"$tensor": _keep(value, path, tensors)}
    if kind in (torch.dtype, torch.device):
        return {f"${kind.__name__}": str(value).removeprefix("torch.")}
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return {"$numpy" if isinstance(value, numpy.generic) else "$array": _array(numpy, value, path, tensors)}
    if id(value) in above:
        raise TypeError(f"{path} holds itself")
    above = (*above, id(value))
    if kind is list:
        return [_flat(item, f"{path}[{i}]", tensors, above) for i, item in enumerate(value)]
    for tag, sequence in _SEQUENCES.items():
        if kind is sequence:
            return {tag: [_flat(item, f"{path}[{i}]", tensors, above) for i, item in enumerate(value)]}
    for tag, mapping in _MAPPINGS.items():
        if kind is mapping:
            return _flat_mapping(value, tag, path, tensors, above)
    raise TypeError(f"{path} is a {kind.__module__}.{kind.__qualname__}, which cannot be saved as a value")


def _flat_mapping(
    value: Mapping[Any, Any], tag: str, path: str, tensors: dict[str, Tensor], above: tuple[int, ...]
) -> Any:
    held = [(key, _flat(item, f"{path}[{key!r}]", tensors, above)) for key, item in value.items()]
    if tag == "$dict" and all(type(key) is str and not key.startswith("$") for key in value):
        return dict(held)
    return {tag: [[_flat(key, f"a key of {path}", tensors, above), item] for key, item in held]}


def _array(numpy: Any, value: Any, path: str, tensors: dict[str, Tensor]) -> list[Any]:
    """The dtype, the shape and the name of the tensor with the bytes of an array; a number holds the bytes itself."""
    if value.dtype.hasobject or value.dtype.names:
        raise TypeError(f"{path} is a NumPy array of {value.dtype}, which cannot be saved as a value")
    raw = value.tobytes()
    if isinstance(value, numpy.generic):
        return [value.dtype.str, raw.hex()]
    held = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    return [value.dtype.str, list(value.shape), _keep(held, path, tensors)]


def _keep(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    name = f"{len(tensors)}: {path}"[:200]
    tensors[name] = tensor
    return name


def unflatten(structure: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Restore the value that `flatten` split. Raise ValueError for a structure that `flatten` does not make."""
    if isinstance(structure, list):
        return [unflatten(item, tensors) for item in structure]
    if not isinstance(structure, dict):
        return structure
    if len(structure) != 1 or not next(iter(structure)).startswith("$"):
        return {key: unflatten(item, tensors) for key, item in structure.items()}
    ((tag, held),) = structure.items()
    if tag in _MAPPINGS:
        return _MAPPINGS[tag]({unflatten(key, tensors): unflatten(item, tensors) for key, item in held})
    if tag in _SEQUENCES:
        return _SEQUENCES[tag](unflatten(item, tensors) for item in held)
    match tag:
        case "$float":
            return float(held)
        case "$complex":
            return complex(*(unflatten(number, tensors) for number in held))
        case "$bytes":
            return bytes.fromhex(held)
        case "$tensor":
            return tensors[held]
        case "$device":
            return torch.device(held)
        case "$dtype" if isinstance(getattr(torch, held, None), torch.dtype):
            return getattr(torch, held)
        case "$numpy" | "$array":
            import numpy

            dtype = numpy.dtype(held[0])
            raw = bytes.fromhex(held[1]) if tag == "$numpy" else tensors[held[2]].numpy().tobytes()
            array = numpy.frombuffer(raw, dtype)
            return array[0] if tag == "$numpy" else array.reshape(held[1]).copy()
    raise ValueError(f"{json.dumps(structure)[:80]} is not a value that embcomp writes")
