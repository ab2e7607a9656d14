"""The result of `choose`: a method for each table, to be shown, saved and drawn."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from glob import escape
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from embcomp import artifact, configs, extras
from embcomp.files import Damaged, StrPath, write
from embcomp.formats import grouped, text_table
from embcomp.methods.base import Method
from embcomp.methods.full import Full
from embcomp.methods.plan import Count

UNITS = {1: "of what the tables are worth", 2: "in the loss given", 3: "in the loss given"}


@dataclass(frozen=True)
class TableChoice:
    """The choice for one table.

    Attributes:
        name: the name of the table.
        method: the chosen method.
        served: the bytes of the served form, with its share of a shared store.
        training: the bytes of the training form.
        full: the bytes of the full table in float32.
        worth: the worth of the table: about the rise of the loss if all its ids had one vector (docs/choose.md).
        loss: the expected rise of the loss that the method causes.
        more: the method that a tenth more budget would choose; "" for the same.
        note: a further remark, or "".
        rows: the rows of the store; those of all its tables if they share it.
    """

    name: str
    method: Method
    served: int
    training: int
    full: int
    worth: float
    loss: float
    more: str = ""
    note: str = ""
    rows: int = 0


@dataclass(frozen=True)
class Point:
    """A point of the curve: the least expected loss at a number of bytes."""

    nbytes: int
    loss: float


@dataclass(frozen=True)
class Choice:
    """A method and a size for every table.

    Attributes:
        tables: the choice for each table.
        budget: the budget in bytes.
        count: "served" or "training", the form whose bytes the budget limits.
        level: the knowledge that the choice is based on: 1 sizes and counts, 2 a trained model and batches, 3 short
            trainings too.
        loss: the expected rise of the loss; at level 1 as a share of the worth of the tables.
        curve: the least expected loss at other budgets.
        gain: the decrease of the loss with a tenth more budget.
        failed: the probes that failed.
        seconds: the time that the choice took, in seconds.

    Example:
        >>> import torch, embcomp
        >>> model = torch.nn.ModuleDict({"user": torch.nn.Embedding(50_000, 16), "day": torch.nn.Embedding(7, 16)})
        >>> choice = embcomp.choose(model, "10%")
        >>> report = embcomp.compress_(model, choice.methods)
        >>> report.served_nbytes <= choice.nbytes <= choice.budget  # full tables are in no report
        True
    """

    tables: Sequence[TableChoice]
    budget: int
    count: Count
    level: int
    loss: float
    curve: Sequence[Point] = ()
    gain: float = 0.0
    failed: Sequence[str] = ()
    seconds: float = 0.0
    notes: Sequence[str] = field(default=())

    @property
    def methods(self) -> dict[str, Method]:
        """The method of each table by name, as `compress_` takes them."""
        return {escape(table.name): table.method for table in self.tables}

    @property
    def nbytes(self) -> int:
        """The bytes of the form that the budget limits."""
        return self.served_nbytes if self.count == "served" else self.training_nbytes

    @property
    def served_nbytes(self) -> int:
        return sum(table.served for table in self.tables)

    @property
    def training_nbytes(self) -> int:
        return sum(table.training for table in self.tables)

    def __str__(self) -> str:
        header = ("table", "method", "rows", "bits", "bytes served", "bytes training", "loss", "with 10 % more")
        lines = [
            (t.name, kind(t.method), _rows(t), _bits(t.method), *_sizes(t), _number(t.loss), t.more)
            for t in self.tables
        ]
        last = f"-{self.gain:.2g}" if self.gain > 0 else ""
        lines.append(("total", "", "", "", *_sizes(self), _number(self.loss), last))
        text = text_table(header, lines)
        said = f"{grouped(self.nbytes)} of {grouped(self.budget)} bytes ({self.count}); loss {UNITS[self.level]}"
        notes = [f"{t.name}: {t.note}" for t in self.tables if t.note]
        return "\n".join([text, said, *notes, *self.notes, *(f"failed: {line}" for line in self.failed)])

    def save(self, path: StrPath) -> None:
        """Write the choice as JSON, and the tensors that its methods hold beside it, as `<path>.safetensors`.

        Raises:
            OSError: the file cannot be written; an existing file stays.
        """
        tensors: dict[str, Tensor] = {}
        values = {
            "tables": [_numbers(t) for t in self.tables],
            "methods": configs.to_json([t.method for t in self.tables], tensors),
            "groups": [[i for i, u in enumerate(self.tables) if u.method is t.method] for t in self.tables],
            **{name: getattr(self, name) for name in ("budget", "count", "level", "loss", "gain", "seconds")},
            "curve": [asdict(point) for point in self.curve],
            "failed": list(self.failed),
            "notes": list(self.notes),
            "tensors": bool(tensors),
        }
        if tensors:
            artifact.save(_beside(path), "choice", {"json": _checksum(values)}, tensors)
        text = json.dumps({**values, "checksum": _checksum(values)}, indent=1)
        write(path, text.encode())

    @classmethod
    def load(cls, path: StrPath) -> Self:
        """Read a choice that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            embcomp.files.Damaged: the file was damaged or edited.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            given = values.pop("checksum")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise Damaged(f"{path}: not a choice of embcomp: {error}") from error
        if given != _checksum(values):
            raise Damaged(f"{path} is damaged or was edited: its checksum does not fit")
        tensors: dict[str, Tensor] = {}
        if values.pop("tensors"):
            if not _beside(path).exists():
                raise Damaged(
                    f"{path}: {_beside(path).name} beside it is missing, which holds the tensors of its methods"
                )
            header, tensors = artifact.load(_beside(path), "choice")
            if header["json"] != given:
                raise Damaged(f"{_beside(path)}: belongs to another choice than {path}")
        made, groups = configs.from_json(values.pop("methods"), tensors), values.pop("groups")
        methods = [made[members[0]] for members in groups]  # one instance for all tables that share a store
        tables = [TableChoice(**t, method=m) for t, m in zip(values.pop("tables"), methods, strict=True)]
        curve = [Point(**point) for point in values.pop("curve")]
        return cls(tables=tables, curve=curve, **values)

    def plot(self, path: StrPath) -> None:
        """Draw the expected loss against the bytes, and the choice on the curve, into a file (SVG, PNG, PDF).

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(f"Choice.plot needs matplotlib: {extras.install('planner')}") from error
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot([p.nbytes for p in self.curve], [p.loss for p in self.curve], marker=".", label="best at each budget")
        axes.plot([self.nbytes], [self.loss], "o", color="tab:red", label="chosen")
        axes.set_xscale("log")
        axes.set_xlabel(f"bytes ({self.count})")
        axes.set_ylabel(f"expected loss, {UNITS[self.level]}")
        axes.legend()
        figure.savefig(Path(path))


def kind(method: Method) -> str:
    """The name of a method with those of the methods inside: LowBit(LowRank 4)."""
    inner, rank = getattr(method, "of", None), getattr(method, "rank", None)
    name = type(method).__name__ + (f" {rank}" if rank is not None else "")
    if not isinstance(inner, Method) or isinstance(inner, Full):
        return name
    return f"{name}({kind(inner)})"


def _numbers(table: TableChoice) -> dict[str, Any]:
    return {f.name: getattr(table, f.name) for f in fields(table) if f.name != "method"}


def _rows(table: TableChoice) -> str:
    return grouped(table.rows) if table.rows else ""


def _bits(method: Method) -> str:
    bits = getattr(method, "bits", None)
    return str(bits) if isinstance(bits, int) else ""


def _sizes(of: TableChoice | Choice) -> tuple[str, str]:
    if isinstance(of, Choice):
        return grouped(of.served_nbytes), grouped(of.training_nbytes)
    return grouped(of.served), grouped(of.training)


def _number(loss: float) -> str:
    return "0" if abs(loss) < 5e-7 else f"{loss:.2g}"


def _beside(path: StrPath) -> Path:
    return Path(f"{path}.safetensors")


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
