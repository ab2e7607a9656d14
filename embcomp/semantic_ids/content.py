"""Content vectors from memory or disk, read block by block and checked."""

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

ContentLike: TypeAlias = "Tensor | PathLike[str] | str | Any"
"""A tensor or numpy array [N, width], the path of an .npy file, or of a parquet file with a column of lists."""

BLOCK = 1 << 16  # rows at a time


class Content:
    """N content vectors of one width, which need not fit in memory.

    Every block is checked as it is read: floating dtype, finite, no vector of zeros.

    Args:
        source: [N, width] as a torch tensor or numpy array (also memory-mapped), the path of an .npy file, or of a
            .parquet file.
        column: of the parquet file: lists of floats, all of one length.

    Raises:
        ValueError: another type of file, dtype or shape; no rows; the text names the file and the value.

    Example:
        >>> import torch
        >>> content = Content(torch.randn(10, 4))
        >>> len(content), content.width, [block.shape[0] for block in content.blocks(4)]
        (10, 4, [4, 4, 2])
    """

    def __init__(self, source: ContentLike, column: str | None = None) -> None:
        self.name = "content"
        self._array: Any = None
        self._parquet: tuple[Path, str] | None = None
        if isinstance(source, str | PathLike):
            path = Path(source)
            self.name = str(path)
            if path.suffix == ".parquet":
                self._open_parquet(path, column)
                return
            if path.suffix != ".npy":
                raise ValueError(f"{path}: content files end in .npy or .parquet")
            source = _numpy().load(path, mmap_mode="r", allow_pickle=False)
        array: Any = source
        if column is not None:
            raise ValueError(f"{self.name}: only parquet files have a column, got column={column!r}")
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise ValueError(f"{self.name}: expected a tensor, an array or a path, got {type(array).__name__}")
        if len(array.shape) != 2:
            raise ValueError(f"{self.name}: expected vectors [N, width], got shape {list(array.shape)}")
        if "float" not in str(array.dtype):
            raise ValueError(f"{self.name}: vectors must be floats, got {array.dtype}; convert them first")
        self._array = array
        self._set_shape(*map(int, array.shape))

    def _open_parquet(self, path: Path, column: str | None) -> None:
        schema, rows = _parquet().read_schema(path), _parquet().read_metadata(path).num_rows
        if column is None or column not in schema.names:
            raise ValueError(f"{path}: give the column of the vectors, one of {schema.names}, got {column!r}")
        kind = schema.field(column).type
        if not hasattr(kind, "value_type") or str(kind.value_type) not in ("halffloat", "float", "double"):
            raise ValueError(f"{path}: column {column!r} must hold lists of floats, got {kind}")
        self._parquet = (path, column)
        first = next(_parquet().ParquetFile(path).iter_batches(1, columns=[column]), None)
        self._set_shape(rows, 0 if first is None or first.column(0)[0].as_py() is None else len(first.column(0)[0]))

    def _set_shape(self, rows: int, width: int) -> None:
        if rows == 0 or width == 0:
            raise ValueError(f"{self.name}: holds no vectors (shape [{rows}, {width}])")
        self._rows, self.width = rows, width

    def __len__(self) -> int:
        return self._rows

    def blocks(self, size: int = BLOCK) -> Iterator[Tensor]:
        """All vectors in order: float32 [at most `size`, width] each.

        Raises:
            ValueError: NaN, infinite or zero vectors, lists of another length; the text names the row.
        """
        start = 0
        for raw in self._raw(size):
            block = raw.detach().to(torch.float32)
            self._check(block, start)
            start += block.shape[0]
            yield block

    def _raw(self, size: int) -> Iterator[Tensor]:
        if self._parquet is None:
            for start in range(0, self._rows, size):
                part = self._array[start : start + size]
                yield part if isinstance(part, Tensor) else torch.from_numpy(_numpy().array(part, copy=True))
            return
        path, column = self._parquet
        done = 0
        for batch in _parquet().ParquetFile(path).iter_batches(size, columns=[column]):
            lists = batch.column(0)
            lengths = lists.value_lengths().fill_null(0).to_numpy()
            if (lengths != self.width).any():
                row = int((lengths != self.width).argmax())
                raise ValueError(f"{path}: row {done + row} has {lengths[row]} values, expected {self.width}")
            done += len(lists)
            values = lists.flatten().to_numpy(zero_copy_only=False)
            yield torch.from_numpy(_numpy().array(values)).view(-1, self.width)

    def _check(self, block: Tensor, start: int) -> None:
        squares = torch.linalg.vector_norm(block, dim=1)
        if not bool(torch.isfinite(squares).all()):
            row = int((~torch.isfinite(squares)).nonzero()[0])
            raise ValueError(f"{self.name}: vector {start + row} is NaN or infinite; leave such items without content")
        if not bool(squares.all()):
            row = int((squares == 0).nonzero()[0])
            raise ValueError(
                f"{self.name}: vector {start + row} is all zeros; leave out items without content and give them "
                "codes of -1"
            )

    def sample(self, most: int, seed: int) -> Tensor:
        """At most `most` vectors, drawn without replacement in one pass, in their order: float32 [n, width]."""
        if most >= self._rows:
            return torch.cat(list(self.blocks()))
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(self._rows, generator=generator)[:most].sort().values
        parts, start = [], 0
        for block in self.blocks():
            low, high = torch.searchsorted(chosen, torch.tensor([start, start + block.shape[0]])).tolist()
            parts.append(block[(chosen[low:high] - start).to(block.device)])
            start += block.shape[0]
        return torch.cat(parts)

    def check_width(self, width: int) -> None:
        """Raises ValueError where the vectors are not `width` wide."""
        if self.width != width:
            raise ValueError(f"{self.name}: vectors are {self.width} wide, but the tokenizer was fitted on {width}")


def as_content(content: ContentLike, column: str | None = None) -> Content:
    """`content` as it is, or opened."""
    return content if isinstance(content, Content) else Content(content, column)


def _numpy() -> Any:
    try:
        import numpy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: pip install 'embcomp[semantic]'") from None
    return numpy


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: pip install 'embcomp[semantic]'") from None
    return pyarrow.parquet
