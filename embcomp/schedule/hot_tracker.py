"""The tracker that moves own rows of `HotRows` to the ids with the largest gradients while a model is trained."""

import abc
from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from embcomp.holders import holder_of
from embcomp.methods.base import Encoder
from embcomp.methods.hot_rows import OwnersEncoder
from embcomp.nn.calls import bag_call
from embcomp.nn.embedding_bag import CompressedEmbeddingBag
from embcomp.nn.table import CompressedTable
from embcomp.ops.hot_sketch import HotSketch
from embcomp.optimizers import row_states
from embcomp.settings import Within, checked

Told = Callable[[Tensor, Tensor], None]
"""A function that is told ids, int64 [N], and the norms of their gradients, [N]."""


class ForwardHook:
    """A forward hook that belongs to one module: copies and files of the module have one that does nothing.

    Args:
        after: a function of the arguments, the named arguments and the result of a call.
    """

    def __init__(self, after: Callable[[tuple[Any, ...], dict[str, Any], Any], None] | None = None) -> None:
        self._after = after

    def __call__(self, module: Any, args: tuple[Any, ...], given: dict[str, Any], result: Any) -> None:
        if self._after is not None:
            self._after(args, given, result)

    def __deepcopy__(self, memo: Any) -> "ForwardHook":
        return ForwardHook()

    def __reduce__(self) -> Any:
        return ForwardHook, ()


class Watched(abc.ABC):
    """A table of `HotRows` inside a module of any kind."""

    encoder: OwnersEncoder

    @abc.abstractmethod
    def attach(self, told: Told) -> Any:
        """Report the gradients of each backward pass from now on; return a handle with `remove()`."""

    @abc.abstractmethod
    def copy_rows(self, source: Tensor, target: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
        """Copy rows and their optimizer state, from and to row numbers int64 [M] each that do not overlap."""

    def gather(self, told: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Return the reports of all processes, the same on each, in the order of their ranks."""
        return told


@singledispatch
def watched(module: Any, table: str | None) -> Watched:
    """Find the table in a module. Each kind of module registers its own.

    Raises:
        ValueError: the module has no such table of `HotRows`.
    """
    raise ValueError(
        f"HotTracker wants a CompressedEmbedding, a CompressedEmbeddingBag or a compressed torchrec collection, got "
        f"{type(module).__name__}; give it the module of the table, not the model"
    )


class HotTracker:
    """A tracker of the gradients of a table of `HotRows` that moves its own rows to the ids that need them most.

    After each backward pass the norm of the gradient of each id's vector is added to a sketch of the largest such sums.
    Every `every` steps, ids with larger sums than owners replace these: the row of a new owner is a copy of the shared
    row that it read, with its optimizer state, so that its vector does not change. The former owner shares a row again.
    Scores decay, and an owner stays until another id's score is `hysteresis` times its own.

    Under `shard` every process makes one for its module, and all call `step` together; rows and state move between the
    processes that hold them.

    Args:
        module: a `CompressedEmbedding`, a `CompressedEmbeddingBag`, or a compressed torchrec collection, plain, fused
            or sharded.
        table: the name of the table, if the module is a collection.
        optimizer: the optimizer that trains the rows outside the backward pass, whose state moves with them.
        every: the number of steps between moves.
        decay: the factor of all scores at each move.
        hysteresis: the factor by which another id's score must exceed that of an owner.
        room: the number of cells of the sketch for each own row.

    Raises:
        ValueError: the module or method is another one, or a setting is out of range.

    Example:
        >>> import torch, embcomp
        >>> emb = embcomp.nn.CompressedEmbedding(10_000, 8, embcomp.HotRows(rows=100))
        >>> optimizer = torch.optim.Adagrad(emb.parameters(), lr=0.1)
        >>> tracker = embcomp.HotTracker(emb, optimizer=optimizer, every=2)
        >>> for _ in range(4):
        ...     emb(torch.tensor([7, 7, 9])).square().sum().backward()
        ...     optimizer.step()
        ...     _ = tracker.step()
        >>> tracker.owners()
        tensor([7, 9])
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        table: str | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        every: int = 100,
        decay: float = 0.98,
        hysteresis: float = 1.2,
        room: int = 4,
    ) -> None:
        self.every = checked(every, Annotated[int, Within(1)], "HotTracker: every")
        self.decay = checked(decay, Annotated[float, Within(0, 1)], "HotTracker: decay")
        self.hysteresis = checked(hysteresis, Annotated[float, Within(1)], "HotTracker: hysteresis")
        checked(room, Annotated[int, Within(1)], "HotTracker: room")
        self._table = watched(module, table)
        self._optimizer = optimizer
        self._encoder = self._table.encoder
        cells = 4
        self.sketch = HotSketch(-(-max(1, self._encoder.own) * room // cells), cells, self._encoder.seed)
        self._told: list[tuple[Tensor, Tensor]] = []
        self._steps = 0
        self._handle = self._table.attach(self._tell)

    def _tell(self, ids: Tensor, norms: Tensor) -> None:
        ids, positions = torch.unique(ids.detach().cpu().long(), return_inverse=True)
        sums = torch.zeros(len(ids), dtype=torch.float32).index_add_(0, positions, norms.detach().cpu().float())
        finite = sums.isfinite() & (sums > 0)  # a scaled loss may overflow
        self._told.append((ids[finite], sums[finite]))

    def owners(self) -> Tensor:
        """Return the ids that own a row, int64 [n], ascending."""
        return self._encoder.owners[: int(self._encoder.number)].cpu()

    def step(self) -> int:
        """Count a step, after the optimizer's; return how many rows moved, 0 between moves."""
        self._steps += 1
        return self.move() if self._steps % self.every == 0 else 0

    @torch.no_grad()
    def move(self) -> int:
        """Move rows now; return how many."""
        # All at once, so that neither the number of processes nor that of steps decides what the sketch forgets.
        self.sketch.add(*_joined(self._table.gather(self._told)))
        self._told = []
        owners, slots = self.owners(), self._encoder.slots[: int(self._encoder.number)].long().cpu()
        new, target, kept = self._chosen(owners, slots)
        self.sketch.decay(self.decay)
        if not len(new):
            return 0
        home = self._encoder.owners.device
        self._table.copy_rows(self._encoder.shared_rows(new.to(home)), target.to(home), self._optimizer)
        self._encoder.set_owners(torch.cat([owners[kept], new]), torch.cat([slots[kept], target]))
        return len(new)

    def _chosen(self, owners: Tensor, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ids that take rows over, these rows, and which owners stay, bool."""
        ids, scores = self.sketch.held()
        fresh = ~torch.isin(ids, owners)
        ids, scores = ids[fresh & (scores > 0)], scores[fresh & (scores > 0)]
        taken = torch.zeros(self._encoder.own, dtype=torch.bool).index_fill_(0, slots, True)
        free = (~taken).nonzero().squeeze(1)
        own = self.sketch.scores_of(owners) if len(owners) else torch.zeros(0)
        weakest = own.argsort(stable=True)
        pairs = min(len(weakest), max(0, len(ids) - len(free)))
        later = scores[len(free) : len(free) + pairs]
        # Scores fall and those of owners rise, so that those who win come first.
        wins = int((later > self.hysteresis * own[weakest[:pairs]]).long().cumprod(0).sum())
        kept = torch.ones(len(owners), dtype=torch.bool).index_fill_(0, weakest[:wins], False)
        target = torch.cat([free[: len(ids)], slots[weakest[:wins]]])
        return ids[: len(target)], target, kept

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, beside the module's: the sketch and the number of steps.

        Under sharding each process has its own state: its gradients since the last move.
        """
        ids, sums = _joined(self._told)
        return {**self.sketch.state_dict(), "ids": ids, "sums": sums, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state.

        Raises:
            ValueError: the state is of a sketch of another size.
        """
        self.sketch.load_state_dict(state)
        self._steps, self._told = int(state["steps"]), [(state["ids"], state["sums"])]

    def close(self) -> None:
        """Stop tracking; owners keep their rows."""
        self._handle.remove()

    def __deepcopy__(self, memo: Any) -> "HotTracker":
        raise TypeError("a HotTracker is of one module: make another for the copy, and load this one's state_dict()")


def _joined(told: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the ids and the norms of all calls, concatenated."""
    if not told:
        return torch.empty(0, dtype=torch.int64), torch.empty(0)
    return torch.cat([ids for ids, _ in told]), torch.cat([sums for _, sums in told])


def owners_encoder(encoder: Encoder, coded: bool) -> OwnersEncoder:
    """Return the encoder of a table of `HotRows` with float rows. Raise ValueError for another."""
    if not isinstance(encoder, OwnersEncoder) or coded:
        method = encoder.config["method"]
        raise ValueError(f"table {encoder.table.name!r}: HotTracker is for float rows of HotRows, got {method}")
    return encoder


def copy_all(tensors: list[Tensor], source: Tensor, target: Tensor) -> None:
    """Copy rows of several tensors, each once."""
    for tensor in {tensor.data_ptr(): tensor for tensor in tensors}.values():
        tensor.detach()[target] = tensor.detach()[source]


class _WatchedTable(Watched):
    """A watched table that is a module."""

    def __init__(self, module: CompressedTable) -> None:
        self.module = module
        holder = holder_of(module, [""])
        assert holder is not None
        (self.held,) = holder.tables.values()
        if getattr(module, "mode", None) == "max":
            raise ValueError(
                f"table {self.held.table.name!r}: mode='max' trains single columns of the ids of a bag, which no "
                "tracker of gradients of bags can tell apart; take mode='sum' or 'mean'"
            )
        self.encoder = owners_encoder(module.encoder, coded=any(s.codec is not None for s in self.held.stores.values()))

    def attach(self, told: Told) -> Any:
        def after(args: tuple[Any, ...], given: dict[str, Any], output: Tensor) -> None:
            if output.requires_grad and torch.is_grad_enabled():
                named = dict(zip(("input", "offsets", "per_sample_weights"), args, strict=False)) | given
                output.register_hook(lambda grad: self._tell(told, named, grad))

        return self.module.register_forward_hook(ForwardHook(after), with_kwargs=True)

    def _tell(self, told: Told, call: Mapping[str, Any], grad: Tensor) -> None:
        ids, norms = call["input"].reshape(-1), grad.reshape(-1, grad.shape[-1]).norm(dim=1)
        if isinstance(self.module, CompressedEmbeddingBag):
            settings = {"mode": self.module.mode, "include_last_offset": self.module.include_last_offset}
            arguments = call["input"], call.get("offsets"), call.get("per_sample_weights")
            bags = bag_call(*arguments, **settings, device=grad.device)
            lengths = bags.bounds.diff()
            bag = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
            if self.module.mode == "mean":  # of the ids without the padding
                padding = -1 if self.module.padding_idx is None else self.module.padding_idx
                counted = torch.zeros_like(lengths).index_add_(0, bag, (bags.ids != padding).to(lengths.dtype))
                norms = norms / counted.clamp(min=1)
            ids, norms = bags.ids, norms[bag]
            if bags.weights is not None:
                norms = norms * bags.weights.abs()
        if self.module.padding_idx is not None:
            counted = ids != self.module.padding_idx
            ids, norms = ids[counted], norms[counted]
        told(ids, norms)

    def copy_rows(self, source: Tensor, target: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
        (store,) = self.held.stores.values()
        copy_all([store.weight, *row_states(optimizer, store.weight)], source, target)


@watched.register
def _(module: CompressedTable, table: str | None) -> Watched:
    if table is not None:
        raise ValueError(f"table={table!r}: {type(module).__name__} is one table; leave it out")
    return _WatchedTable(module)
