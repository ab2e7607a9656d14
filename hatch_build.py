"""What the build adds to pyproject.toml: the README as an index shows it, where relative links would lead nowhere."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_IMAGE = re.compile(r"!\[[^\]]*\]\((?!https://)[^)]*\)\n*")
_LINK = re.compile(r"\[([^\]]*)\]\((?!https://)[^)]*\)")


class CustomMetadataHook(MetadataHookInterface):
    """Sets the field `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Puts README.md into `metadata`, its relative links as their text, its relative pictures left out."""
        parts = _FENCE.split((Path(self.root) / "README.md").read_text(encoding="utf-8"))
        parts[::2] = [_LINK.sub(r"\1", _IMAGE.sub("", part)) for part in parts[::2]]  # the others are code
        metadata["readme"] = {"content-type": "text/markdown", "text": "".join(parts)}
