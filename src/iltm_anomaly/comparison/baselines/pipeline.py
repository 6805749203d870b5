"""`BaselinePipeline`: images in, abnormality maps out, for any baseline; called, saved and loaded as `ILTMAnomalyPipeline` is."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from iltm_anomaly import masking
from iltm_anomaly.comparison.baselines.methods import METHODS
from iltm_anomaly.comparison.baselines.modeling import IMAGES_AT_ONCE, BaselineModel
from iltm_anomaly.hub.checks import read_json
from iltm_anomaly.hub.folders import CALIBRATION_FILE
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.progress import progress
from iltm_anomaly.saved_pipeline import SavedPipeline

# Classes are looked up here, never imported by the name that a JSON file gives.
MODEL_CLASSES = {m.model_class.__name__: m.model_class for m in METHODS.values() if m.model_class is not None}


@dataclass
class BaselineSettings:
    """
    Args:
        score_threshold: from here on a pixel is called abnormal; None before calibration.

    Raises:
        ValueError: if it is neither None nor a finite number.
    """

    score_threshold: float | None = None

    def __post_init__(self):
        value: Any = self.score_threshold
        if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
            raise ValueError(f"score_threshold must be a finite number, got {value!r}")


@dataclass
class BaselineOutput:
    """
    Args:
        scores: (B,) float32, as the method scores an image; higher is more anomalous.
        anomaly_maps: (H, W) float32 per image, at the image's own size; higher is more anomalous.
        masks: bool maps of the same sizes, True where the map reaches the calibrated threshold.
    """

    scores: Tensor
    anomaly_maps: list[np.ndarray]
    masks: list[np.ndarray]


class BaselinePipeline(SavedPipeline):
    """A trained baseline and its image processor. It computes in float32.

    Args:
        model: the trained model.
        image_processor: of the size and channels that the model was made for.
        settings: `calibrate` sets the threshold in it.
        training_report: how the model was trained; saved along.

    Raises:
        ValueError: if the two do not fit each other.

    Example:
        >>> pipe = BaselinePipeline.from_pretrained("runs/bottle_nsa/model")
        >>> out = pipe("part.png")
        >>> out.scores, out.masks[0].any()
    """

    part_names: ClassVar[tuple[str, ...]] = ("model", "image_processor")

    def __init__(
        self,
        model: BaselineModel,
        image_processor: ILTMImageProcessor,
        settings: BaselineSettings | None = None,
        training_report: dict[str, Any] | None = None,
    ):
        makes = (image_processor.num_channels, *image_processor.padded_size)
        takes = (model.config.in_channels, *model.config.image_size)
        if makes != takes:
            raise ValueError(f"the image processor makes {makes} pixels, the model takes {takes}: they do not fit")
        self.model = model.eval()
        self.image_processor = image_processor
        self.settings = settings or BaselineSettings()
        self.training_report = training_report or {}

    @classmethod
    def part_classes(cls, folder: Path) -> dict[str, Any]:
        named = read_json(folder / "model_index.json").get("model")
        name = named[1] if isinstance(named, list) and len(named) == 2 and named[0] == "iltm_anomaly" else None
        if not isinstance(name, str) or name not in MODEL_CLASSES:
            raise ValueError(
                f"{folder / 'model_index.json'} names {named!r} as its model, expected one of {', '.join(MODEL_CLASSES)}: "
                "not a baseline of this package"
            )
        return {"model": MODEL_CLASSES[name], "image_processor": ILTMImageProcessor}

    @classmethod
    def read_settings(cls, folder: Path) -> BaselineSettings:
        path = folder / CALIBRATION_FILE
        values = read_json(path)
        if set(values) != {"score_threshold"}:
            raise ValueError(f"{path} must hold score_threshold alone, got {sorted(values)}")
        try:
            return BaselineSettings(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @torch.no_grad()
    def __call__(self, images: Any, batch_size: int = 8, show_progress: bool = False) -> BaselineOutput:
        """Scores one image or many.

        Args:
            images, batch_size, show_progress: as of `SavedPipeline.batches`, whose errors are raised.
        """
        scores, maps = [], []
        for batch in self.batches(images, batch_size, show_progress):
            batch_scores, batch_maps = self.model.anomaly_maps(batch["pixel_values"].to(self.device))
            scores.append(batch_scores.float().cpu())
            for values, size in zip(batch_maps, batch["original_sizes"], strict=True):
                maps.append(self.image_processor.restore_map(values, size))
        threshold = np.float64(math.inf if self.settings.score_threshold is None else self.settings.score_threshold)
        return BaselineOutput(torch.cat(scores), maps, [values >= threshold for values in maps])

    @torch.no_grad()
    def calibrate(self, pixel_values: Tensor, show_progress: bool = False) -> float:
        """Sets the threshold from the highest value of each map of training images (`masking.score_threshold`). No label is read.

        Args:
            pixel_values: (N, C, H, W) in [0, 1].
            show_progress: a progress bar.

        Returns:
            The threshold.
        """
        maxima = []
        batches = pixel_values.split(IMAGES_AT_ONCE)
        for batch in progress(batches, desc="calibrating", unit="batch", hidden=not show_progress):
            maxima.append(self.model.anomaly_maps(batch.to(self.device))[1].amax((1, 2)).cpu())
        self.settings.score_threshold = masking.score_threshold(torch.cat(maxima))
        return self.settings.score_threshold
