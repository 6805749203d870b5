"""Recipes of runs on frozen features."""

from dataclasses import field, fields
from typing import Annotated, Any

from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, model_validator
from pydantic.dataclasses import dataclass

from iltm_anomaly.recipes.kinds import CONFIG, LEAST_TILE, AnyRecipe
from iltm_anomaly.recipes.pixel_recipe import Recipe
from iltm_anomaly.recipes.tables import TableOf
from iltm_anomaly.tokenizers.features import FeatureTokenizerConfig

FEATURES = TableOf(FeatureTokenizerConfig, "backbone levels vocab_size pixels_per_token")


@dataclass(config=CONFIG)
class FeatureRoundsRecipe:
    """The iterative part: tokens that other images do not have lose weight, and everything is fitted again."""

    rounds: Annotated[StrictInt, Field(ge=0)] = 3
    """Weighted rounds after round 0, at most."""
    abnormal_share: Annotated[StrictFloat, Field(ge=0, lt=1)] = 0.25
    """The largest share of training images that may be abnormal: at most so many of them lose tokens in a round."""
    stop_early: StrictBool = True
    """End once the rejected tokens hardly change from one round to the next (an overlap above 0.95)."""


@dataclass(config=CONFIG)
class FeatureRecipe(AnyRecipe):
    """A whole run on tokens of frozen features."""

    name: str
    """Name of the recipe, in reports."""
    features: Annotated[dict[str, Any], FEATURES]
    """What differs from the defaults of `FeatureTokenizerConfig`; `{}` for nothing."""
    image_size: StrictInt = 256
    """Pixels along each side: a multiple of `features.pixels_per_token`. Smaller images are enlarged, to the size of objects that
    backbones know."""
    num_channels: StrictInt = 3
    """3 for colour, 1 for grey."""
    tile: Annotated[StrictInt, Field(ge=LEAST_TILE)] | None = None
    """Pixels along each side of the tiles that images are cut into, in training and afterwards, where defects are small in them;
    null takes images whole."""
    rounds: FeatureRoundsRecipe = field(default_factory=FeatureRoundsRecipe)
    """How tokens are weighted between rounds."""
    pixels: Annotated[Recipe | None, BeforeValidator(lambda v: Recipe.from_dict(v) if isinstance(v, dict) else v)] = (
        None
    )
    """A second view: a model on codes of pixels, trained on images in which the rounds rejected nothing, and added to the map.
    Its `image_size` divides that of the features. null leaves it out."""

    @model_validator(mode="after")
    def _check_parts(self):
        try:
            values = {name: value for name, value in self.features.items() if name not in ("backbone", "levels")}
            config = FeatureTokenizerConfig(in_channels=self.num_channels, **values)
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise ValueError(f"recipe.features: {error.__cause__ or error}") from error
        side = config.pixels_per_token
        if self.image_size < side or self.image_size % side:
            raise ValueError(f"recipe.image_size must be a positive multiple of {side}, got {self.image_size}")
        if self.pixels is not None:
            own = {"image_size": self.image_size, "num_channels": self.num_channels, "tile": None}
            theirs = {name: getattr(self.pixels, name) for name in own}
            if self.pixels.is_volumetric or own["image_size"] % theirs["image_size"]:
                raise ValueError(f"recipe.pixels.image_size must divide {self.image_size}, got {theirs['image_size']}")
            if wrong := next((name for name in ("num_channels", "tile") if own[name] != theirs[name]), None):
                raise ValueError(f"recipe.pixels.{wrong} must be {own[wrong]}, got {theirs[wrong]}")
        return self

    # What a run asks of any recipe
    is_volumetric = False
    volume = None
    mixed_precision = property(lambda self: "no" if self.pixels is None else self.pixels.mixed_precision)
    resample = Image.Resampling.BILINEAR  # what Lanczos adds to edges of enlarged images, fine tokens see
    augmentation = property(lambda self: {})
    inference = property(lambda self: {})

    @classmethod
    def field_names(cls) -> dict[str, tuple[str, ...]]:
        return FIELDS


FIELDS = {
    "": tuple(f.name for f in fields(FeatureRecipe)),
    "rounds": tuple(f.name for f in fields(FeatureRoundsRecipe)),
    "features": FEATURES.names,
}
