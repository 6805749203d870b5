"""Copies of images, each turned and shifted a little, as of the same part that lies under the camera once more."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Image
from PIL import Image as PILImage

from iltm_anomaly.data.images import read_image
from iltm_anomaly.seeds import sample_seed, uniforms

LARGEST_TURN = 3.0
"""Degrees, in either direction."""
LARGEST_SHIFT = 0.03
"""Share of height and of width, in either direction."""


def moved_copies(dataset: Dataset, seed: int, rows: Sequence[int]) -> Dataset:
    """The data set with its images and masks moved, their edges extended, and all other columns as they are.

    Args:
        dataset: has the columns of `dataset_features`, and perhaps more.
        seed: with the number of a row it decides how the row is moved, whatever other rows there are.
        rows: number of each row.
    """
    encoded = dataset.cast_column("image", Image(decode=False)).cast_column("mask", Image(decode=False))
    columns = {name: encoded[name][:] for name in dataset.column_names}
    moves = [_move(seed, row) for row in rows]
    columns["image"] = [_moved(source, move, "RGB") for source, move in zip(columns["image"], moves, strict=True)]
    columns["mask"] = [
        None if source is None else _moved(source, move, "L")
        for source, move in zip(columns["mask"], moves, strict=True)
    ]
    return Dataset.from_dict(columns, features=dataset.features, split=dataset.split)


def _move(seed: int, row: int) -> tuple[float, float, float]:
    """Degrees, and shares of height and width."""
    turn, down, right = (2 * uniforms(sample_seed(seed, 2, row), 3) - 1).tolist()
    return turn * LARGEST_TURN, down * LARGEST_SHIFT, right * LARGEST_SHIFT


def _moved(source: dict[str, Any], move: tuple[float, float, float], mode: str) -> dict[str, Any]:
    """What to store of a moved image ("RGB") or mask ("L"): a PNG."""
    # without its path, in whose place `datasets` would read the file as it was
    values = np.asarray(read_image(source["path"] or "of a data set", source["bytes"]).convert(mode))
    buffer = io.BytesIO()
    PILImage.fromarray(move_pixels(values, *move, interpolate=mode == "RGB")).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def move_pixels(values: np.ndarray, turn: float, down: float, right: float, interpolate: bool) -> np.ndarray:
    """An image (H, W) or (H, W, C) uint8, turned about its middle and then shifted; what comes in from outside is its edge.

    Args:
        turn: in degrees, counter-clockwise.
        down, right: shares of height and width.
        interpolate: linearly; without it every pixel is one of the original's, as those of a mask must be.
    """
    from scipy.ndimage import affine_transform  # takes its time to import, and few data sets are moved

    angle, (height, width) = math.radians(turn), values.shape[:2]
    back = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    offset = middle - back @ (middle + np.array([down * height, right * width]))

    def moved(channel: np.ndarray) -> np.ndarray:
        return affine_transform(channel, back, offset, order=int(interpolate), mode="nearest")

    if values.ndim == 2:
        return moved(values)
    return np.stack([moved(values[..., channel]) for channel in range(values.shape[2])], axis=-1)
