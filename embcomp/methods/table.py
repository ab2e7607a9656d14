"""The description of a table to compress."""

import dataclasses

from embcomp.settings import IdCount, Width, checked


@dataclasses.dataclass(frozen=True)
class Table:
    """An embedding table to compress.

    Attributes:
        name: the name, which is part of the hash keys, so that two tables with the same ids read unrelated rows.
        num_embeddings: the number of ids; None leaves the id space open (any non-negative int64).
        embedding_dim: the width of a vector.

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
        """Return `num_embeddings`. Raise ValueError if the id space is open."""
        if self.num_embeddings is None:
            raise ValueError(
                f"table {self.name!r}: {why} needs num_embeddings, got None; give it, or use a hashing method"
            )
        return self.num_embeddings
