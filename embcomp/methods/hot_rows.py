"""A method with own rows for the ids that matter most, chosen in training; the others share hashed rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embcomp.methods.base import (
    Chunk,
    Concat,
    Method,
    Plan,
    Rows,
    Sizes,
    Store,
    Table,
    TablePlan,
    check_rows,
    check_size,
    per_table,
)
from embcomp.methods.hashing import HashEncoder
from embcomp.ops.search import lower_bound
from embcomp.settings import RowCount, Share

_OWN_BYTES = 8 + 4  # an id and its row


class OwnersEncoder(HashEncoder):
    """An encoder in which an owner reads its own row, below `own`, and another id a hashed one of the rows after them.

    Attributes:
        owners: the ids that own a row, int64 [own], ascending; the last ones are spare.
        slots: the row of each owner, int32 [own].
        number: the number of owners, int64 [1].
    """

    owners: Tensor
    slots: Tensor
    number: Tensor

    def __init__(self, table: Table, config: Mapping[str, Any], seed: int, rows: int, own: int) -> None:
        super().__init__(table, config, seed, [rows - own], [1])
        self.own, real = own, self.keys.device
        self.register_buffer("owners", torch.full((own,), torch.iinfo(torch.int64).max, device=real))
        self.register_buffer("slots", torch.zeros(own, dtype=torch.int32, device=real))
        self.register_buffer("number", torch.zeros(1, dtype=torch.int64, device=real))

    def shared_rows(self, ids: Tensor) -> Tensor:
        """Return the hashed rows of ids, int64 [N]."""
        return super().encode(ids)[0].rows.squeeze(1) + self.own

    def encode(self, ids: Tensor) -> list[Rows]:
        shared = self.shared_rows(ids)
        if not self.own:
            return [Rows(shared.unsqueeze(1))]
        position = lower_bound(self.owners, ids.contiguous())
        at = position.clamp(max=self.own - 1)
        owned = (position < self.number) & (self.owners[at] == ids)
        return [Rows(torch.where(owned, self.slots[at].long(), shared).unsqueeze(1))]

    def set_owners(self, ids: Tensor, slots: Tensor) -> None:
        """Set which ids own which rows, int64 [n] each, at most `own`; in place, so that every holder sees it."""
        order = ids.argsort()
        self.owners.fill_(torch.iinfo(torch.int64).max)
        self.owners[: len(ids)] = ids[order].to(self.owners.device)
        self.slots[: len(ids)] = slots[order].to(self.slots)
        self.number.fill_(len(ids))


@dataclass(frozen=True, kw_only=True, eq=False)
class HotRows(Method):
    """Own rows that move to the ids with the largest gradients (CAFE, Zhang et al. 2024, arXiv 2312.03256, section 3).

    A share of the `rows` rows have one owner each; every other id reads a hashed row among the others. All ids are
    hashed at first. `embcomp.HotTracker` watches the gradients in training, and gives rows to the ids that need them
    most. Counts are not needed, and ids that become popular later get rows later.

    Args:
        rows: the number of all rows of the table, or a mapping from table names to such numbers.
        own_share: the share of the rows that have an owner.
        seed: the seed of the hash.

    Example:
        >>> import torch, embcomp
        >>> emb = embcomp.nn.CompressedEmbedding(10_000, 16, embcomp.HotRows(rows=100, own_share=0.5))
        >>> embcomp.nbytes(emb) == 4 * 100 * 16 + 50 * 12 + 8 + 8  # rows, owners, their number, a key
        True
    """

    rows: RowCount | Mapping[str, RowCount]
    own_share: Share = 0.5
    seed: int = 0

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        rows = {table: check_rows(per_table(self.rows, table, "rows"), table.name) for table in tables}
        stores = {table.name: Store(number, table.embedding_dim) for table, number in rows.items()}
        maps = sum(self._own(number) * _OWN_BYTES + 8 + HashEncoder.key_nbytes for number in rows.values())
        return Sizes(stores, maps)

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        sizes, plans = self.sizes(tables), []
        check_size(sizes, tables)
        stores = dict(sizes.stores)
        for table in tables:
            rows = stores[table.name].rows
            encoder = OwnersEncoder(table, {**self.config(), "rows": rows}, self.seed, rows, self._own(rows))
            plans.append(TablePlan(table, encoder, (Chunk(table.name),), Concat()))
        return Plan(stores, plans)

    def _own(self, rows: int) -> int:
        """Return the most rows that can have an owner."""
        return min(int(rows * self.own_share), rows - 1)
