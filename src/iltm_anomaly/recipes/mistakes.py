"""What is wrong with a recipe, in one sentence that names the field, its value, and what would be right."""

import reprlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from pydantic import ValidationError

# What must be there, by the names that pydantic gives to kinds of errors.
EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "literal_error": "one of {expected}",
    "list_type": "a list",
    "tuple_type": "a list",
    "sequence_str": "a list",
    "is_instance_of": "a list",
    "dict_type": "a table of fields",
    "dataclass_type": "a table of fields",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
}

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 80


def explain(error: ValidationError, known: Mapping[str, Sequence[str]]) -> str:
    """The first of the mistakes.

    Args:
        error: of validating a recipe.
        known: names of fields by table; those of the recipe itself are under "".
    """
    errors = error.errors()
    first = errors[0]
    place = _place(first["loc"], known)
    table, name = ".".join(["recipe", *place[:-1]]), place[-1] if place else ""
    if first["type"] == "missing":
        return f"{table} needs {name!r}"
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return unknown(table, str(first["loc"][-1]), known[place[0] if len(place) > 1 else ""])
    if first["type"] == "value_error":
        return f"{'.'.join(['recipe', *place])}: {first['ctx']['error']}" if place else str(first["ctx"]["error"])
    # A value that is none of several possible kinds has an error for each; those of the kind that fits best lie deepest.
    same = [found for found in errors if _place(found["loc"], known) == place]
    deepest = max(len(found["loc"]) for found in same)
    same = [found for found in same if len(found["loc"]) == deepest]
    wanted = [EXPECTED.get(found["type"], found["msg"]).format(**found.get("ctx", {})) for found in same]
    indices = "".join(f"[{part}]" for part in same[0]["loc"] if isinstance(part, int))
    what, got = " or ".join(dict.fromkeys(wanted)), shortened(same[0]["input"])
    return f"{'.'.join(['recipe', *place])}{indices} must be {what}, got {got}"


def shortened(value: object) -> str:
    """A value as Python writes it, without the middle of a long one: YAML may hold one that no memory can, written out."""
    return SHORT.repr(value)


def unknown(table: str, name: str, known: Sequence[str]) -> str:
    """What is said about a field that `table` does not have."""
    near = get_close_matches(name, known, 1)
    hint = f" (do you mean {near[0]!r}?)" if near else ""
    return f"{table} has no field {name!r}{hint}; it has {', '.join(sorted(known))}"


def _place(location: tuple[int | str, ...], known: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of table and field out of the place of an error, which also has the indices of lists and the kinds of a union."""
    depth = 2 if location and location[0] in known else 1
    return [str(part) for part in location[:depth]]
