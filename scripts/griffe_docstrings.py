"""Docstrings as the site wants them. Named in mkdocs.yml.

A section `Example:` becomes `Examples:`, the only name under which griffe shows code; and the stars of shapes such as
`(B, C, *spatial)` are no emphasis.
"""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Changes the docstring of every object that griffe finds."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"(?<![`\w*])\*(?=\w+[,)])", r"\\*", text)
