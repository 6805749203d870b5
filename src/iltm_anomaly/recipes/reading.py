"""Reading recipes: YAML, and values given on the command line."""

import copy
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

PRESETS = resources.files(f"{__package__}.presets")
ALTERNATIVES = {"epochs": "steps", "steps": "epochs"}  # given one of the two, the other one is left out


class Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as in its version 1.2; PyYAML takes it for text."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str, where: str) -> Any:
    """What YAML text holds; ValueError names `where` it comes from if it is none."""
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date may have a 13th month
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{where} is no valid YAML{place}: {getattr(error, 'problem', None) or error}") from error


def read_file(path: Path) -> Any:
    """What a YAML file holds; ValueError names it if it is none, or is not in UTF-8."""
    try:
        return read_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8, from byte {error.start} on: save it so") from None


def preset_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.name.removesuffix(".yaml") for path in PRESETS.iterdir() if path.name.endswith(".yaml"))


def read_preset(preset: str | Path) -> Any:
    """What a shipped recipe, by its name, or a YAML file holds.

    Raises:
        ValueError: if there is none, or it is no YAML.
    """
    if str(preset) in preset_names():
        return read_yaml((PRESETS / f"{preset}.yaml").read_text(encoding="utf-8"), str(preset))
    if os.path.isfile(preset):  # False for a name that no file can have
        return read_file(Path(preset))
    raise ValueError(f"no preset and no file {str(preset)!r}; presets are {', '.join(preset_names())}")


def assign(values: Any, assignments: Sequence[str]) -> Any:
    """`values` of a recipe with others in the place of some of them.

    Args:
        values: tables in tables; not changed.
        assignments: such as "stage1.steps=500", any number of tables deep, the value in YAML.

    Raises:
        ValueError: if an assignment has another form, or leads through what is no table.
    """
    values = copy.deepcopy(values)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        *tables, name = path.split(".")
        if not equals or not all((*tables, name)):
            raise ValueError(f"{assignment!r} is not of the form FIELD=VALUE, such as stage1.steps=500")
        table = values
        for key in tables:
            if isinstance(table, dict):
                table[key] = {} if table.get(key) is None else table[key]
                table = table[key]
        if not isinstance(table, dict):
            raise ValueError(f"recipe has no field {path!r}: {'.'.join(tables) or 'it'} is no table of fields")
        table.pop(ALTERNATIVES.get(name), None)
        table[name] = read_yaml(text, assignment)
    return values
