"""Configurations: compared by value, and written as JSON, with tensors beside it for large values.

Each class that may occur in a configuration is registered under a tag: methods under "method", maps and the like under
"kind". This module therefore names none of them. Configurations nest: a method around another method holds it as a
part.
"""

import dataclasses
import importlib
import json
import math
from collections.abc import Callable, Mapping, MutableMapping
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from embcomp import artifact
from embcomp.files import StrPath

C = TypeVar("C", bound=type)


class _Tag(NamedTuple):
    """The rules by which objects of a group of classes are written and read.

    Attributes:
        classes: the classes by name; a text "module:class" is imported when it is needed.
        parts: a function from an object to its parts by name.
        make: a function that makes an object from its class and its parts.
        one: True if equal parts of a file are read as one object.
    """

    classes: Mapping[str, Any]
    parts: Callable[[Any], Mapping[str, Any]]
    make: Callable[[type, Any], Any]
    one: bool


_TAGS: dict[str, _Tag] = {}
_KINDS: MutableMapping[str, Any] = {}


def fields_of(value: Any) -> dict[str, Any]:
    """The constructor arguments of a dataclass instance, by name."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}


def _from_fields(cls: type, parts: Mapping[str, Any]) -> Any:
    return cls(**parts)


def register(
    tag: str,
    classes: Mapping[str, Any],
    parts: Callable[[Any], Mapping[str, Any]] = fields_of,
    make: Callable[[type, Any], Any] = _from_fields,
    *,
    one: bool = False,
) -> None:
    """Make the classes of a registry writable under a tag of their own; by default they are dataclasses."""
    _TAGS[tag] = _Tag(classes, parts, make, one)


def classes(tag: str) -> Mapping[str, Any]:
    """The classes of a tag, by name."""
    return _TAGS[tag].classes


def join(classes: MutableMapping[str, Any], cls: type) -> None:
    """Enter a class into a registry under its name, or under its full name if another class has that name.

    `torch.export`, for example, derives classes of the same name.
    """
    classes[name_of(classes, cls)] = cls


register("kind", _KINDS, one=True)


def kind(cls: C) -> C:
    """Register a dataclass that configurations hold, such as a map; a class decorator.

    Use `kind_at` for classes whose module needs an extra.
    """
    _KINDS[cls.__name__] = cls
    return cls


def kind_at(name: str, module: str) -> None:
    """Register a class by name; its module is imported when such an object is read."""
    _KINDS.setdefault(name, f"{module}:{name}")


def _class(tag: str, name: str, where: str) -> type:
    class_ = _TAGS[tag].classes.get(name)
    if class_ is None:
        raise ValueError(f"{where}: no {tag} is called {name!r}; known are {sorted(_TAGS[tag].classes)}")
    if isinstance(class_, str):
        module, _, name = class_.partition(":")
        class_ = getattr(importlib.import_module(module), name)
    return class_


def name_of(classes: Mapping[str, Any], cls: type) -> str:
    """The name of a class in a registry: its own name, or the full one if another class has that name.

    A class that is defined again, as in a notebook, keeps its name.
    """
    taken = classes.get(cls.__name__)
    full = f"{cls.__module__}:{cls.__qualname__}"
    return cls.__name__ if taken is None or full in (taken, _full_name(taken)) else full


def _full_name(taken: Any) -> str:
    return taken if isinstance(taken, str) else f"{taken.__module__}:{taken.__qualname__}"


def _tag_of(value: Any) -> tuple[str, str] | None:
    """The tag and the name under which the class of a value is registered; None if it is not registered."""
    cls = type(value)
    for tag, registered in _TAGS.items():
        name = name_of(registered.classes, cls)
        if name in registered.classes:
            return tag, name
    return None


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array_interface__") and bool(getattr(value, "ndim", 0))


def same(a: Any, b: Any) -> bool:
    """Return whether two values are equal: tensors by shape, dtype and values, objects part by part."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _same_tensors(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if _is_array(a) or _is_array(b):
        return _is_array(a) and _is_array(b) and same(torch.as_tensor(a), torch.as_tensor(b))
    if type(a) is type(b) and dataclasses.is_dataclass(a):
        return same(fields_of(a), fields_of(b))
    return type(a) is type(b) and bool(a == b)


def _same_tensors(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.dtype, a.layout, a.is_meta) != (b.shape, b.dtype, b.layout, b.is_meta):
        return False
    if a.layout != torch.strided:
        return all(map(torch.equal, _sparse_parts(a), _sparse_parts(b)))
    return not a.is_meta and torch.equal(a.detach().cpu(), b.detach().cpu())


def _sparse_parts(value: Tensor) -> tuple[Tensor, Tensor]:
    value = value.detach().cpu().to_sparse_coo().coalesce()
    return value.indices(), value.values()


def hashed(value: Any) -> int:
    """Return a hash that agrees with `same`; tensors and arrays contribute their shape alone."""
    if isinstance(value, Tensor) or _is_array(value):
        return hash(tuple(value.shape))
    if isinstance(value, Mapping):
        return hash(frozenset((key, hashed(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return hash(tuple(map(hashed, value)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return hash((type(value), hashed(fields_of(value))))
    return hash(value)


def to_json(value: Any, tensors: dict[str, Tensor] | None = None) -> Any:
    """Return a configuration as JSON values; large values go into `tensors`, under names that the JSON refers to.

    Args:
        value: a method, or a mapping or list that holds methods; inside them numbers, text, tensors and maps.
        tensors: a dictionary to fill with the tensors; one that occurs twice is kept once.

    Raises:
        TypeError: a value does not belong in a configuration; the text says where it is.
        ValueError: the configuration holds tensors and `tensors` is None, or a number that is not finite.

    Example:
        >>> import torch, embcomp
        >>> to_json(embcomp.HashingTrick(rows=10))
        {'method': 'HashingTrick', 'rows': 10, 'seed': 0, 'balanced': False}
        >>> tensors = {}
        >>> to_json(embcomp.FrequencyHash(rows=4, counts=torch.tensor([5, 0, 9])), tensors)["counts"], tensors
        ({'$tensor': 'counts'}, {'counts': tensor([5, 0, 9])})
    """
    return _Writer(tensors).write(value, "")


def keeper(tensors: dict[str, Tensor]) -> Callable[[Tensor, str], str]:
    """Return a function that keeps tensors in `tensors`, each memory once: (tensor, wished name) -> its name there."""
    return _Writer(tensors).keep


class _Writer:
    def __init__(self, tensors: dict[str, Tensor] | None) -> None:
        self.tensors = tensors
        self.names = {_memory(tensor): name for name, tensor in (tensors or {}).items()}

    def write(self, value: Any, path: str) -> Any:
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, Integral):
            return int(value)
        if isinstance(value, Real):
            if not math.isfinite(value):
                raise ValueError(f"{path or 'the value'}: {value!r} cannot be part of a configuration")
            return float(value)
        if isinstance(value, Tensor) and value.layout != torch.strided:
            parts = zip(("indices", "values"), _sparse_parts(value), strict=True)
            written = {name: self.keep(part, f"{path}.{name}") for name, part in parts}
            return {"$sparse": [str(value.layout).removeprefix("torch."), list(value.shape)], **written}
        if isinstance(value, Tensor):
            return {"$tensor": self.keep(value, path)}
        if _is_array(value):
            return {"$array": self.keep(torch.as_tensor(value), path)}
        if isinstance(value, bytes):
            held = torch.frombuffer(bytearray(value or b"\0"), dtype=torch.uint8)
            return {"$bytes": self.keep(held, path), "size": len(value)}
        registered = _tag_of(value)
        if registered is not None:
            tag, name = registered
            return {tag: name, **self.parts(_TAGS[tag].parts(value), path)}
        if isinstance(value, Mapping):
            if all(isinstance(key, str) and not key.startswith("$") and key not in _TAGS for key in value):
                return self.parts(value, path)
            items = [[self.write(key, path), self.write(item, _join(path, str(key)))] for key, item in value.items()]
            return {"$items": items}
        if isinstance(value, list | tuple):
            items = [self.write(item, _join(path, str(i))) for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"$tuple": items}
        raise TypeError(f"{path or 'the value'} is of type {type(value).__name__}, which no configuration holds")

    def parts(self, values: Mapping[str, Any], path: str) -> dict[str, Any]:
        return {name: self.write(item, _join(path, name)) for name, item in values.items()}

    def keep(self, tensor: Tensor, path: str) -> str:
        if self.tensors is None:
            raise ValueError(f"{path or 'the value'} is a tensor: pass `tensors`, a dict to keep it in")
        memory = _memory(tensor)
        if memory not in self.names:
            name, number = path or "tensor", 1
            while name in self.tensors:
                name, number = f"{path}#{number}", number + 1
            self.tensors[name], self.names[memory] = tensor, name
        return self.names[memory]


def _memory(tensor: Tensor) -> Any:
    """A key that is equal for the same tensor, and for tensors that read the same memory in the same way."""
    if tensor.layout != torch.strided or not tensor.numel() or tensor.is_meta:
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def from_json(values: Any, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """Read the values that `to_json` wrote.

    Raises:
        ValueError: a method is unknown to this version, a tensor is missing, or settings are invalid.

    Example:
        >>> from_json({"method": "HashingTrick", "rows": 10})
        HashingTrick(rows=10, seed=0, balanced=False)

    Parts that were one object become one object again; each method becomes an instance of its own.
    """
    return _Reader(tensors or {}).read(values, "the configuration")


class _Reader:
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.known: dict[str, Any] = {}

    def read(self, value: Any, path: str) -> Any:
        if isinstance(value, list):
            return [self.read(item, f"{path}[{i}]") for i, item in enumerate(value)]
        if not isinstance(value, Mapping):
            return value
        if "$tensor" in value:
            return self.tensor(value["$tensor"], path)
        if "$array" in value:
            return self.tensor(value["$array"], path).numpy()
        if "$bytes" in value:
            return bytes(self.tensor(value["$bytes"], path).tolist())[: value["size"]]
        if "$sparse" in value:
            return self.sparse(value, path)
        if "$tuple" in value:
            return tuple(self.read(value["$tuple"], path))
        if "$items" in value:
            return {self.read(key, path): self.read(item, f"{path}.{key}") for key, item in value["$items"]}
        tag = next((tag for tag in _TAGS if tag in value), None)
        if tag is None:
            return {name: self.read(item, f"{path}.{name}") for name, item in value.items()}
        text = json.dumps(value, sort_keys=True)
        if text not in self.known or not _TAGS[tag].one:
            self.known[text] = self.object(tag, value, path)
        return self.known[text]

    def object(self, tag: str, value: Mapping[str, Any], path: str) -> Any:
        cls = _class(tag, value[tag], path)
        parts = {name: self.read(item, f"{path}.{name}") for name, item in value.items() if name != tag}
        try:
            return _TAGS[tag].make(cls, parts)
        except TypeError as error:  # settings that are missing, or that this version does not know
            raise ValueError(f"{path}: {error}") from None

    def sparse(self, value: Mapping[str, Any], path: str) -> Tensor:
        layout, shape = value["$sparse"]
        indices, values = (self.tensor(value[name], path) for name in ("indices", "values"))
        tensor = torch.sparse_coo_tensor(indices, values, shape, is_coalesced=True, check_invariants=True)
        return tensor if layout == "sparse_coo" else tensor.to_sparse(layout=getattr(torch, layout))

    def tensor(self, name: str, path: str) -> Tensor:
        if name not in self.tensors:
            raise ValueError(f"{path}: its tensor {name!r} is missing")
        return self.tensors[name]


def save(value: Any, path: StrPath) -> None:
    """Write a configuration as one safetensors file, with its JSON in the header and a checksum of the whole.

    Args:
        value: a method, or a mapping or list that holds methods.
        path: the file, which is written whole or not at all.

    Raises:
        TypeError: a value does not belong in a configuration.
        OSError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    header = {"config": to_json(value, tensors)}
    artifact.save(path, "configuration", header, tensors)


def load(path: StrPath) -> Any:
    """Read a configuration that `save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, was edited, holds something else, or needs a later version.

    Example:
        >>> import torch, embcomp
        >>> method = embcomp.FrequencyHash(rows=4, counts=torch.tensor([5, 0, 9]))
        >>> embcomp.configs.save({"item": method}, "methods.safetensors")
        >>> embcomp.configs.load("methods.safetensors") == {"item": method}
        True
    """
    header, tensors = artifact.load(path, "configuration")
    return from_json(header["config"], tensors)
