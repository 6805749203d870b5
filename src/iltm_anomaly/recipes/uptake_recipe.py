"""Recipes of runs on tissues: PET whose uptake is judged by what the CT shows."""

from dataclasses import field, fields
from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictFloat, StrictInt, model_validator
from pydantic.dataclasses import dataclass

from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.ranges import RANGES
from iltm_anomaly.recipes.kinds import CONFIG
from iltm_anomaly.recipes.tables import TableOf
from iltm_anomaly.recipes.volume_recipe import VolumeRecipe
from iltm_anomaly.settings import UptakeSettings
from iltm_anomaly.tokenizers.tissue import TissueTokenizerConfig

TISSUES = TableOf(TissueTokenizerConfig, "vocab_size scales")
UPTAKE_VOLUME = TableOf(
    ILTMImageProcessor.for_volumes,
    "size spacing intensity_range intensity_power foreground context_range",
    also=ILTMImageProcessor.__doc__,
)
UPTAKE_INFERENCE = TableOf(UptakeSettings, "tissue_weight smoothing", limits=RANGES)


@dataclass(config=CONFIG)
class UptakeRoundsRecipe:
    """The iterative part: tokens that stand out are given up, and what that tells of their tissues makes others stand out."""

    rounds: Annotated[StrictInt, Field(ge=0)] = 3
    """Rounds after round 0, at most."""
    rejected_share: Annotated[StrictFloat, Field(gt=0, lt=1)] = 0.1
    """Share of all training tokens, padding left out, that a round gives up: those that stand out most. It should be above the
    share of lesions."""
    stop_early: StrictBool = True
    """End once the tokens that are given up hardly change from one round to the next (an overlap above 0.95)."""


@dataclass(config=CONFIG)
class UptakeRecipe(VolumeRecipe):
    """A whole run on tissues."""

    name: str
    """Name of the recipe, in reports."""
    tissues: Annotated[dict[str, Any], TISSUES]
    """What differs from the defaults of `TissueTokenizerConfig`; `{}` for nothing."""
    volume: Annotated[dict[str, Any], UPTAKE_VOLUME]
    """How volumes become grids. What is left out follows from the training volumes; `{}` leaves out all."""
    findings: Annotated[StrictFloat, Field(gt=0)] = 2.0
    """Connected regions that the threshold leaves, a training volume in the mean, their lesions among them: so one more than the
    false positives to be expected where each has one lesion."""
    rounds: UptakeRoundsRecipe = field(default_factory=UptakeRoundsRecipe)
    """How tokens are given up between rounds."""
    inference: Annotated[dict[str, Any], UPTAKE_INFERENCE] = field(default_factory=dict)
    """What differs from the defaults of `UptakeSettings`."""

    @model_validator(mode="after")
    def _check_parts(self):
        self.check_tables(tissues=TissueTokenizerConfig, inference=UptakeSettings)
        return self

    @classmethod
    def field_names(cls) -> dict[str, tuple[str, ...]]:
        return FIELDS


FIELDS = {
    "": tuple(f.name for f in fields(UptakeRecipe)),
    "rounds": tuple(f.name for f in fields(UptakeRoundsRecipe)),
    "tissues": TISSUES.names,
    "volume": UPTAKE_VOLUME.names,
    "inference": UPTAKE_INFERENCE.names,
}
