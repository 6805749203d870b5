"""`BaselinePipeline`: images in, abnormality maps out, for any baseline; called, saved and loaded as `ILTMAnomalyPipeline` is."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from iltm_anomaly import masking
from iltm_anomaly.comparison.baselines import BASELINES, VQVAE_TRANSFORMER
from iltm_anomaly.comparison.baselines.modeling import IMAGES_AT_ONCE, BaselineModel
from iltm_anomaly.hub.checks import check_finite, check_folder, read_json
from iltm_anomaly.hub.folders import local_folder
from iltm_anomaly.pipeline import check_batch_size, save_parts
from iltm_anomaly.processing.image_processing import ILTMImageProcessor

# Classes are looked up here, never imported by the name that a JSON file gives.
METHODS = {baseline.class_name: baseline for baseline in (*BASELINES.values(), VQVAE_TRANSFORMER)}


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


class BaselinePipeline:
    """A trained baseline and its image processor.

    Args:
        model: the trained model.
        image_processor: of the size and channels that the model was made for.
        settings: `calibrate` sets the threshold in it.
        training_report: how the model came about, saved along.

    Raises:
        ValueError: if the two do not fit each other.

    Example:
        >>> pipe = BaselinePipeline.from_pretrained("runs/bottle_nsa/model")
        >>> out = pipe("part.png")
        >>> out.scores, out.masks[0].any()
    """

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

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name."""
        return {"model": self.model, "image_processor": self.image_processor}

    @property
    def device(self) -> torch.device:
        return self.model.device

    def to(self, device: str | torch.device | None = None) -> "BaselinePipeline":
        """Moves the model."""
        self.model.to(device=device)
        return self

    @torch.no_grad()
    def __call__(self, images: Any, batch_size: int = 8, show_progress: bool = False) -> BaselineOutput:
        """Scores one image or many.

        Args:
            images: a path, PIL image, array or tensor, a list of these, or a column of a `datasets.Dataset`.
            batch_size: images that go through the model together.
            show_progress: a progress bar over images.

        Raises:
            ImageReadError: if an image cannot be read.
            ValueError: if `images` is empty, or values or a shape are none of an image.
            TypeError: if something is no image.
        """
        images = self.image_processor.as_list(images)
        if not images:
            raise ValueError("no images given")
        check_batch_size(batch_size)
        scores, maps = [], []
        starts = tqdm(range(0, len(images), batch_size), desc="scoring", unit="batch", disable=not show_progress)
        for start in starts:
            batch = self.image_processor.preprocess(images[start : start + batch_size])
            batch_scores, batch_maps = self.model.anomaly_maps(batch["pixel_values"].to(self.device))
            scores.append(batch_scores.float().cpu())
            for values, size in zip(batch_maps, batch["original_sizes"], strict=True):
                maps.append(self.image_processor.restore_map(values, size))
        threshold = math.inf if self.settings.score_threshold is None else self.settings.score_threshold
        return BaselineOutput(torch.cat(scores), maps, [values >= threshold for values in maps])

    @torch.no_grad()
    def calibrate(self, pixel_values: Tensor, show_progress: bool = False) -> float:
        """Sets the threshold from the maps' maxima of training images (N, C, H, W) alone (`masking.score_threshold`). No label
        is read.

        Returns:
            The threshold.
        """
        maxima = []
        batches = pixel_values.split(IMAGES_AT_ONCE)
        for batch in tqdm(batches, desc="calibrating", unit="batch", disable=not show_progress):
            maxima.append(self.model.anomaly_maps(batch.to(self.device))[1].amax((1, 2)).cpu())
        self.settings.score_threshold = masking.score_threshold(torch.cat(maxima))
        return self.settings.score_threshold

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model_index.json, one sub-folder per part, calibration.json and training_report.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_parts(self, folder)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        device: str | torch.device | None = None,
    ) -> "BaselinePipeline":
        """Loads a pipeline from a local folder or a Hub repository (one snapshot, of one revision).

        Raises:
            ValueError: if the folder is not a baseline of this package, or names classes that are not its own.
        """
        folder = local_folder(
            name_or_path, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        model_class = _model_class(folder)
        check_folder(folder, {"model": model_class, "image_processor": ILTMImageProcessor})
        calibration = read_json(folder / "calibration.json")
        if set(calibration) != {"score_threshold"}:
            raise ValueError(
                f"{folder / 'calibration.json'} must hold score_threshold alone, got {sorted(calibration)}"
            )
        model = model_class.from_pretrained(folder / "model", local_files_only=True, dtype=torch.float32)
        check_finite(model.state_dict(), folder / "model")
        pipeline = cls(
            model,
            ILTMImageProcessor.from_pretrained(folder / "image_processor", local_files_only=True),
            BaselineSettings(**calibration),
            read_json(folder / "training_report.json"),
        )
        return pipeline.to(device)


def _model_class(folder: Path) -> Any:
    named = read_json(folder / "model_index.json").get("model")
    name = named[1] if isinstance(named, list) and len(named) == 2 and named[0] == "iltm_anomaly" else None
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(
            f"{folder / 'model_index.json'} names {named!r} as its model, expected one of {', '.join(METHODS)}: "
            "not a baseline of this package"
        )
    return METHODS[name].model_class
