"""Which images a run was trained on, told by the checksums that it keeps of them: their scores are too low."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from iltm_anomaly.data.cache import CacheDamagedError, PixelCache, digest_of_pixels
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.tiles import cut_images

logger = logging.getLogger(__name__)


class TrainedOn:
    """The training images of a run.

    Args:
        pixels: of the run.
        pipeline: of the run; its image processor and tiles make the same pixels of the same image.
    """

    def __init__(self, pixels: PixelCache, pipeline: ILTMAnomalyPipeline):
        self.digests = set(pixels.digests)
        self.tile = pipeline.settings.tile
        self.prepare = pipeline.image_processor.to_uint8
        paths = (name.rpartition("@")[0] if self.tile else name for name in pixels.names)
        self.names = {Path(path).name for path in paths}

    def has(self, image: Any, name: str = "") -> bool:
        """Whether an image was trained on: whether its pixels were, once resized, to the bit.

        Args:
            image: in any form; of tiles the first decides.
            name: of its file. If it has another than all training images it is none: a copy under a new name is missed, but to
                resize an image once more for nothing takes a twentieth of the time of its score. Without one the pixels are
                compared.
        """
        if name and "" not in self.names and name not in self.names:
            return False
        part = next(cut_images([image], self.tile)) if self.tile else image
        return digest_of_pixels(np.ascontiguousarray(self.prepare(part))) in self.digests


def warn_of_trained(count: int, images: int) -> None:
    """Says so if some of the images that were scored were trained on."""
    if count:
        logger.warning(
            "%d of these %d images were trained on: they score lower than they would if they were new", count, images
        )


def count_trained(pipeline: ILTMAnomalyPipeline, run_folder: Path | None, images: Collection[Any]) -> int | None:
    """How many of the images were trained on, which the log says too; None where `trained_on` is."""
    seen = trained_on(pipeline, run_folder)
    if seen is None:
        return None
    count = sum(map(seen.has, images))
    warn_of_trained(count, len(images))
    return count


def trained_on(pipeline: ILTMAnomalyPipeline, run_folder: Path | None) -> TrainedOn | None:
    """The training images of the run that a pipeline comes from; None without a run or its images, and of volumes, which are
    costly to resize."""
    if run_folder is None or pipeline.image_processor.is_volumetric:
        return None
    try:
        return TrainedOn(PixelCache(run_folder / "images.arrow"), pipeline)
    except CacheDamagedError:
        return None
