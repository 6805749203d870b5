"""Large images in overlapping tiles, scored one by one and put together again, and training images as tiles."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iltm_anomaly.processing.images import decode_image
from iltm_anomaly.ranges import RANGES
from iltm_anomaly.tiling import Tiling, tiling_of


def check_tile(tile: int | None) -> None:
    """Raises ValueError unless it is None or a whole number in its range."""
    if tile is None:
        return
    least, most = RANGES["tile"]
    if not isinstance(tile, Integral) or isinstance(tile, bool) or not least <= tile <= most:
        raise ValueError(f"tile must be a whole number of pixels, {least:g} at least, got {tile!r}")


@dataclass
class ScoredImage:
    """What a pipeline finds in one image; fields as of `ILTMAnomalyOutput`, without its first axis."""

    anomaly_map: np.ndarray
    score: float
    healed: Any
    log_likelihood: Tensor
    resampled: Tensor


def decoded_images(images: list[Any], tile: int) -> Iterator[tuple[Image.Image | np.ndarray, Tiling]]:
    """Images in any form, each decoded when it is its turn, with how it is cut."""
    if not images:
        raise ValueError("no images given")
    for number, image in enumerate(images):
        decoded = decode_image(image, f"image {number} (of {len(images)}, counted from 0)")
        yield decoded, tiling_of(decoded, tile)


def put_together(tiling: Tiling, tiles: Iterable[ScoredImage]) -> ScoredImage:
    """An image from its scored tiles, none of which is kept.

    Its score is the highest of a tile: thresholds are of images of that size, and an area that grows with the image would thin a
    defect out.
    """
    values = np.zeros((tiling.height, tiling.width), np.float32)
    picture: np.ndarray | None = None
    likelihoods, resampled, highest = [], [], -np.inf
    for number, one in enumerate(tiles):
        tiling.add(values, number, one.anomaly_map)
        healed = np.asarray(one.healed)
        if picture is None:
            picture = np.zeros((tiling.height, tiling.width, *healed.shape[2:]), np.uint8)
        tiling.add(picture, number, healed)
        highest = float(np.maximum(highest, one.score))  # NaN, if one is
        likelihoods.append(one.log_likelihood)
        resampled.append(one.resampled)
    assert picture is not None  # every image has a tile
    return ScoredImage(values, highest, Image.fromarray(picture), torch.stack(likelihoods), torch.stack(resampled))


def list_of_batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Items in lists of `size`, the last may be shorter."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def cut_images(images: Iterable[Any], tile: int) -> Iterator[Any]:
    """Training images, one after the other, as tiles that overlap as little as their sides allow: a defect must not vouch for
    itself. A tile is called by its image and its first column and row."""
    for number, image in enumerate(images):
        decoded = decode_image(image, f"image {number}")
        name = str(image) if isinstance(image, str) else str(getattr(image, "filename", "") or "")
        tiling = tiling_of(decoded, tile, overlap=0.0)
        for (rows, columns), part in zip(tiling.windows(), tiling.cut(decoded), strict=True):
            if name and isinstance(part, Image.Image):
                part.filename = f"{name}@{columns.start},{rows.start}"  # type: ignore[attr-defined]
            yield part
