"""The parts of every method: an encoder (id -> rows), stores and their codecs (row -> vector), a combiner (-> vector).

A method is one frozen dataclass. Its `plan(tables)` describes the stores for these tables, and how the ids of each
table reach them. `embcomp.nn`, `embcomp.torchrec` and `embcomp.compress_` work from the plan alone, so adding a method
means writing one file (docs/add-a-method.md).
"""

import abc
import ctypes
import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from embcomp import configs
from embcomp.methods.budget import Ladder, can_balance, share_rows
from embcomp.methods.combiners import COMBINERS, Combiner, Concat, Product, Sum, WeightedSum, start_like
from embcomp.methods.encoder import ENCODERS, Encoder, Rows
from embcomp.methods.plan import FLOAT_BYTES, KEY_BYTES, Chunk, Plan, Sizes, Store, TablePlan, check_size
from embcomp.methods.request import Budget, Count, Tables, request
from embcomp.methods.table import Table
from embcomp.ops.hashing import MAX_ROWS
from embcomp.settings import RowCount, checked, hints_of

__all__ = [
    "COMBINERS",
    "ENCODERS",
    "FLOAT_BYTES",
    "KEY_BYTES",
    "METHODS",
    "Budget",
    "Chunk",
    "Combiner",
    "Concat",
    "Count",
    "Encoder",
    "Ladder",
    "Method",
    "Plan",
    "Product",
    "Rows",
    "Sizes",
    "Store",
    "Sum",
    "Table",
    "TablePlan",
    "Tables",
    "WeightedSum",
    "check_counts",
    "check_rows",
    "check_size",
    "config_around",
    "per_table",
    "plain",
    "side_store",
    "start_like",
]

METHODS: dict[str, type["Method"]] = {}


class _Configurable(abc.ABCMeta):
    """The metaclass of methods: it checks settings before a configuration is made, and accepts those of `config()`."""

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
        shares_store: True if the tables of a group read one store, and so must live in one module tree.
        learns_from_vectors: True if it was made of trained vectors, so that it may be served without training.
        sized_in_steps: True if its sizes are not a row apart, so that a budget may not be filled to a row.
        sized_by: the setting that `for_budget` chooses.
        budget_settings: the settings that `for_budget` takes beside the fields.
        expected: the text that tells users how to make a configuration, for errors.

    Example:
        >>> import embcomp
        >>> method = embcomp.METHODS["HashingTrick"](rows=100)
        >>> method
        HashingTrick(rows=100, seed=0, balanced=False)
        >>> embcomp.METHODS["HashingTrick"](**method.config()) == method
        True
    """

    shares_store: ClassVar[bool] = False
    learns_from_vectors: ClassVar[bool] = False
    sized_in_steps: ClassVar[bool] = False
    sized_by: ClassVar[str] = "rows"
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
        """Return the stores and the encoders for these tables; `group` names stores that several tables share.

        Raises:
            ValueError: a table cannot be compressed with these settings; the text names the table and the remedy.
        """

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        """Return the sizes of the plan's stores, as numbers alone. The default makes the plan; override it if slow."""
        return self.plan(tables, group).sizes

    @classmethod
    def for_budget(cls, tables: Tables, nbytes: Budget, *, count: Count = "served", **fixed: Any) -> Self:
        """Return the largest configuration whose tables and maps together take at most `nbytes`.

        Args:
            tables: the tables to compress together, or a model for all tables that `compress_` finds in it.
            nbytes: the budget in bytes, as a number, "50MB", or "10%" of the full tables in float32.
            count: "served" to count the bytes of the served form, "training" those of the training form, without
                optimizer state. They differ if a codec rounds or codes the rows.
            fixed: settings to keep as given.

        Raises:
            TypeError: `tables` are neither tables nor a model, or `nbytes` is neither a number nor a text.
            ValueError: the smallest configuration exceeds the budget; the text gives its bytes.
        """
        tables, nbytes = request(tables, nbytes, count)
        return cls.ladder(tables, nbytes, **cls.checked_settings(fixed)).largest(cls, tables, nbytes, count)

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return the configurations ordered by size, from which `for_budget` takes the largest that fits.

        By default the size is the number of rows of all tables together, split by `share_rows`. A method with the
        setting `balanced` sets it if all id spaces are closed. Methods that are sized in another way override this.

        Args:
            tables: the tables to compress together.
            nbytes: the approximate budget in bytes, for settings that depend on it.
            fixed: settings to keep as given, already checked.

        Raises:
            TypeError: the method has no setting `rows` and no `ladder` of its own.
        """
        hints = hints_of(cls)
        if "rows" not in hints:
            raise TypeError(f"{cls.__name__} has no `rows` to choose by a budget: a budget needs its own `ladder`")
        if "balanced" in hints:
            fixed = {"balanced": can_balance(tables), **fixed}

        def make(size: int) -> Self:
            return cls(rows=share_rows(tables, size), **fixed)  # pyright: ignore[reportCallIssue]

        return Ladder(make, lambda size: make(size).sizes(tables), most=MAX_ROWS * len(tables))

    @classmethod
    def checked_settings(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check settings before a configuration is made, and return them converted to the types of their fields.

        Raises:
            ValueError: a setting does not fit its field; the text names it. Names without a field pass unchecked, and
                so does `of`, which may be the class of a method.
        """
        hints = hints_of(cls)
        return {name: value if name == "of" else _setting(cls, hints, name, value) for name, value in given.items()}

    def config(self, *, without: Sequence[str] = ()) -> dict[str, Any]:
        """Return the settings as JSON values, tensors as checksums; a state dict keeps these to recognise its method.

        `embcomp.configs` writes configurations in a form that can be read back, tensors included.

        Args:
            without: the settings to leave out, because the encoder holds their content.
        """
        names = [f.name for f in dataclasses.fields(self) if f.name not in without]
        return {"method": type(self).__name__, **{name: plain(getattr(self, name)) for name in names}}

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and configs.same(self, other)

    def __hash__(self) -> int:
        return hash((type(self), configs.hashed(configs.fields_of(self))))


configs.register("method", METHODS)


def plain(value: Any) -> Any:
    """Convert a setting to a JSON value; a tensor becomes its shape and checksum."""
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
    """Return the configuration that a wrapper's encoder keeps, with the resolved settings of the method inside."""
    sizes = ("num_embeddings", "embedding_dim")
    inside = {name: value for name, value in inner.encoder.config.items() if name not in sizes}
    return {**config, "of": inside, **{name: getattr(table, name) for name in sizes}}


def per_table(value: Any, table: Table, field: str) -> Any:
    """Return the setting of one table: the value itself, or its entry in a mapping from table names."""
    if not isinstance(value, Mapping):
        return value
    if table.name not in value:
        raise ValueError(f"{field} names no table {table.name!r}; it has {sorted(value)}")
    return value[table.name]


def side_store(table: Table, what: str, tables: Sequence[Table]) -> str:
    """Name a second store of a table by its purpose `what`. Raise ValueError if another table has that name."""
    name = f"{table.name}_{what}"
    if any(other.name == name for other in tables):
        raise ValueError(
            f"table {table.name!r} keeps its {what} rows under {name!r}, the name of another table: rename it"
        )
    return name


def check_rows(rows: Any, table: str) -> int:
    """Check that `rows` is a valid number of rows of a hashed table, and return it as an int."""
    return checked(rows, RowCount, f"table {table!r}: rows")


def check_counts(counts: Any, table: Table) -> Tensor:
    """Check how often each id of a table occurs, and return it as a tensor [num_embeddings] of non-negative numbers."""
    ids = table.ids_or_raise("counts")
    counts = counts if isinstance(counts, Tensor) else torch.as_tensor(counts, device="cpu")
    if counts.shape != (ids,):
        raise ValueError(f"table {table.name!r}: counts must have shape [{ids}], got {list(counts.shape)}")
    if not bool(((counts >= 0) & (counts < math.inf)).all()):
        raise ValueError(f"table {table.name!r}: counts must not be negative, infinite or NaN")
    return counts
