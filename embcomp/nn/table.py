"""The common base of the drop-ins: the stores, encoder and combiner of one table, and its vectors without pooling."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embcomp.methods.base import Method, Plan, Table, TablePlan, check_size
from embcomp.methods.combiners import as_module
from embcomp.nn.arguments import check_flag, check_home, check_method
from embcomp.nn.stores import PlainStore, check_floats
from embcomp.nn.weight import ComputedWeight
from embcomp.ops.bags import transformed
from embcomp.ops.checks import check_same_device, check_tensor, readable
from embcomp.settings import checked
from embcomp.tracing import NotScripted, check_not_a_constant

_WORTH_SORTING = 512  # ids, where a vector takes many operations


class CompressedTable(NotScripted, nn.Module):
    """The base of `CompressedEmbedding` and `CompressedEmbeddingBag`, which therefore have the same state-dict keys.

    Settings of torch's classes that are not supported (`max_norm`, `norm_type`, `scale_grad_by_freq`) have their
    default values, for code that reads them.

    Attributes:
        num_embeddings: the number of ids, or None for an open id space.
        embedding_dim: the width of the output (with `UnifiedEmbedding.lookups` it follows from the look-ups).
        padding_vector: the vector of the padding id, [embedding_dim], a buffer that is not trained; None if it is zero,
            as in a new module.
    """

    max_norm: float | None = None
    norm_type: float = 2.0
    scale_grad_by_freq: bool = False

    def __init__(
        self,
        num_embeddings: int | None,
        embedding_dim: int,
        method: Method,
        padding_idx: int | None,
        sparse: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        check_method(method)
        check_flag(sparse, "sparse")
        check_home(device, dtype)
        plan = method.plan([Table("embedding", num_embeddings, embedding_dim)])
        stores = make_stores(plan, sparse, device, dtype)
        self._set_up(plan, plan.tables[0], stores, padding_idx, sparse)

    @classmethod
    def from_plan(cls, plan: Plan, table: TablePlan, stores: Mapping[str, PlainStore], **settings: Any):
        """Make a module for one table of a plan whose stores already exist, perhaps shared with other tables."""
        self = cls.__new__(cls)
        padding_idx, sparse = settings.pop("padding_idx", None), settings.pop("sparse", False)
        padding_vector = settings.pop("padding_vector", None)
        self._set_up(plan, table, stores, padding_idx, sparse)
        self.padding_vector = padding_vector
        for name, value in settings.items():
            setattr(self, name, value)
        return self

    @classmethod
    def from_pretrained(cls, embeddings: Tensor, *arguments: Any, **settings: Any):
        """Refuse the call: rows are fitted to trained vectors by `compress_`, which is given the method.

        Raises:
            TypeError: always, with the remedy.
        """
        plain = cls.__name__.removeprefix("Compressed")
        raise TypeError(
            f"{cls.__name__} does not know the method to fit pretrained vectors with: put "
            f"torch.nn.{plain}.from_pretrained(...) into the model, and call "
            "embcomp.compress_(model, {name: method}, init='warm')"
        )

    def _set_up(
        self,
        plan: Plan,
        table: TablePlan,
        stores: Mapping[str, PlainStore],
        padding_idx: int | None,
        sparse: bool,
    ) -> None:
        nn.Module.__init__(self)
        self.num_embeddings = table.table.num_embeddings
        self.embedding_dim = plan.embedding_dim(table)
        self.padding_idx = _checked_padding(padding_idx, table.table)
        self.register_buffer("padding_vector", None)
        self.sparse = sparse
        self.chunks = table.chunks
        self.combiner = table.combiner
        self.encoder = table.encoder
        # By number, not by name: names of tables may hold dots, and state dicts fit modules of other names.
        names = list(dict.fromkeys(chunk.store for chunk in table.chunks))
        self.stores = nn.ModuleList([stores[name] for name in names])
        self.reads = tuple(names.index(chunk.store) for chunk in table.chunks)
        home = self._store(0).device
        move_combiner(self.combiner, home, self._store(0).dtype)
        if home.type != "meta":  # maps and keys stay real: only rows wait for their memory
            self.encoder.to(home)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if (combiner := vars(self).pop("combiner", None)) is not None:  # a pickle of before combiners were modules
            self.combiner = as_module(combiner)

    def reset_parameters(self) -> None:
        """Draw the rows anew, with the moments they had, and recompute the hash keys (after `to_empty`, say).

        The padding vector becomes zero, as in `nn.Embedding`.
        """
        self.padding_vector = None
        self.encoder.reset_buffers()
        reset_combiner(self.combiner)
        for store in self.stores:
            store.reset_parameters()  # pyright: ignore[reportCallIssue]

    def _store(self, chunk: int) -> PlainStore:
        return self.stores[self.reads[chunk]]  # pyright: ignore[reportReturnType]

    def _vectors(self, ids: Tensor) -> Tensor:
        """Look up ids [N] -> [N, embedding_dim]; the padding id gives zeros."""
        if self.combiner.costly and readable(ids) and not transformed() and ids.numel() >= _WORTH_SORTING:
            different, places = torch.unique(ids, return_inverse=True)
            if different.numel() <= 0.75 * ids.numel():  # each is computed once
                return F.embedding(places, self._vectors_of(different))
        return self._vectors_of(ids)

    def _vectors_of(self, ids: Tensor) -> Tensor:
        """Look up every id, as `_vectors`."""
        encoded = self.encoder(ids)
        chunks = [self._store(i).look_up(*rows) for i, rows in enumerate(encoded)]
        vectors = self.combiner([*chunks, *self.encoder.hand(ids)] if self.encoder.hands else chunks)
        if self.padding_idx is not None:
            vectors = vectors.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0.0)
        return vectors

    def materialize(self, ids: Tensor | None = None) -> Tensor:
        """Return the full table, or the vectors of `ids`, differentiably: what `.weight` is for an uncompressed table.

        Args:
            ids: the ids, integers of any shape; None for 0 .. num_embeddings - 1.

        Returns:
            The vectors, [num_embeddings, embedding_dim] or [*ids.shape, embedding_dim].

        Raises:
            ValueError: `ids` is None and the id space is open.
        """
        if ids is None:
            if self.num_embeddings is None:
                raise ValueError("num_embeddings is None, so there is no full table: pass the ids to materialize")
            check_not_a_constant(self.encoder.table.name)
            ids = torch.arange(self.num_embeddings, device=self._store(0).device)
        return self._read(ids, "ids")

    def _read(self, ids: Tensor, name: str) -> Tensor:
        """Look up ids of any shape (the argument `name`): [*ids.shape, embedding_dim], with the padding vector."""
        check_tensor(ids, name)
        check_same_device(ids, name, self._store(0).device)
        vectors = self._vectors(ids.reshape(-1)).reshape(*ids.shape, self.embedding_dim)
        if self.padding_vector is None:
            return vectors
        return torch.where((ids == self.padding_idx).unsqueeze(-1), self.padding_vector.to(vectors.dtype), vectors)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if f"{prefix}weight" in state_dict:
            raise ValueError(
                f"table {self.encoder.table.name!r} is compressed, but the state holds a full weight "
                f"({prefix + 'weight'!r}): load it into the model before compress_ (init='warm' keeps it)"
            )
        self.encoder.check_state(state_dict, f"{prefix}encoder.")  # the combiner, which learns, comes before it
        saved = state_dict.get(f"{prefix}padding_vector")
        if saved is None:  # it was zero
            self.padding_vector = None
        elif self.padding_idx is not None and self.padding_vector is None:
            self.padding_vector = torch.empty_like(saved, device=self._store(0).device, dtype=self._store(0).dtype)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def weight(self) -> Tensor:
        """The full table, computed by `materialize()` at each access, for code that reads `.weight` (tied outputs).

        Writing to it, or to a view of it, would be lost and raises RuntimeError. With an open id space there is no full
        table, and the access raises AttributeError.
        """
        if self.num_embeddings is None:
            raise AttributeError("num_embeddings is None, so there is no full table")
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            vectors = self.materialize()
        else:
            with torch.inference_mode(False), torch.no_grad():  # where writes to a tensor are counted
                vectors = self.materialize()
        trained = any(parameter.requires_grad for parameter in self.parameters())
        return ComputedWeight.of(vectors, self.encoder.table.name, trained)

    def __setattr__(self, name: str, value: Any) -> None:
        if (name == "max_norm" and value is not None) or (name == "scale_grad_by_freq" and value):
            raise AttributeError(f"a compressed table cannot have {name}={value!r}: ids share rows")
        if name == "weight":
            kind = KeyError if isinstance(value, nn.Parameter) else AttributeError  # as torch and Python raise
            raise kind(
                f"table {self.encoder.table.name!r} is compressed and has no weight of its own to set: set it before "
                "compress_ (init='warm' keeps it)"
            )
        if name == "padding_idx" and "encoder" in self._modules:  # it is being changed
            value = _checked_padding(value, self.encoder.table)
            self.padding_vector = None  # it was that of another id
        if name == "sparse" and "stores" in self._modules:
            for store in self.stores:
                setattr(store, name, value)
        super().__setattr__(name, value)  # pyright: ignore[reportArgumentType]

    def extra_repr(self) -> str:
        parts = [f"{self.num_embeddings}, {self.embedding_dim}, {self.encoder.config['method']}"]
        if self.padding_idx is not None:
            parts.append(f"padding_idx={self.padding_idx}")
        return ", ".join(parts)


def move_combiner(combiner: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a combiner's parameters to the device of the rows; parameters on the meta device are drawn anew."""
    if device.type != "meta" and any(parameter.is_meta for parameter in combiner.parameters()):
        combiner.to_empty(device=device)
        reset_combiner(combiner)
    combiner.to(device)  # buffers keep their dtype, as an encoder's do
    for parameter in combiner.parameters():
        parameter.data = parameter.data.to(dtype)


def reset_combiner(combiner: nn.Module) -> None:
    """Draw the parameters of a combiner anew."""
    for submodule in combiner.modules():
        if callable(getattr(submodule, "reset_parameters", None)):
            submodule.reset_parameters()  # pyright: ignore[reportCallIssue]


def make_stores(
    plan: Plan, sparse: bool, device: torch.device | str | None, dtype: torch.dtype | None
) -> dict[str, PlainStore]:
    """Make the stores of a plan, initialised. Raise ValueError for rows that are not floats, or are far too many."""
    check_size(plan.sizes, [part.table for part in plan.tables])
    for name, store in plan.stores.items():
        check_floats(store, name)
    return {name: PlainStore(store, sparse, device, dtype) for name, store in plan.stores.items()}


def _checked_padding(padding_idx: int | None, table: Table) -> int | None:
    if padding_idx is None:
        return None
    row: int = checked(padding_idx, int, f"table {table.name!r}: padding_idx")
    if table.num_embeddings is None:
        if row < 0:
            raise ValueError(f"table {table.name!r}: padding_idx {row} counts from the end, but num_embeddings is None")
        return row
    if not -table.num_embeddings <= row < table.num_embeddings:
        raise ValueError(
            f"table {table.name!r}: padding_idx {row} must lie within num_embeddings {table.num_embeddings}"
        )
    return row % table.num_embeddings
