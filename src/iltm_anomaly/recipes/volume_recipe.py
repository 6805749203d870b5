"""What recipes of runs on tissues and on places have in common: volumes, and nothing that is optimised by gradients."""

from collections.abc import Callable
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.recipes.kinds import AnyRecipe

FOUND: dict[str, Any] = {
    "volumes": [],
    "size": [8] * 3,
    "spacing": 1.0,
    "intensity_range": [0.0, 1.0],
}  # as volumes will tell


class VolumeRecipe(AnyRecipe):
    """A recipe with a table `volume`; what a run asks of any."""

    volume: dict[str, Any]
    is_volumetric = True
    tile = None
    mixed_precision = "no"
    augmentation = property(lambda self: {})

    # `training_fields` are all: calibrated in every round, training depends on what inference has too

    def check_tables(self, **makers: Callable[..., Any]) -> None:
        """Raises ValueError if what is made of a table refuses it.

        Args:
            makers: by the name of a table; `volume` is checked besides.
        """
        given = {name: value for name, value in self.volume.items() if value is not None}
        tables = {name: (make, getattr(self, name)) for name, make in makers.items()}
        for name, (make, values) in (tables | {"volume": (ILTMImageProcessor.for_volumes, FOUND | given)}).items():
            try:
                make(**values)
            except (StrictDataclassError, TypeError, ValueError) as error:
                raise ValueError(f"recipe.{name}: {error.__cause__ or error}") from error
