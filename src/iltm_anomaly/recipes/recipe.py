"""Recipes: every number of a training run, as data. The shipped ones are the YAML files in `presets/`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from iltm_anomaly.recipes.feature_recipe import FeatureRecipe
from iltm_anomaly.recipes.kinds import AnyRecipe
from iltm_anomaly.recipes.pixel_recipe import Recipe
from iltm_anomaly.recipes.place_recipe import PlaceRecipe
from iltm_anomaly.recipes.reading import assign, preset_names, read_preset
from iltm_anomaly.recipes.uptake_recipe import UptakeRecipe


def json_schema() -> str:
    """The schema of a recipe file for editors, as JSON text: what `recipe.schema.json` holds."""
    schema = TypeAdapter(Recipe | FeatureRecipe | UptakeRecipe | PlaceRecipe).json_schema()
    inherited = schema["$defs"]["StageRecipe"]["properties"]
    schema["$defs"]["Stage1Recipe"]["properties"] |= inherited  # of these, pydantic reads the explanations only there
    return json.dumps(schema, indent=1) + "\n"


def recipe_from_dict(values: dict[str, Any]) -> AnyRecipe:
    """A recipe of any kind from plain data: one on features has the table `features`, one on tissues the table `tissues`,
    one on places the table `places`.

    Raises:
        ValueError: if a field is unknown, missing or wrong; it is named.
    """
    tables = values if isinstance(values, dict) else {}
    named: dict[str, Any] = {"features": FeatureRecipe, "tissues": UptakeRecipe, "places": PlaceRecipe}
    kind = next((kind for name, kind in named.items() if name in tables), Recipe)
    return kind.from_dict(values)


def load_recipe(preset: str | Path | AnyRecipe, overrides: Sequence[str] = ()) -> Any:
    """A recipe of any kind with other values in the place of some of its own.

    Args:
        preset: the name of a shipped recipe, the path of a YAML file, or a recipe itself.
        overrides: such as "stage1.steps=500", any number of tables deep, the value in YAML.

    Raises:
        ValueError: if there is no such recipe, or a field is unknown or wrong; it is named.
    """
    where = ""
    if isinstance(preset, AnyRecipe):
        values = preset.to_dict()
    else:
        values = read_preset(preset)
        where = "" if str(preset) in preset_names() else f"{preset}: "
    if overrides:
        where += f"--set {' '.join(overrides)}: "
        values = _named(where, lambda: assign(values, overrides))
    return _named(where, lambda: recipe_from_dict(values))


def _named(where: str, read: Callable[[], Any]) -> Any:
    """What `read` returns; its ValueError with the place that the values are from."""
    try:
        return read()
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None
