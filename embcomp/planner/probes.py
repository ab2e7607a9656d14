"""Probes: the loss of each option for a trained model on held-out batches, kept on disk, within a time limit."""

import hashlib
import io
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embcomp.compress import compress_
from embcomp.files import StrPath
from embcomp.methods.base import Method, plain
from embcomp.nn.table import CompressedTable
from embcomp.notes import CompressionWarning
from embcomp.planner.tables import Held
from embcomp.settings import shown

Loss = Callable[[nn.Module, Any], Any]
"""A function from a model and a batch to the mean loss of the batch."""


@dataclass(frozen=True)
class Failure:
    """A probe that failed.

    Attributes:
        tables: the tables that were compressed.
        method: the method.
        why: the error.
    """

    tables: tuple[str, ...]
    method: str
    why: str


@dataclass
class Probes:
    """The measurements of how the loss rises when tables are compressed after training, without gradients.

    The vectors of a method (`init="warm"`) replace the trained ones, the loss is computed on all batches, and the
    trained vectors are put back. Every figure is kept in memory and, if a file is given, on disk: a second call, or a
    call after an interruption, measures nothing twice.

    Args:
        model: the trained model.
        held: the tables of the model.
        batches: held-out batches.
        loss: a function from a model and a batch to the mean loss of the batch.
        counts: the number of times each id occurs, by table name.
        cache: a file for the figures, one per line.
        seconds: the time in seconds after which nothing more is measured.
        heard: a function that is told of each figure.
        sizes: the number of rows of each batch, by which their losses are weighed; by default all weigh the same.

    Attributes:
        base: the loss of the unchanged model.
        failed: the probes that failed.

    Raises:
        ValueError: there are no batches, or a loss is not a finite number.
    """

    model: nn.Module
    held: Sequence[Held]
    batches: Sequence[Any]
    loss: Loss
    counts: Mapping[str, Tensor] = field(default_factory=dict)
    cache: StrPath | None = None
    seconds: float | None = None
    heard: Callable[[str], None] = lambda text: None
    sizes: Sequence[int] = ()
    failed: list[Failure] = field(default_factory=list)
    made: int = 0

    def __post_init__(self) -> None:
        if not self.batches:
            raise ValueError("data holds no batch: give held-out batches, a list of them or a loader")
        self._started = time.monotonic()
        self._losses = self._measured()
        self.base = self.mean(self._losses)
        self._known: dict[str, tuple[float, float]] = {}
        self._digests = [_digest(table.weight) + _digest(self.counts.get(table.name)) for table in self.held]
        kept = self.cache is not None  # else nothing tells these batches from others
        self._data = _hash(repr(self._losses), *map(_digest_of_batch, self.batches)) if kept else ""
        if self.cache is not None and Path(self.cache).exists():
            self._known = _read(Path(self.cache))

    def mean(self, losses: Sequence[float]) -> float:
        """Return the mean of the losses of all batches, weighed by their rows."""
        if len(set(self.sizes)) < 2:
            return sum(losses) / len(losses)
        return sum(size * loss for size, loss in zip(self.sizes, losses, strict=True)) / sum(self.sizes)

    def difference(self, new: Sequence[float], old: Sequence[float]) -> tuple[float, float]:
        """Return the mean of `new` - `old`, losses of all batches, and its standard error; 0 for a single batch."""
        rises = [a - b for a, b in zip(new, old, strict=True)]
        rise = self.mean(rises)
        return rise, _error(rises, rise, self.sizes or [1] * len(rises))

    @property
    def what(self) -> str:
        """A text of all that is measured: the batches, the losses of the model on them, and its tables."""
        return _hash(self._data, *self._digests)

    @property
    def spent(self) -> float:
        """The seconds since the first batch."""
        return time.monotonic() - self._started

    @property
    def late(self) -> bool:
        """True if the time is over."""
        return self.seconds is not None and self.spent > self.seconds

    def worth(self, tables: Sequence[int]) -> tuple[float, float] | None:
        """Return the rise of the loss if all ids of each table have their mean vector, and its standard error.

        None if the time is over. The error is 0 for a single batch.
        """
        return self._kept("mean", tables, lambda: [(i, _mean(self.held[i], self._weights(i))) for i in tables])

    def rise(self, tables: Sequence[int], method: Method) -> float | None:
        """Return the rise of the loss if a method stores these tables; None if the probe failed or the time is over."""
        return self.together([(tables, method)])

    def together(self, plan: Sequence[tuple[Sequence[int], Method]]) -> float | None:
        """Return the rise of the loss if several methods store the tables given with each."""
        tables = [i for numbers, _ in plan for i in numbers]
        text = json.dumps([[list(numbers), plain(method)] for numbers, method in plan], sort_keys=True)
        kept = self._kept(text, tables, lambda: [pair for numbers, m in plan for pair in self._vectors(numbers, m)])
        return None if kept is None else kept[0]

    def _kept(
        self, what: str, tables: Sequence[int], make: Callable[[], list[tuple[int, Tensor]]]
    ) -> tuple[float, float] | None:
        if any(self.held[i].weight is None for i in tables):
            return None
        key = _hash(what, self._data, *[self._digests[i] for i in tables])
        if key not in self._known:
            if self.late:
                return None
            names = tuple(self.held[i].name for i in tables)
            try:
                rise, error = self.difference(self._with(make()), self._losses)
                if not math.isfinite(rise):
                    raise ValueError(f"the loss becomes {rise + self.base}")
            except Exception as failure:  # of one option: it is recorded, and the others continue
                self.failed.append(Failure(names, what, f"{type(failure).__name__}: {failure}"))
                rise = error = math.nan
            self._known[key] = rise, error
            self.made += 1
            self.heard(f"{', '.join(names[:2])}{', ...' if len(names) > 2 else ''}")
            if self.cache is not None and not math.isnan(rise):
                _append(Path(self.cache), key, rise, error)
        known = self._known[key]
        return None if math.isnan(known[0]) else known

    @torch.no_grad()
    def _with(self, vectors: Sequence[tuple[int, Tensor]]) -> list[float]:
        """The losses with other vectors in the place of the trained ones, which are always put back."""
        kept = []
        try:
            for i, new in vectors:
                held = self.held[i]
                weight = held.weight
                assert weight is not None
                kept.append((weight, weight.detach().clone()))
                if held.padding is not None:
                    new[held.padding] = weight[held.padding]
                weight.data.copy_(new)
            return self._measured()
        finally:
            for weight, old in reversed(kept):  # of a weight that two tables share the first copy is the trained one
                weight.data.copy_(old)

    @torch.no_grad()
    def _measured(self) -> list[float]:
        losses = []
        with evaluating(self.model):
            for number, batch in enumerate(self.batches):
                try:
                    value = self.loss(self.model, batch)
                except Exception as error:
                    error.add_note(f"choose: this is of batch {number} of data")
                    raise
                if isinstance(value, Tensor) and value.numel() != 1:
                    raise ValueError(f"loss must give one number a batch, got shape {list(value.shape)}")
                if value is None:
                    raise TypeError("loss must return the mean loss of a batch, and returns None")
                if not hasattr(value, "__float__"):
                    raise TypeError(f"loss must return the mean loss of a batch, one number, got {shown(value)}")
                losses.append(float(value))
        if not hasattr(self, "base") and not all(map(math.isfinite, losses)):
            worst = next(i for i, value in enumerate(losses) if not math.isfinite(value))
            raise ValueError(f"the loss of batch {worst} is {losses[worst]}: {self._not_finite()}")
        return losses

    def _not_finite(self) -> str:
        """The tables, or else the parameters, that hold NaN or infinite values, and what to do."""
        bad = [
            table.name for table in self.held if table.weight is not None and not bool(table.weight.isfinite().all())
        ]
        bad = [f"table {name!r}" for name in bad] or [
            f"parameter {name!r}" for name, weight in self.model.named_parameters() if not bool(weight.isfinite().all())
        ]
        if bad:
            return f"{', '.join(bad[:3])} of the model holds NaN or infinite values; look for the cause in its training"
        return "no parameter of the model holds NaN, so look at the batch and at the function of the loss"

    def _weights(self, i: int) -> Tensor | None:
        counts = self.counts.get(self.held[i].name)
        return None if counts is None else counts.float()

    def _vectors(self, tables: Sequence[int], method: Method) -> list[tuple[int, Tensor]]:
        """The vectors that a method makes of the trained ones."""
        root = nn.Module()
        for i in tables:
            held = self.held[i]
            assert held.weight is not None
            table = nn.Embedding.from_pretrained(held.weight.detach().clone(), freeze=False)
            _put(root, held.name, table)
        counts = {self.held[i].name: c for i in tables if (c := self._weights(i)) is not None and bool((c > 0).any())}
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # the rows that are drawn are replaced
            warnings.simplefilter("ignore", CompressionWarning)
            compress_(root, {_escaped(self.held[i].name): method for i in tables}, init="warm", counts=counts or None)
        made = []
        for i in tables:
            table = root.get_submodule(self.held[i].name)
            vectors = table.materialize() if isinstance(table, CompressedTable) else self.held[i].weight
            assert isinstance(vectors, Tensor)
            made.append((i, vectors.detach().clone()))
        return made


def _mean(held: Held, weights: Tensor | None) -> Tensor:
    weight = held.weight
    assert weight is not None
    rows = weight.detach()
    if weights is None or not bool((weights > 0).any()):
        mean = rows.mean(0)
    else:
        share = (weights / weights.sum()).to(rows)
        mean = (rows * share.unsqueeze(1)).sum(0)
    return mean.expand_as(rows).clone()


def _escaped(name: str) -> str:
    from glob import escape

    return escape(name)


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, module)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and restore the mode of each module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _digest(weight: Tensor | None) -> str:
    return "" if weight is None or weight.is_meta else str(plain(weight))


def _digest_of_batch(batch: Any) -> str:
    """A checksum of a batch; empty for one that cannot be saved, which its loss has to tell from others."""
    buffer = io.BytesIO()
    try:
        torch.save(batch, buffer)
    except Exception:  # of whatever a user's batches hold
        return ""
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _error(rises: Sequence[float], mean: float, sizes: Sequence[int]) -> float:
    """The standard error of the mean, weighed by sizes; 0 for a single value."""
    if len(rises) < 2:
        return 0.0
    spread = sum((size * (rise - mean)) ** 2 for rise, size in zip(rises, sizes, strict=True)) / sum(sizes) ** 2
    return math.sqrt(spread * len(rises) / (len(rises) - 1))


def _append(path: Path, key: str, rise: float, error: float) -> None:
    """Append a figure on a new line, even if a killed process left an unfinished one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(
            "\n"
            + json.dumps({"probe": key, "rise": rise, "error": error, "sum": _hash(key, repr(rise), repr(error))})
            + "\n"
        )
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> dict[str, tuple[float, float]]:
    """The figures of a file; incomplete lines are skipped, and measured again."""
    known = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not (first := next((line for line in lines if line.strip()), '{"')).startswith('{"'):
        raise ValueError(f"cache {path} holds something else than probes ({first[:40]!r}): name another file")
    for line in lines:
        try:
            values = json.loads(line)
            key, rise, error = values["probe"], float(values["rise"]), float(values["error"])
            if values["sum"] == _hash(key, repr(rise), repr(error)):
                known[key] = rise, error
        except (ValueError, TypeError, KeyError):
            continue
    return known
