"""Recipes of runs on places: whole bodies, whose uptake is judged by what others have at the same place."""

from dataclasses import field, fields
from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictFloat, StrictInt, model_validator
from pydantic.dataclasses import dataclass

from iltm_anomaly.prior import PlacePriorConfig
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.ranges import RANGES
from iltm_anomaly.recipes.kinds import CONFIG
from iltm_anomaly.recipes.tables import TableOf
from iltm_anomaly.recipes.volume_recipe import VolumeRecipe
from iltm_anomaly.settings import PlaceSettings

PLACES = TableOf(PlacePriorConfig, "reach")
PLACE_VOLUME = TableOf(
    ILTMImageProcessor.for_volumes,
    "size spacing intensity_range intensity_power foreground stretch",
    also=ILTMImageProcessor.__doc__,
)
PLACE_INFERENCE = TableOf(PlaceSettings, "background smoothing", limits=RANGES)


@dataclass(config=CONFIG)
class PlaceRoundsRecipe:
    """The iterative part: volumes that stand out give up what does, and vouch no longer for others that are as hot there."""

    rounds: Annotated[StrictInt, Field(ge=0)] = 3
    """Rounds after round 0, at most."""
    abnormal_share: Annotated[StrictFloat, Field(gt=0, lt=0.5)] = 0.4
    """The largest share of training volumes that may be abnormal: so many, those that stand out most, give up tokens."""
    stop_early: StrictBool = True
    """End once the tokens that are given up hardly change from one round to the next (an overlap above 0.95)."""


@dataclass(config=CONFIG)
class PlaceRecipe(VolumeRecipe):
    """A whole run on places."""

    name: str
    """Name of the recipe, in reports."""
    places: Annotated[dict[str, Any], PLACES]
    """What differs from the defaults of `PlacePriorConfig`; `{}` for nothing."""
    volume: Annotated[dict[str, Any], PLACE_VOLUME]
    """How volumes become grids, which must have the same parts of all bodies at the same places: so with `stretch`. What is left
    out follows from the training volumes."""
    rounds: PlaceRoundsRecipe = field(default_factory=PlaceRoundsRecipe)
    """How tokens are given up between rounds."""
    inference: Annotated[dict[str, Any], PLACE_INFERENCE] = field(default_factory=dict)
    """What differs from the defaults of `PlaceSettings`."""

    @model_validator(mode="after")
    def _check_parts(self):
        self.check_tables(places=PlacePriorConfig, inference=PlaceSettings)
        return self

    @classmethod
    def field_names(cls) -> dict[str, tuple[str, ...]]:
        return FIELDS


FIELDS = {
    "": tuple(f.name for f in fields(PlaceRecipe)),
    "rounds": tuple(f.name for f in fields(PlaceRoundsRecipe)),
    "places": PLACES.names,
    "volume": PLACE_VOLUME.names,
    "inference": PLACE_INFERENCE.names,
}
