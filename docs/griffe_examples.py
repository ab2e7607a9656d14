"""Lets the site show `Example:` in docstrings as code: griffe knows the section as `Examples:` alone."""

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Reads both spellings as the same section; the docstrings themselves stay."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for each object of the packages, before its docstring is parsed."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
