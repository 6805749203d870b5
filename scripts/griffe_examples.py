"""For the site: a section `Example:` of a docstring is shown as code, which griffe does with `Examples:` alone."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Named in mkdocs.yml."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
