"""Tables of a recipe whose fields belong to another class, such as `vqvae` to `VQVAEConfig`.

Types come from the annotations of that class and explanations from its docstring, so that nothing is written down twice.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, GetCoreSchemaHandler
from typing_extensions import TypedDict


class TableOf:
    """Checks a dictionary against fields of a class: `Annotated[dict[str, Any], TableOf(...)]`. Every field may be left out.

    Args:
        source: the class, or the function, that takes the fields as arguments.
        names: the fields that a recipe may set, separated by spaces.
        kinds: types of fields where they say more than the annotations do.
        limits: least and largest values by name.
        also: another docstring, for fields that the one of `source` does not explain.
    """

    def __init__(
        self,
        source: Callable[..., Any],
        names: str,
        kinds: Mapping[str, Any] | None = None,
        limits: Mapping[str, tuple[float, float]] | None = None,
        also: str | None = None,
    ):
        self.names = tuple(names.split())
        own = {name: text for name, text in explanations(source.__doc__).items() if text != "as in the class."}
        texts = explanations(also) | own
        types = source.__annotations__ | dict(kinds or {})
        members = {}
        for name in self.names:
            bounds: dict[str, Any] = dict(zip(("ge", "le"), (limits or {}).get(name, ()), strict=False))
            members[name] = Annotated[types[name], Field(description=texts.get(name), **bounds)]
        self.kind: Any = TypedDict(source.__name__, members, total=False)  # type: ignore[operator, misc]
        self.kind.__pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return handler.generate_schema(self.kind)


def explanations(doc: str | None) -> dict[str, str]:
    """What the `Args:` section of a docstring says about each name, on one line."""
    found: dict[str, str] = {}
    names: list[str] = []
    _, _, section = inspect.cleandoc(doc or "").partition("Args:\n")
    for line in section.splitlines():
        text = line.strip()
        if text and not line.startswith("    "):
            break  # the next section
        if text and not line.startswith("     "):
            heading, _, text = text.partition(": ")
            names = heading.split(", ")
        found |= {name: f"{found.get(name, '')} {text}".strip() for name in names}
    return found
