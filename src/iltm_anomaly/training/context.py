"""What the stages of a run share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from iltm_anomaly.data.augmentation import AugmentationConfig, augment
from iltm_anomaly.seeds import sample_seed
from iltm_anomaly.training.batches import loading_threads, total_steps
from iltm_anomaly.training.loop_settings import LoopSettings
from iltm_anomaly.training.run_folder import RunFolder
from iltm_anomaly.training.tracking import RunLog

# First counters of every random stream of a run, so that no two parts of it share one.
STREAM_STAGE1, STREAM_STAGE2, STREAM_CODES, STREAM_WEIGHTS, STREAM_FEATURES = range(10, 15)


@dataclass
class RunContext:
    """One run in one folder.

    Args:
        recipe: every number of it, a `Recipe` or a `FeatureRecipe`.
        output: run folder; `model` in it becomes the pipeline folder.
        seed: of everything random.
        accelerator: device, processes and precision.
        show_progress: bars on the main process.
        checkpoint_seconds: time between checkpoints.
    """

    recipe: Any
    output: Path
    seed: int
    accelerator: Accelerator
    show_progress: bool = True
    checkpoint_seconds: float = 120.0
    folder: RunFolder = field(init=False)
    log: RunLog = field(init=False)

    def __post_init__(self):
        self.folder = RunFolder(self.output, self.accelerator)
        self.augmentation = AugmentationConfig(**self.recipe.augmentation)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def shows_bars(self) -> bool:
        """Whether this process draws progress bars."""
        return self.show_progress and self.accelerator.is_main_process

    def augmented(self, pixels: Tensor, seeds: list[int]) -> Tensor:
        """Augmented copies of images (B, C, *spatial) uint8, one by each seed, as floats in [0, 1] on the run's device."""
        return augment(pixels.to(self.device).float() / 255, self.augmentation, seeds)

    def start_weights(self, number: int) -> None:
        """Seeds the weights of a model that is made next: 0 for the tokenizer, 1 for every round's prior."""
        torch.manual_seed(sample_seed(self.seed, STREAM_WEIGHTS, number))

    def placed(self, model: PreTrainedModel) -> Any:
        """The model on the run's device, with activation checkpointing if the recipe asks for it."""
        if getattr(self.recipe, "gradient_checkpointing", False):  # nothing is optimised in a run on features
            model.activation_checkpointing_enable({"use_reentrant": False})
        return model.to(self.device)  # type: ignore[arg-type]

    def steps_before_round(self, number: int, num_images: int) -> int:
        """Optimisation steps of the run before a round of the prior."""
        return total_steps(self.recipe.stage1, num_images) + number * total_steps(self.recipe.stage2, num_images)

    def loop_settings(self, name: str, stream: int, follows: str, **more: Any) -> LoopSettings:
        """Settings of a stage's loop; `more` are fields of `LoopSettings`."""
        return LoopSettings(
            name=name,
            seed=sample_seed(self.seed, stream),
            log=self.log,
            checkpoint_path=self.output / "checkpoint.bin",
            checkpoint_seconds=self.checkpoint_seconds,
            show_progress=self.show_progress,
            loading_threads=loading_threads(self.accelerator),
            follows=follows,
            **more,
        )
