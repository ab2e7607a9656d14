"""A reader for the pickles of torch.distributed.checkpoint (metadata and bytes) that executes no code."""

import io
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader

from embcomp.files import Damaged

_KNOWN: dict[tuple[str, str], Any] = {
    (kind.__module__, kind.__qualname__): kind
    for kind in (
        metadata.Metadata,
        metadata.MetadataIndex,
        metadata.TensorStorageMetadata,
        metadata.BytesStorageMetadata,
        metadata.ChunkStorageMetadata,
        metadata.TensorProperties,
        metadata.StorageMeta,
        metadata._MEM_FORMAT_ENCODING,
        filesystem._StorageInfo,
        torch.serialization._get_layout,
        torch.Size,
    )
}
_FILE = re.compile(r"[\w-]+\.distcp")


class _Unpickler(pickle.Unpickler):
    """An unpickler that makes only the classes of the engine's own metadata."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module.startswith("pathlib") and name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"):
            return Path  # where it was written to
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint of embcomp holds")


class Reader(FileSystemReader):
    """A reader that accepts only the engine's metadata, and files in the checkpoint's own folder."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        """Read the metadata. Raise Damaged for anything else than the engine writes."""
        path = self._get_metadata_path(kwargs.get("rank"))
        try:
            with open(path, "rb") as file:
                content = _Unpickler(file).load()
            if not isinstance(content, metadata.Metadata) or not isinstance(content.state_dict_metadata, dict):
                raise ValueError("it holds something else")
            for info in (content.storage_data or {}).values():
                if not _FILE.fullmatch(info.relative_path):
                    raise ValueError(f"it names the file {info.relative_path!r}")
        except OSError:
            raise
        except Exception as error:  # bytes of anybody may raise anything
            raise Damaged(f"{path} is damaged, or not of torch.distributed.checkpoint: {error}") from None
        content.storage_meta = content.storage_meta or metadata.StorageMeta()
        content.storage_meta.load_id = self.load_id
        return content


class Planner(DefaultLoadPlanner):
    """The engine's planner, changed to read non-tensors as values, never as code."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        """Check that the bytes hold values. Raise pickle.UnpicklingError if they hold code."""
        torch.load(value, map_location="cpu", weights_only=True)
        value.seek(0)
        super().load_bytes(read_item, value)
