"""The training images of a run, decoded once into a file that all processes map into memory."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from iltm_anomaly.data.cache import CacheDamagedError, CacheWriteError, PixelCache, build_cache, difference
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.progress import progress
from iltm_anomaly.recipes.pixel_recipe import Recipe
from iltm_anomaly.tiles import cut_images
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig
from iltm_anomaly.training.checkpoint import CheckpointError
from iltm_anomaly.training.context import RunContext
from iltm_anomaly.training.processes import on_main
from iltm_anomaly.training.run_folder import RunFolderError

logger = logging.getLogger(__name__)


def load_pixels(
    run: RunContext, images: Iterable[Any], source: Callable[[], str | None] | None, expected: str | None
) -> tuple[PixelCache, ILTMImageProcessor]:
    """Decodes every image, or tile of one, once, to (N, C, *spatial) uint8 in the run's `images.arrow`; a file that is there
    already is used if it holds the same images.

    Args:
        images: anything that the processor takes; read at most once, in order, by the main process.
        source: see `TrainingRun.train`.
        expected: checksum of the images of the run that is resumed, None for a new run.

    Returns:
        The images, and the processor that has made them.

    Raises:
        RunFolderError: if these are not the images of the run that is resumed.
        CheckpointError: if the file cannot be written.
    """
    path = run.output / "images.arrow"

    def fill() -> ILTMImageProcessor:
        processor = _make_processor(run.recipe, images)
        known = None if source is None else source()
        if known is not None:
            settings = json.dumps(processor.to_dict(), sort_keys=True, default=str)
            settings += "" if run.recipe.tile is None else f" tiles of {run.recipe.tile}"
            known = hashlib.sha256(f"{known} {settings}".encode()).hexdigest()
        try:
            _fill_cache(run, path, images, processor.to_uint8, known, expected)
        except CacheWriteError as error:
            raise CheckpointError(str(error)) from error
        return processor

    processor = on_main(run.accelerator, fill)
    return PixelCache(path), processor


def _make_processor(recipe: Recipe, images: Iterable[Any]) -> ILTMImageProcessor:
    if recipe.volume is not None:
        divisor = VQVAEConfig(**recipe.vqvae).pixels_per_token if isinstance(recipe, Recipe) else 1
        return ILTMImageProcessor.for_volumes(images, size_divisor=divisor, **recipe.volume)
    return ILTMImageProcessor(size=recipe.image_size, num_channels=recipe.num_channels, resample=recipe.resample)


def _fill_cache(
    run: RunContext,
    path: Path,
    images: Iterable[Any],
    prepare: Callable[[Any], np.ndarray],
    source: str | None,
    expected: str | None,
) -> None:
    cache = _usable_cache(path, source, expected)

    def shown() -> Iterator[Any]:  # made when needed: a bar asks for the length, for which the images must be known
        whole = progress(images, desc="loading images", unit="image", hidden=not run.shows_bars)
        yield from whole if run.recipe.tile is None else cut_images(whole, run.recipe.tile)

    changes = None
    if cache is None:
        cache = build_cache(path, shown(), prepare, source)
    elif source is None or cache.source != source:  # moved to another machine, perhaps: the pixels decide
        changes = difference(cache, shown(), prepare)
    if changes is None and expected not in (None, cache.digest):  # of another attempt, that was killed
        path.unlink()
        changes = "other pixels"
    if changes is not None:
        raise RunFolderError(
            f"cannot resume {run.output}: the training images are not those that it was started with ({changes}). "
            "Give the same images, or another --output"
        )


def _usable_cache(path: Path, source: str | None, expected: str | None) -> PixelCache | None:
    """What an earlier sitting has decoded. None if there is none, it is damaged, or it was left over from a run that had not
    begun and may hold other images."""
    try:
        if not path.exists():
            return None
        cache = PixelCache(path)
        cache.verify()
    except CacheDamagedError as error:
        logger.warning("%s: decoding the images again", error)
        return None
    left_over = expected is None and (source is None or cache.source != source)
    return None if left_over else cache
