"""What a user chooses of a training run; the recipe holds the rest."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iltm_anomaly.recipes.feature_recipe import FeatureRecipe
from iltm_anomaly.recipes.pixel_recipe import Recipe
from iltm_anomaly.recipes.place_recipe import PlaceRecipe
from iltm_anomaly.recipes.uptake_recipe import UptakeRecipe


@dataclass
class TrainArguments:
    """What a user chooses; the recipe holds the rest.

    Args:
        data: MVTec AD folder (or one category of it), a Hub data set id, or a folder of unlabelled images.
        category: category of an MVTec AD folder or configuration of a Hub data set.
        contamination: share of defective training images (protocol: `contaminate`). None trains on what is
            there, which for a plain folder is all one can do.
        protocol: "disjoint", or "overlap" to contaminate with copies of test images.
        train_size: number of training images drawn; None takes all good ones.
        preset: name of a shipped recipe, a YAML file, or a recipe itself; None takes "features", or "phantom" for volumes.
        volumes: the data are volumes (NIfTI); the preset must be one for volumes.
        tile: side in pixels of the tiles that images are cut into, in place of the preset's.
        overrides: values in place of the preset's, such as "rounds.rounds=1".
        rounds: masked rounds in place of the recipe's.
        seed: of everything random, the contamination split included.
        resume: continue the run in `output`.
        checkpoint_seconds: time between checkpoints; they cost little more than writing the models and their optimiser.
        streaming: read the training images one by one through `datasets`, without storing the data set: one of the Hub, or a
            local folder that `datasets` reads. `train_size` takes the first N.
        report_to: trackers beside the run's own log, of `TRACKERS`, or your own subclass of `accelerate.tracking.GeneralTracker`,
            whose `log(values, step)` is called with all that the log gets.
        cpu: do not use an accelerator although there is one.
        show_progress: progress bars.
    """

    data: str
    output: Path
    category: str | None = None
    contamination: float | None = None
    protocol: str = "disjoint"
    train_size: int | None = None
    preset: str | Recipe | FeatureRecipe | UptakeRecipe | PlaceRecipe | None = None
    volumes: bool = False
    tile: int | None = None
    overrides: list[str] = field(default_factory=list)
    rounds: int | None = None
    seed: int = 0
    resume: bool = False
    checkpoint_seconds: float = 120.0
    streaming: bool = False
    report_to: list[Any] = field(default_factory=list)
    cpu: bool = False
    show_progress: bool = True
