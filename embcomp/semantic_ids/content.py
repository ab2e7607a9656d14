"""The content vectors from memory or disk, read block by block and checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from embcomp.columns import parquet_files
from embcomp.extras import install

ContentLike: TypeAlias = "Tensor | PathLike[str] | str | Any"
"""A tensor or numpy array [N, width], or the path of an .npy file or of parquet files with a column of lists."""

BLOCK = 1 << 16  # rows at a time, at most,
NUMBERS = 1 << 24  # and numbers (64 MiB)
READ = 1 << 20  # numbers that pyarrow reads at a time; it takes several times their memory


class Content:
    """The content vectors of N items, all of one width, which need not fit in memory.

    Every block is checked as it is read: floating dtype, finite, no vector of zeros.

    Args:
        source: the vectors [N, width] as a torch tensor or numpy array (also memory-mapped), or the path of an .npy
            file, of a .parquet file, or of a folder or a glob of these, read in the order of their names.
        column: the column of the parquet files, with lists of floats of one length.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the type of the file, the dtype or the shape is not supported, there are no rows, or a file is
            damaged; the text names the file and the value.

    Example:
        >>> import torch
        >>> content = Content(torch.randn(10, 4))
        >>> len(content), content.width, [block.shape[0] for block in content.blocks(4)]
        (10, 4, [4, 4, 2])
    """

    def __init__(self, source: ContentLike, column: str | None = None) -> None:
        self.name = "content"
        self._array: Any = None
        self._parquet: tuple[list[Path], str] | None = None
        if isinstance(source, str | PathLike):
            path = Path(source)
            self.name = str(path)
            if path.suffix not in (".npy", ".parquet") and not path.is_dir():
                raise ValueError(f"{path}: content files end in .npy or .parquet")
            if path.suffix != ".npy" or path.is_dir():
                self._open_parquet(parquet_files(path), column)
                return
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file")
            try:
                source = _numpy().load(path, mmap_mode="r", allow_pickle=False)
            except (ValueError, OSError, EOFError) as error:
                raise ValueError(f"{path} is damaged, or not an .npy file of numbers: {error}") from None
        array: Any = source
        if column is not None:
            raise ValueError(f"{self.name}: only parquet files have a column, got column={column!r}")
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise ValueError(f"{self.name}: expected a tensor, an array or a path, got {type(array).__name__}")
        if len(array.shape) != 2:
            raise ValueError(f"{self.name}: expected vectors [N, width], got shape {list(array.shape)}")
        if "float" not in str(array.dtype) and getattr(array.dtype, "kind", "") != "f":
            raise ValueError(f"{self.name}: vectors must be floats, got {array.dtype}; convert them first")
        self._array = array
        self._set_shape(*map(int, array.shape))

    def _open_parquet(self, paths: list[Path], column: str | None) -> None:
        rows = width = 0
        for path in paths:
            with _damage_is_named(path):
                schema, count = _parquet().read_schema(path), _parquet().read_metadata(path).num_rows
            if column is None or column not in schema.names:
                raise ValueError(f"{path}: give the column of the vectors, one of {schema.names}, got {column!r}")
            kind = schema.field(column).type
            if not hasattr(kind, "value_type") or str(kind.value_type) not in ("halffloat", "float", "double"):
                raise ValueError(f"{path}: column {column!r} must hold lists of floats, got {kind}")
            rows += count
            if not width:
                widths = (batch.column(0).value_lengths().drop_null() for batch in self._batches(path, column, 1024))
                width = next((lengths[0].as_py() for lengths in widths if len(lengths)), 0)
        assert column is not None
        self._parquet = (paths, column)
        self._set_shape(rows, width)

    def _set_shape(self, rows: int, width: int) -> None:
        if rows == 0 or width == 0:
            raise ValueError(f"{self.name}: holds no vectors (shape [{rows}, {width}])")
        self._rows, self.width = rows, width

    def __len__(self) -> int:
        return self._rows

    def blocks(self, size: int | None = None) -> Iterator[Tensor]:
        """Yield all vectors in order, float32 [at most `size`, width] each; by default blocks of at most 64 MiB.

        Raises:
            ValueError: a vector is NaN, infinite or zero, or a list has another length; the text names the row.
        """
        start = 0
        for raw in self._raw(size or max(1, min(BLOCK, NUMBERS // self.width))):
            block = raw.detach().to(torch.float32)
            self._check(block, start)
            start += block.shape[0]
            yield block

    def _raw(self, size: int) -> Iterator[Tensor]:
        if self._parquet is None:
            for start in range(0, self._rows, size):
                part = self._array[start : start + size]
                yield part if isinstance(part, Tensor) else _as_tensor(part)
            return
        block, filled = torch.empty(min(size, self._rows), self.width), 0
        for rows in self._read_lists(*self._parquet, min(size, max(1, READ // self.width))):
            while rows.shape[0]:
                part, rows = rows.tensor_split((block.shape[0] - filled,))
                block[filled : filled + part.shape[0]] = part
                filled += part.shape[0]
                if filled == block.shape[0]:
                    yield block
                    block, filled = torch.empty_like(block), 0
        if filled:
            yield block[:filled]

    def _read_lists(self, paths: list[Path], column: str, size: int) -> Iterator[Tensor]:
        for path in paths:
            yield from self._read_file(path, column, size)

    def _read_file(self, path: Path, column: str, size: int) -> Iterator[Tensor]:
        done = 0
        for batch in self._batches(path, column, size):
            lists = batch.column(0)
            lengths = lists.value_lengths().fill_null(-1).to_numpy()
            if (lengths != self.width).any():
                row = int((lengths != self.width).argmax())
                if lengths[row] < 0:
                    raise ValueError(
                        f"{path}: row {done + row} has no vector; leave out items without content and give them "
                        "codes of -1"
                    )
                raise ValueError(f"{path}: row {done + row} has {lengths[row]} values, expected {self.width}")
            done += len(lists)
            yield _as_tensor(lists.flatten().to_numpy(zero_copy_only=False)).view(-1, self.width)

    @staticmethod
    def _batches(path: Path, column: str, size: int) -> Iterator[Any]:
        # Else a whole row group lies in memory, which may be the whole file.
        with _damage_is_named(path), _parquet().ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            yield from file.iter_batches(size, columns=[column])

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
        """Draw at most `most` vectors without replacement in one pass, in their order: float32 [n, width]."""
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
        """Raise ValueError if the vectors are not `width` wide."""
        if self.width != width:
            raise ValueError(f"{self.name}: vectors are {self.width} wide, but the tokenizer was fitted on {width}")


def as_content(content: ContentLike, column: str | None = None) -> Content:
    """Return `content` itself if it is a `Content`, else open it."""
    return content if isinstance(content, Content) else Content(content, column)


def _as_tensor(values: Any) -> Tensor:
    """Copy to float32, from any floating type and byte order; values too large for float32 become infinite."""
    with _numpy().errstate(over="ignore"):
        return torch.from_numpy(_numpy().asarray(values).astype("float32"))


@contextmanager
def _damage_is_named(path: Path) -> Iterator[None]:
    """Add the file's name to pyarrow's read errors."""
    _parquet()
    from pyarrow.lib import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged, or not a parquet file: {error}") from None


def _numpy() -> Any:
    try:
        import numpy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: {install('semantic')}") from None
    return numpy


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: {install('semantic')}") from None
    return pyarrow.parquet
