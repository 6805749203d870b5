"""Ground truth of a data set: which pixels or voxels of each image are defective."""

import logging

import numpy as np
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from iltm_anomaly.data.volume_files import read_mask, read_volume

logger = logging.getLogger(__name__)


def ground_truth_masks(dataset: Dataset, volumes: bool) -> list[np.ndarray]:
    """One bool mask per image, (H, W) at the image's own size; of volumes (D, H, W) on the volume's own grid."""
    if volumes:
        return [read_mask(row["mask"], read_volume(row["image"]).grid) for row in dataset]
    return [pixel_mask(row["mask"], row["image"].size) for row in dataset]


def pixel_mask(mask: Image.Image | None, size: tuple[int, int]) -> np.ndarray:
    """Ground truth (H, W) bool at (width, height) `size`; all False for a good image, which has no mask."""
    if mask is None:
        return np.zeros(size[::-1], dtype=bool)
    return np.asarray(mask.convert("L").resize(size, Image.Resampling.NEAREST)) > 127


def has_ground_truth(dataset: Dataset) -> bool:
    """Whether every defective image of a data set has a mask; logs a warning if not."""
    masks = dataset["mask"]
    if dataset.features["mask"].dtype != "string":
        masks = dataset.cast_column("mask", ImageFeature(decode=False))["mask"]
    unknown = sum(label != 0 and mask is None for label, mask in zip(dataset["label"], masks, strict=True))
    if unknown:
        logger.warning("shares of masked tokens are unknown: %d training images have no usable ground truth", unknown)
    return not unknown
