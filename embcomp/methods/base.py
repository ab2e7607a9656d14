"""The three parts of every method: an encoder (id -> rows), stores (row -> vector), a combiner (vectors -> vector).

A method is one frozen dataclass. Its `plan(tables)` says, for the tables it is asked to compress, which stores there
are and how each table's ids reach them. `embcomp.nn`, `embcomp.torchrec` and `embcomp.compress_` work from the plan
alone, so adding a method means writing one file (docs/add-a-method.md).
"""

import abc
import ctypes
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, TypeAlias

import torch
from torch import Tensor, nn

from embcomp import configs
from embcomp.codecs.base import Coding
from embcomp.ops.hashing import check_ids
from embcomp.settings import IdCount, RowCount, Width, checked, hints_of

FLOAT_BYTES = 4
KEY_BYTES = 8


@dataclasses.dataclass(frozen=True)
class Table:
    """An embedding table to compress.

    Attributes:
        name: part of the hash keys, so that two tables with the same ids read unrelated rows.
        num_embeddings: how many ids there are; None leaves the id space open (any non-negative int64).
        embedding_dim: the width of an id's vector.

    Example:
        >>> Table("item", num_embeddings=10_000, embedding_dim=16)
        Table(name='item', num_embeddings=10000, embedding_dim=16)
    """

    name: str
    num_embeddings: int | None
    embedding_dim: int

    def __post_init__(self) -> None:
        name = checked(self.name, str, "name of a table")
        object.__setattr__(self, "name", name)
        if self.num_embeddings is not None:
            ids = checked(self.num_embeddings, IdCount, f"table {name!r}: num_embeddings")
            object.__setattr__(self, "num_embeddings", ids)
        dim = checked(self.embedding_dim, Width, f"table {name!r}: embedding_dim")
        object.__setattr__(self, "embedding_dim", dim)

    def ids_or_raise(self, why: str) -> int:
        """`num_embeddings`, for methods that need a closed id space."""
        if self.num_embeddings is None:
            raise ValueError(
                f"table {self.name!r}: {why} needs num_embeddings, got None; give it, or use a hashing method"
            )
        return self.num_embeddings


Tables: TypeAlias = Sequence[Table] | nn.Module
"""What a method compresses together: tables, or all those of a model."""
Budget: TypeAlias = int | float | str
"""Bytes: a number, "50MB", or "10%" of the full tables (`embcomp.sizes.parse_nbytes`)."""
Count: TypeAlias = Literal["served", "training"]
"""Which bytes a budget is of: those of the served form, or those of the training form."""


@dataclasses.dataclass(frozen=True)
class Store:
    """A plain table of `rows` vectors of `dim` floats; numbers alone, so that a budget can price it.

    Attributes:
        init: "table" draws rows so that the combined vector has the mean and the deviation of the table replaced;
            "unit" and "factor" are the two factors of a product that has them, the first of mean square 1; "ones"
            fills with 1 (weights).
        summands: how many rows of this store are added up into one coordinate of a vector.
        coding: how the rows are decoded into the vectors that will be served; None serves the rows as they are.
    """

    rows: int
    dim: int
    init: str = "table"
    summands: int = 1
    coding: Coding | None = None

    @property
    def width(self) -> int:
        """The columns of a row: those of its vector, and what a coding keeps beside them."""
        return self.dim + (0 if self.coding is None else self.coding.columns(self.dim))

    def training_nbytes(self, float_bytes: int = FLOAT_BYTES) -> int:
        """Bytes of the training form: rows, and the parameters of the codec."""
        beside = 0 if self.coding is None else self.coding.nbytes(self.rows, self.dim, float_bytes)
        return self.rows * self.width * float_bytes + beside

    def served_nbytes(self, float_bytes: int = FLOAT_BYTES) -> int:
        """Bytes of the served form; without a coding those of the rows."""
        if self.coding is None:
            return self.training_nbytes(float_bytes)
        return self.coding.served_nbytes(self.rows, self.dim)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A read from one store: `lookups` rows per id, added up (each times its fixed weight, where `weighted`)."""

    store: str
    lookups: int = 1
    weighted: bool = False


class Rows(NamedTuple):
    """What one chunk reads: `rows` int64 [N, lookups] and, where it is weighted, `weights` float32 [N, lookups]."""

    rows: Tensor
    weights: Tensor | None = None


ENCODERS: dict[str, type["Encoder"]] = {}
COMBINERS: dict[str, type["Combiner"]] = {}
"""By name, so that a plan can be written and read."""


def _register(registry: dict[str, Any], cls: type) -> None:
    """Under its name, or, where another module's class has that, under its full name (`torch.export` derives such)."""
    name = configs.name_of(registry, cls)
    registry[name] = cls


class Encoder(nn.Module, abc.ABC):
    """ids -> rows of each chunk. Holds buffers only (keys, maps, codes), never parameters.

    Subclasses define `encode(ids)`. The configuration travels in the state dict (as a uint8 tensor, so that every
    checkpoint format can hold it), and loading another one names the difference. Averages of weights leave the buffers
    alone (`embcomp.averaging`).
    """

    constant_buffers: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _register(ENCODERS, cls)

    def __init__(self, table: Table, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.table = table
        self.config = {**config, "num_embeddings": table.num_embeddings, "embedding_dim": table.embedding_dim}

    @abc.abstractmethod
    def encode(self, ids: Tensor) -> list[Rows]:
        """The rows of each chunk, in the order of the plan's chunks, for checked ids, int64 [N]."""

    def forward(self, ids: Tensor) -> list[Rows]:
        """Checks `ids` (integer, [N]) and encodes them. Raises ValueError or IndexError (see `check_ids`)."""
        ids = check_ids(ids, self.table.num_embeddings, self.table.name)
        if ids.is_meta and any(not buffer.is_meta for buffer in self.buffers()):  # only shapes are asked for
            on_meta = {name: buffer.to("meta") for name, buffer in self.named_buffers()}
            return torch.func.functional_call(self, on_meta, (ids,))
        return self.encode(ids)

    def packed(self, ids: Tensor, out: Tensor | None = None) -> Tensor:
        """The rows of all chunks, one chunk after the other, flat, as a KeyedJaggedTensor takes them; checked first.

        They are written into `out`, where it is given: int64 [rows], contiguous.
        """
        rows = [chunk.rows.reshape(-1) for chunk in self(ids)]
        if out is not None:
            return torch.cat(rows, out=out)
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def get_extra_state(self) -> Tensor:
        text = json.dumps({"table": self.table.name, **self.config}, sort_keys=True)
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        name = json.loads(bytes(state.cpu().tolist()))["table"]
        self.table = dataclasses.replace(self.table, name=name)  # hash keys come from the name it was saved under
        self.reset_buffers()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(f"{prefix}_extra_state")
        if saved is not None:  # before torch copies the maps of another configuration over ours
            self._check_config(json.loads(bytes(saved.cpu().tolist())))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _check_config(self, saved: dict[str, Any]) -> None:
        mine = json.loads(json.dumps(self.config))
        later = {key: value for key, value in _defaults(saved.get("method")).items() if key in mine}
        saved = {**later, **saved}  # a setting that came after it was saved had its default
        keys = sorted({*saved, *mine} - {"table"})
        said = "; ".join(
            f"{key}: saved {saved.get(key)!r}, here {mine.get(key)!r}"
            for key in keys
            if saved.get(key) != mine.get(key)
        )
        if said:
            raise ValueError(f"table {self.table.name!r}: the state was saved with another configuration ({said})")

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Keys and maps move, but are never emptied (`to_empty`) or made meta: nobody would refill them."""
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            device = self.get_buffer(name).device
            self._buffers[name] = buffer if device.type == "meta" else buffer.to(device)
        return self

    def reset_buffers(self) -> None:
        """Computes again the buffers that follow from the table's name, after it has changed."""


def _defaults(method: str | None) -> dict[str, Any]:
    """The simple settings of a method that have a default."""
    fields = dataclasses.fields(METHODS[method]) if method in METHODS else ()
    return {field.name: field.default for field in fields if isinstance(field.default, bool | int | float | str)}


class Combiner(nn.Module, abc.ABC):
    """The vectors of a table's chunks -> its embedding. A module: what it learns is trained, saved and counted.

    `linear` combiners commute with pooling, so bags pool inside the look-up; the others combine before they pool.
    `neutral` maps a chunk to the constant that makes the rest linear (warm starts fix it there).
    """

    linear: ClassVar[bool] = True
    neutral: ClassVar[Mapping[int, float]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _register(COMBINERS, cls)
        if "__call__" in vars(cls) and "forward" not in vars(cls):  # as combiners were written before they were modules
            cls.forward = vars(cls)["__call__"]
            del cls.__call__

    @abc.abstractmethod
    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        """[..., dim of chunk] each -> [..., embedding_dim]."""

    @abc.abstractmethod
    def dim(self, dims: Sequence[int]) -> int:
        """The width of the result for chunks of these widths."""

    def start_(self, vectors: Tensor, counts: Tensor) -> tuple["Combiner", Tensor] | None:
        """Fits what the combiner learns to trained vectors, before a warm start fits the rows.

        Args:
            vectors: [num_embeddings, embedding_dim].
            counts: how much each id counts, [num_embeddings].

        Returns:
            The combiner that is left once these parameters are fixed, and the vectors that it is to give; None where
            nothing was fitted, and the warm start goes on from the parameters as they are.
        """
        return None


class Concat(Combiner):
    """Chunks side by side; with one chunk, that chunk."""

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return chunks[0] if len(chunks) == 1 else torch.cat(list(chunks), dim=-1)

    def dim(self, dims: Sequence[int]) -> int:
        return sum(dims)


class Sum(Combiner):
    """Chunks added up."""

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(chunks)).sum(0)

    def dim(self, dims: Sequence[int]) -> int:
        return dims[0]


class Product(Combiner):
    """The first chunk times the second, element by element."""

    linear = False
    neutral: ClassVar[Mapping[int, float]] = {0: 1.0}

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return chunks[0] * chunks[1]

    def dim(self, dims: Sequence[int]) -> int:
        return dims[0]


class WeightedSum(Combiner):
    """Column j of the first chunk times chunk j + 1, added up (the first chunk may carry spare columns)."""

    linear = False
    neutral: ClassVar[Mapping[int, float]] = {0: 1.0}

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        weights, vectors = chunks[0], chunks[1:]
        return sum((weights[..., j : j + 1] * vector for j, vector in enumerate(vectors)), torch.zeros_like(vectors[0]))

    def dim(self, dims: Sequence[int]) -> int:
        return dims[1]


@dataclasses.dataclass(frozen=True)
class TablePlan:
    """How one table's ids become vectors."""

    table: Table
    encoder: Encoder
    chunks: tuple[Chunk, ...]
    combiner: Combiner

    @property
    def weighted(self) -> bool:
        return any(chunk.weighted for chunk in self.chunks)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stores of a group of tables, and how each table reads them."""

    stores: dict[str, Store]
    tables: list[TablePlan]

    def embedding_dim(self, table: TablePlan) -> int:
        return table.combiner.dim([self.stores[chunk.store].dim for chunk in table.chunks])

    def nbytes(self, float_bytes: int = FLOAT_BYTES) -> int:
        """`training_nbytes`."""
        return self.training_nbytes(float_bytes)

    def training_nbytes(self, float_bytes: int = FLOAT_BYTES) -> int:
        """Bytes of the training form: rows, codecs, combiners, maps, keys; what tables share counts once."""
        return sum(store.training_nbytes(float_bytes) for store in self.stores.values()) + self._beside(float_bytes)

    def served_nbytes(self, float_bytes: int = FLOAT_BYTES) -> int:
        """Bytes of the served form: packed rows, combiners, maps, keys; what tables share counts once."""
        return sum(store.served_nbytes(float_bytes) for store in self.stores.values()) + self._beside(float_bytes)

    def _beside(self, float_bytes: int) -> int:
        """Bytes of what is stored beside the rows, in either form."""
        buffers = {id(buffer): buffer.nbytes for table in self.tables for buffer in table.encoder.buffers()}
        for table in self.tables:
            buffers |= {id(weight): weight.numel() * float_bytes for weight in table.combiner.parameters()}
            buffers |= {id(buffer): buffer.nbytes for buffer in table.combiner.buffers()}
        return sum(buffers.values())


METHODS: dict[str, type["Method"]] = {}


class _Configurable(abc.ABCMeta):
    """Makes configurations: from their own `config()` too, and from settings that are checked before they are used."""

    if not TYPE_CHECKING:  # what a method takes is for its own fields to say

        def __call__(cls, *args: Any, **settings: Any) -> Any:
            fields = {f.name: f for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
            if "method" in settings and "method" not in fields and (of := settings.pop("method")) != cls.__name__:
                raise ValueError(f"{cls.__name__}: the configuration is that of the method {of!r}")
            hints = hints_of(cls)
            placed = [name for name, field in fields.items() if not field.kw_only]
            args = [*(_setting(cls, hints, *pair) for pair in zip(placed, args, strict=False)), *args[len(placed) :]]
            settings = {name: _setting(cls, hints, name, value) for name, value in settings.items()}
            return super().__call__(*args, **settings)


def _setting(cls: type, hints: Mapping[str, Any], name: str, value: Any) -> Any:
    if isinstance(value, str) and value.startswith("tensor ["):
        raise ValueError(
            f"{cls.__name__}: {name} is the checksum of a tensor, {value!r}, as `config()` gives it; "
            "embcomp.configs.save writes the tensor itself"
        )
    hint = hints.get(name, Any)
    if isinstance(value, Mapping) and "method" in value and isinstance(hint, type) and issubclass(hint, Method):
        value = configs.from_json(value)  # of a method around another
    return checked(value, hint, f"{cls.__name__}: {name}")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Method(abc.ABC, metaclass=_Configurable):
    """A compression method's configuration. Subclasses register themselves in `METHODS` under their class name.

    Two configurations are equal when their settings are. They are never merged by value: the tables matched by one
    instance form one group.

    Settings are checked when a configuration is made, by the types of the fields (`embcomp.settings`).

    Attributes:
        shares_store: whether the tables of a group read one store, and so must live in one module tree.
        budget_settings: settings that `for_budget` takes beside the fields.
        expected: how one is made, for errors.

    Example:
        >>> import embcomp
        >>> method = embcomp.METHODS["HashingTrick"](rows=100)
        >>> method
        HashingTrick(rows=100, seed=0, balanced=False)
        >>> embcomp.METHODS["HashingTrick"](**method.config()) == method
        True
    """

    shares_store: ClassVar[bool] = False
    budget_settings: ClassVar[tuple[str, ...]] = ()
    expected: ClassVar[str] = "a method's configuration, such as embcomp.HashingTrick(rows=1000)"

    def __init_subclass__(cls, *, registered: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if registered:
            if configs.name_of(METHODS, cls) != cls.__name__ and METHODS[cls.__name__].__module__.startswith(
                "embcomp."
            ):
                raise ValueError(
                    f"{cls.__qualname__} of {cls.__module__}: embcomp has a method of that name; choose another"
                )
            METHODS[cls.__name__] = cls

    @abc.abstractmethod
    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        """Stores and encoders for these tables; `group` names stores that several tables share.

        Raises:
            ValueError: when a table cannot be compressed so; the text names it and the remedy.
        """

    @classmethod
    @abc.abstractmethod
    def for_budget(cls, tables: Tables, nbytes: Budget, *, count: Count = "served", **fixed: Any) -> Self:
        """The configuration that fills `nbytes` with tables and maps together, never above it.

        Args:
            tables: what is to be compressed, together: tables, or a model for all that `compress_` finds in it.
            nbytes: the budget in bytes, as a number, "50MB", or "10%" of the full tables in float32.
            count: "served" for the bytes of the served form, "training" for those of the training form, without the
                state of an optimizer. They differ where a codec rounds or codes the rows.
            fixed: settings to keep as given.

        Raises:
            TypeError: neither tables nor a model, neither a number nor a text.
            ValueError: the budget holds not even the smallest configuration; the text says how much that is.
        """

    @classmethod
    def checked_settings(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Settings as a configuration would have them, for a `for_budget` that reckons with them before it makes one.

        Raises:
            ValueError: a setting is something else than its field; the text names it. Names without a field pass.
        """
        hints = hints_of(cls)
        return {name: _setting(cls, hints, name, value) for name, value in given.items()}

    def config(self, *, without: Sequence[str] = ()) -> dict[str, Any]:
        """The settings as JSON values, tensors by checksum: what a state dict keeps to recognise its own.

        `embcomp.configs` writes a configuration so that it can be made again, tensors included.

        Args:
            without: settings to leave out, because they live on in the encoder.
        """
        names = [f.name for f in dataclasses.fields(self) if f.name not in without]
        return {"method": type(self).__name__, **{name: plain(getattr(self, name)) for name in names}}

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and configs.same(self, other)

    def __hash__(self) -> int:
        return hash((type(self), configs.hashed(configs.fields_of(self))))


configs.register("method", METHODS)


def plain(value: Any) -> Any:
    """A setting as a JSON value, tensors by shape and checksum."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        digest = hashlib.sha256(ctypes.string_at(value.data_ptr(), value.nbytes)).hexdigest()[:16]
        return f"tensor {list(value.shape)} {digest}"
    if isinstance(value, Method):
        return value.config()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # a map, say, with tensors in it
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "__array_interface__") and getattr(value, "ndim", 0):  # of NumPy, without its scalars
        return plain(torch.as_tensor(value, device="cpu"))
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)  # NumPy's too
    return value


def config_around(config: dict[str, Any], inner: TablePlan, table: Table) -> dict[str, Any]:
    """The configuration that a table's state remembers: of a wrapper, with what was resolved for the method inside."""
    sizes = ("num_embeddings", "embedding_dim")
    inside = {name: value for name, value in inner.encoder.config.items() if name not in sizes}
    return {**config, "of": inside, **{name: getattr(table, name) for name in sizes}}


def per_table(value: Any, table: Table, field: str) -> Any:
    """A setting of one table: the value itself, or its entry in a mapping from table names."""
    if not isinstance(value, Mapping):
        return value
    if table.name not in value:
        raise ValueError(f"{field} names no table {table.name!r}; it has {sorted(value)}")
    return value[table.name]


def side_store(table: Table, what: str, tables: Sequence[Table]) -> str:
    """The name of a second store of a table, `what` saying which; no other table may bear it."""
    name = f"{table.name}_{what}"
    if any(other.name == name for other in tables):
        raise ValueError(
            f"table {table.name!r} keeps its {what} rows under {name!r}, the name of another table: rename it"
        )
    return name


def check_rows(rows: Any, table: str) -> int:
    """`rows` as a valid size of a hashed table."""
    return checked(rows, RowCount, f"table {table!r}: rows")
