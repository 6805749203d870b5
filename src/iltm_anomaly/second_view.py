"""The second view of a pipeline on features: the map of a pipeline on pixels, added to its own.

Features say what a thing is, codes of pixels how it looks in detail: faults of a surface that the first hardly see may surprise
the second. Both are brought to one scale by the training images alone. Scores of images stay those of the features.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from iltm_anomaly.scoring import to_pixels
from iltm_anomaly.settings import FeatureSettings

HIGH = 0.99  # quantile of a map over training images that is as far above its median in both views
EFFORT = "score"  # healing takes a hundred times as long and adds nothing to such a map


def shrunk(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Images (B, C, *spatial) as large as the pipeline on pixels takes them, (B, C, *size), by means of whole blocks."""
    return F.avg_pool2d(images, images.shape[-1] // size[-1])


def map_of_pixels(pixels: Any, images: Tensor) -> Tensor:
    """Maps (B, *spatial) of images (B, C, *spatial) in [0, 1] by a pipeline on pixels, before they are put on a scale."""
    small = shrunk(images, pixels.image_processor.padded_size)
    maps = pixels.score_batch(small, pixels.settings.at(EFFORT), 0)[0]
    return torch.stack([to_pixels(one, tuple(images.shape[2:])) for one in maps])


def added(maps: list[Tensor], pixels: Any, images: Tensor, settings: FeatureSettings) -> list[Tensor]:
    """Maps (*spatial) of features with those of a pipeline on pixels added, if there is one, in which what is usual counts 0."""
    if pixels is None or settings.pixel_scale is None or settings.pixel_weight == 0:
        return maps
    factor, usual = settings.pixel_weight / settings.pixel_scale, settings.usual_pixels or 0.0
    return [own + factor * (theirs - usual) for own, theirs in zip(maps, map_of_pixels(pixels, images), strict=True)]


def calibrate(features: Tensor, pixels: Tensor, settings: FeatureSettings) -> None:
    """Sets `usual_pixels` and `pixel_scale` by maps of the same training images, each (N, *spatial), of both views."""
    (median, high), (usual, rare) = (np.quantile(maps.numpy(), [0.5, HIGH]) for maps in (features, pixels))
    settings.usual_pixels = float(usual)
    settings.pixel_scale = float(max(rare - usual, 1e-6) / max(high - median, 1e-6))
