"""Encoders, the first part of every method: from ids to rows."""

import abc
import dataclasses
import json
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from embcomp import configs
from embcomp.constants import Maps
from embcomp.extra_state import from_state, to_state
from embcomp.methods.table import Table
from embcomp.ops.hashed_features import Hashes
from embcomp.ops.hashing import check_ids


class Rows(NamedTuple):
    """The rows that one chunk reads, int64 [N, lookups]; if it is weighted, their `weights`, float32 [N, lookups]."""

    rows: Tensor
    weights: Tensor | None = None


ENCODERS: dict[str, type["Encoder"]] = {}
"""The encoders by class name, so that a plan can be written and read."""


class Encoder(Maps, abc.ABC):
    """A function from ids to the rows of each chunk. It holds buffers only (keys, maps, codes), never parameters.

    Subclasses define `encode(ids)`. The state dict contains the configuration (as a uint8 tensor, so that every
    checkpoint format can hold it); loading a state of another configuration raises ValueError and names the difference.
    Averages of weights leave the buffers alone (`embcomp.averaging`).
    """

    hands: ClassVar[bool] = False
    """True if `handed` returns numbers for the combiner."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        configs.join(ENCODERS, cls)

    def __init__(self, table: Table, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.table = table
        self.config = {**config, "num_embeddings": table.num_embeddings, "embedding_dim": table.embedding_dim}

    @abc.abstractmethod
    def encode(self, ids: Tensor) -> list[Rows]:
        """Return the rows of each chunk, in the order of the plan's chunks, for checked ids, int64 [N]."""

    def forward(self, ids: Tensor) -> list[Rows]:
        """Check `ids` (integer, [N]) and encode them. Raise ValueError or IndexError as `check_ids` does."""
        ids = check_ids(ids, self.table.num_embeddings, self.table.name)
        if ids.is_meta and any(not buffer.is_meta for buffer in self.buffers()):  # only shapes are asked for
            on_meta = {name: buffer.to("meta") for name, buffer in self.named_buffers()}
            return torch.func.functional_call(self, on_meta, (ids,))
        return self.encode(ids)

    def packed(self, ids: Tensor, out: Tensor | None = None) -> Tensor:
        """Check the ids and return the rows of all chunks, flat, chunk by chunk, as a KeyedJaggedTensor takes them.

        If `out` is given, int64 [rows] and contiguous, the rows are written into it.
        """
        rows = [chunk.rows.reshape(-1) for chunk in self(ids)]
        if out is not None:
            return torch.cat(rows, out=out)
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def hashes(self) -> Hashes | None:
        """Return the hashes that give the rows of `packed`; None for encoders that are no plain hashes."""
        return None

    def get_extra_state(self) -> Tensor:
        return to_state({"table": self.table.name, **self.config})

    def set_extra_state(self, state: Tensor) -> None:
        name = from_state(state, f"table {self.table.name!r}")["table"]
        self.table = dataclasses.replace(self.table, name=name)  # hash keys come from the name it was saved under
        self.reset_buffers()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self.check_state(state_dict, prefix)  # before torch copies the maps of another configuration over ours
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def check_state(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Raise ValueError for a state that was saved with another configuration."""
        saved = state_dict.get(f"{prefix}_extra_state")
        if saved is not None:
            self._check_config(from_state(saved, f"table {self.table.name!r}"))

    def _check_config(self, saved: dict[str, Any]) -> None:
        mine = json.loads(json.dumps(self.config))
        saved = completed(saved, mine)
        keys = sorted({*saved, *mine} - {"table"})
        said = "; ".join(
            f"{key}: saved {saved.get(key)!r}, here {mine.get(key)!r}"
            for key in keys
            if saved.get(key) != mine.get(key)
        )
        if said:
            raise ValueError(f"table {self.table.name!r}: the state was saved with another configuration ({said})")

    def handed(self, ids: Tensor) -> list[Tensor]:
        """Return fixed numbers of each checked id, [N, ...] each, that the combiner gets after the chunks.

        By default there are none; an encoder that returns some sets `hands`.
        """
        return []

    def hand(self, ids: Tensor) -> list[Tensor]:
        """Check `ids` as `forward` does, and return `handed`."""
        if not self.hands:
            return []
        ids = check_ids(ids, self.table.num_embeddings, self.table.name)
        if ids.is_meta and any(not buffer.is_meta for buffer in self.buffers()):
            on_meta = {f"encoder.{name}": buffer.to("meta") for name, buffer in self.named_buffers()}
            return torch.func.functional_call(_Handed(self), on_meta, (ids,))
        return self.handed(ids)

    def hands_with(self) -> Hashable | None:
        """Return a key of the encoders of this class whose `hand_together` does for all at once what `hand` does."""
        return None

    def lookups_of(self, chunk: int) -> int:
        """Return how many rows a chunk reads for each id."""
        return 1

    def together_with(self, chunk: int) -> Hashable | None:
        """Return a key of the encoders of this class that can be encoded together with a chunk; None for none."""
        return self.lookups_of(chunk)

    def config_of(self, key: str) -> dict[str, Any]:
        """Return the configuration that has a key: its own, or that of the method inside a wrapper."""
        config = self.config
        while key not in config:
            config = config["of"]
        return config

    def reset_buffers(self) -> None:
        """Recompute the buffers that depend on the table's name, after it has changed."""


class _Handed(nn.Module):
    """A module whose forward returns the numbers that an encoder hands to the combiner."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor) -> list[Tensor]:
        return self.encoder.handed(ids)


def completed(saved: dict[str, Any], mine: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved configuration with the defaults of settings that came after it was saved, inside a wrapper, too.

    Args:
        saved: the configuration, perhaps of an older version.
        mine: the configuration of this version to compare it with.
    """
    later = {key: value for key, value in _defaults(saved.get("method")).items() if key in mine}
    inside, mine_inside = saved.get("of"), mine.get("of")
    of = {"of": completed(inside, mine_inside)} if isinstance(inside, dict) and isinstance(mine_inside, dict) else {}
    return {**later, **saved, **of}


def _defaults(method: str | None) -> dict[str, Any]:
    """The plain settings of a method that have a default."""
    known = configs.classes("method").get(method or "")
    fields = dataclasses.fields(known) if known is not None else ()
    return {field.name: field.default for field in fields if isinstance(field.default, bool | int | float | str)}
