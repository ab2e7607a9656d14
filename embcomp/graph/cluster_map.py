"""`ClusterMap`: the row of a table that each id reads, in few bits. Needs torch alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import torch
from torch import Tensor

from embcomp import artifact, configs
from embcomp.graph.files import read_file
from embcomp.graph.sides import Side, check_side
from embcomp.ops.packing import bits_for, pack, packed_words, unpack, unpack_known
from embcomp.settings import RowCount, Within, checked

if TYPE_CHECKING:
    from embcomp.graph.edges import Edges

MANY_ROWS = 1 << 24  # more than these, and than 16 for each id, are a mistake
MAX_IDS = 2**60


@configs.kind
@dataclass(frozen=True, eq=False)
class ClusterMap:
    """A map from ids to rows of a table, made by `embcomp.graph.cluster` or `ClusterMap.of`; it is immutable.

    Ids that are in no cluster are unseen: new ids, and ids without an interaction. A method hashes them, into all rows,
    or if `unseen_rows` is set into the last rows of the table, which are reserved for them.

    Attributes:
        words: the packed map, int32 (`embcomp.ops.packing`), `bits` bits for each id.
        labels: the cluster of each row, int32 [rows - unseen_rows]; users and items that were clustered together share
            these numbers. -1 marks a row without a cluster, which belongs to one id or to none.
        num_ids: the number of ids that it covers; ids beyond are unseen.
        rows: the number of rows of the table, with those reserved for unseen ids.
        unseen_rows: the number of last rows that are reserved for unseen ids.
        has_unseen: True if an id below `num_ids` is unseen.
        side: the side of an edge that the ids are, "users" or "items".
        coherence: the fit of the interactions that it was made from (see `drift`).
        clustering: the name of the clustering, the same for its users and items.

    Example:
        >>> import torch
        >>> from embcomp.graph import ClusterMap
        >>> found = ClusterMap.of(torch.tensor([0, 2, 2, -1, 1]), rows=3)
        >>> found.row_of(torch.tensor([1, 3, 4, 99])), found.bits
        (tensor([ 2, -1,  1, -1]), 2)
    """

    expected: ClassVar[str] = "a ClusterMap, such as cluster(edges, rows=...).items"

    words: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    num_ids: int
    rows: int
    unseen_rows: int = 0
    has_unseen: bool = False
    side: Side = "items"
    coherence: float = 1.0
    clustering: str = ""

    def __post_init__(self) -> None:
        ids = checked(self.num_ids, Annotated[int, Within(0, MAX_IDS)], "num_ids of a map")
        rows, unseen_rows = _checked_rows(self.rows, self.unseen_rows, ids)
        for name, value in (("num_ids", ids), ("rows", rows), ("unseen_rows", unseen_rows)):
            object.__setattr__(self, name, value)
        check_side(self.side)
        if self.words.shape != (packed_words(self.num_ids, self.bits),):
            raise ValueError(
                f"a map of {self.num_ids} ids in {self.bits} bits has {packed_words(self.num_ids, self.bits)} words, "
                f"got {list(self.words.shape)}"
            )
        if self.labels.shape != (self.own_rows,):
            raise ValueError(f"a map of {self.own_rows} rows has as many labels, got {list(self.labels.shape)}")

    @classmethod
    def of(cls, row_of_id: Tensor | Sequence[int], rows: int, unseen_rows: int = 0, **more: Any) -> Self:
        """Pack a map.

        Args:
            row_of_id: the row of each id, integers [num_ids], each in [0, rows - unseen_rows), or -1 for unseen.
            rows: the number of rows of the table.
            unseen_rows: the number of them that are reserved for unseen ids.
            more: the other attributes.

        Raises:
            ValueError: a row is out of range, or not an integer.
        """
        row_of_id = torch.as_tensor(row_of_id, device="cpu")
        rows, unseen_rows = _checked_rows(rows, unseen_rows, row_of_id.numel())
        if row_of_id.ndim != 1 or row_of_id.dtype.is_floating_point or row_of_id.dtype == torch.bool:
            raise ValueError(f"rows of ids must be integers [num_ids], got {row_of_id.dtype} {list(row_of_id.shape)}")
        own = rows - unseen_rows
        outside = (row_of_id < -1) | (row_of_id >= own)
        if bool(outside.any()):
            at = int(outside.nonzero()[0, 0])
            raise ValueError(f"id {at} has row {int(row_of_id[at])}, expected one in [0, {own}), or -1 for unseen")
        unseen = row_of_id == -1
        has_unseen = bool(unseen.any())
        words = pack(row_of_id.masked_fill(unseen, own), bits_for(own + has_unseen))
        more.setdefault("labels", torch.arange(own, dtype=torch.int32, device="cpu"))
        return cls(words, more.pop("labels"), row_of_id.numel(), rows, unseen_rows, has_unseen, **more)

    def remapped(self, row_of_id: Tensor, labels: Tensor | None = None) -> Self:
        """Return the same clustering with other rows for ids, int64 [num_ids], and more rows if `labels` has more."""
        labels = self.labels if labels is None else labels
        more = {"side": self.side, "coherence": self.coherence, "clustering": self.clustering}
        return type(self).of(row_of_id, labels.numel() + self.unseen_rows, self.unseen_rows, labels=labels, **more)

    @property
    def own_rows(self) -> int:
        """The number of rows of clusters: all rows but those reserved for unseen ids."""
        return self.rows - self.unseen_rows

    @property
    def bits(self) -> int:
        """The bits of an id: ceil(log2(own rows)), with one more number for "unseen" if some id is unseen."""
        return bits_for(self.own_rows + self.has_unseen)

    @property
    def nbytes(self) -> int:
        """The bytes of the packed map, which a module stores beside its rows."""
        return self.words.nbytes

    def row_of(self, ids: Tensor) -> Tensor:
        """Return the rows of ids, int64; -1 for unseen ids and ids beyond `num_ids`. Negative ids are invalid."""
        return look_up(self.words, self.bits, self.num_ids, self.own_rows, ids)

    def assignment(self) -> Tensor:
        """Return the row of every id, int64 [num_ids], -1 for unseen."""
        return self.row_of(torch.arange(self.num_ids, device="cpu"))

    def sizes(self) -> Tensor:
        """Return the number of ids of each row, int64 [own_rows]."""
        rows = self.assignment()
        return torch.bincount(rows[rows >= 0], minlength=self.own_rows)

    def with_own_rows(self, ids: Tensor | Sequence[int]) -> Self:
        """Return the map with a row for each of `ids` that no other id reads.

        The new rows follow those of the clusters. An id that is alone in its row keeps it.

        Raises:
            IndexError: an id is not in the map.
        """
        hot: Tensor = torch.as_tensor(ids, dtype=torch.int64, device="cpu").reshape(-1).unique()
        if hot.numel() and not 0 <= int(hot.min()) <= int(hot.max()) < self.num_ids:
            raise IndexError(f"hot ids must lie in [0, {self.num_ids}), got {int(hot.min())} .. {int(hot.max())}")
        rows, sizes = self.assignment(), self.sizes()
        before = rows[hot]
        moved = hot[(before < 0) | (sizes[before.clamp(min=0)] > 1)]
        rows[moved] = self.own_rows + torch.arange(moved.numel(), device="cpu")
        return self.remapped(rows, torch.cat([self.labels, torch.full_like(moved, -1, dtype=torch.int32)]))

    def extend(self, new_edges: Edges, other: ClusterMap | None = None) -> ClusterMap:
        """Place unseen ids by their neighbours' clusters. No id that has a row moves, so a trained table stays valid.

        An id gets the cluster of the largest weight in its neighbourhood: half of the weight is that of its neighbours,
        by the weight of the interactions, and half that of the placed ids which these interact with (as in `mixture`;
        among equals the cluster with the fewest ids). Ids without a clustered neighbourhood stay unseen.

        Args:
            new_edges: the interactions of the new ids. Those of their neighbours help, too: with few interactions the
                neighbours' own clusters alone are often a tie.
            other: the map of the other side, from the same clustering. Without it, each id of the other side first gets
                the cluster of most of its own neighbours, so `new_edges` should also hold interactions of placed ids.

        Returns:
            A map over at least as many ids with the same rows.

        Raises:
            ValueError: `other` is of the same side or of another clustering.
        """
        from embcomp.graph.growth import placed  # which needs scipy

        rows = placed(self, new_edges, other)
        return self if rows is None else self.remapped(torch.from_numpy(rows))

    def drift(self, new_edges: Edges, since: Edges | None = None) -> float:
        """Measure how much worse new interactions fit the clusters than earlier ones do, in [0, 1].

        The fit (coherence) is the probability that an interaction's id shares its row with the id of another
        interaction of the same neighbour: for two items that a user clicked, that both are in one row. Drift is 1 - fit
        of the new interactions / fit of the earlier ones; unseen ids share no row.

        Clusters fit the interactions that they were made from better than any others, and much better if there are few
        per id. So give `since`, and cluster again when drift stays above about 0.3.

        Args:
            new_edges: the new interactions, of a day or a week, say.
            since: the interactions of the first day or week after the clustering; by default those that the clusters
                were made from.

        Raises:
            ValueError: `since` is missing and the map has no measure of its own, because `cluster` did not make it.
        """
        from embcomp.graph.growth import drift  # which needs scipy

        return drift(self, new_edges, since)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map as one file, with a checksum. An existing file is replaced in one step or not at all."""
        names = ("num_ids", "rows", "unseen_rows", "has_unseen", "side", "coherence", "clustering")
        header = {name: getattr(self, name) for name in names}
        artifact.save(path, "cluster map", header, {"words": self.words, "labels": self.labels})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a map that `save` wrote. Raise ValueError if the file is of another kind, truncated or edited.

        Example:
            >>> from embcomp.graph import ClusterMap
            >>> ClusterMap.of([1, 0, 1], rows=2).save("item.map")
            >>> ClusterMap.load("item.map").assignment()
            tensor([1, 0, 1])
        """
        header, tensors = read_file(path, "cluster map")
        return cls(**header, **tensors)


def _checked_rows(rows: Any, unseen_rows: Any, num_ids: int) -> tuple[int, int]:
    rows = checked(rows, RowCount, "rows of a map")
    unseen_rows = checked(unseen_rows, Annotated[int, Within(0)], "unseen_rows of a map")
    if unseen_rows >= rows:
        raise ValueError(
            f"a map needs rows in [1, 2^31) and fewer unseen_rows, got rows={rows}, unseen_rows={unseen_rows}"
        )
    most = max(MANY_ROWS, 16 * num_ids)
    if rows > most:
        raise ValueError(f"rows of a map must be at most {most} for its {num_ids} ids, got {rows}: no id reads them")
    return rows, unseen_rows


def look_up(words: Tensor, bits: int, num_ids: int, own_rows: int, ids: Tensor, complete: bool = False) -> Tensor:
    """Look up the rows of ids in a packed map, -1 for unseen; this compiles and exports.

    Args:
        words: the packed map.
        bits: the bits of an entry.
        num_ids: the number of entries.
        own_rows: the entry that means "unseen".
        ids: the ids, int64 [N], not negative.
        complete: True if every id is in the map and none is unseen.
    """
    if complete:
        return unpack(words, bits, ids)
    return unpack_known(words, bits, ids, num_ids, own_rows)
