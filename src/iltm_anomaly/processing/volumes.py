"""Volumes in any form: brought onto the grid of voxels that a model takes, and back onto their own."""

import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage
from torch import Tensor

from iltm_anomaly.data.images import check_unit_range
from iltm_anomaly.data.volume_files import CONTEXT_NAME, find_context, read_on_grid, read_volume
from iltm_anomaly.data.volume_grid import MOST_VOXELS, Volume, VolumeGrid
from iltm_anomaly.processing.images import tensor_to_numpy

logger = logging.getLogger(__name__)

VOLUME_FORMS = (
    "a path of a NIfTI file or of a folder with one DICOM series, a nibabel image, a numpy array or torch tensor (D, H, W), a "
    "batch (N, D, H, W) or (N, 1, D, H, W), or a list of these"
)


def flatten_volumes(volumes: Any) -> list[Any]:
    """One volume in any of `VOLUME_FORMS`, or any nesting of them, as a flat list.

    Raises:
        TypeError: something that is no volume at all.
    """
    if isinstance(volumes, (str, os.PathLike, Volume)) or hasattr(volumes, "dataobj"):
        return [volumes]
    if isinstance(volumes, (np.ndarray, Tensor)):
        if volumes.ndim == 5 and volumes.shape[1] == 1:
            volumes = volumes[:, 0]
        return list(volumes) if volumes.ndim == 4 else [volumes]
    if isinstance(volumes, (dict, Image.Image)) or not isinstance(volumes, Iterable):
        raise TypeError(f"cannot use a {type(volumes).__name__} as volumes; give {VOLUME_FORMS}")
    return [volume for item in volumes for volume in flatten_volumes(item)]


def as_volume(item: Any, name: str) -> Volume:
    """Reads one volume in any of `VOLUME_FORMS`. An array is taken to be RAS, with voxels of 1 mm; error messages call it `name`.

    Raises:
        ValueError: an unusable file (`VolumeReadError`), an array of a wrong shape or type, or with NaN or infinite values.
    """
    if isinstance(item, Volume):
        return item
    if isinstance(item, Tensor):
        item = tensor_to_numpy(item)
    if not isinstance(item, np.ndarray):
        return read_volume(Path(item) if isinstance(item, str) else item)
    if item.ndim != 3 or min(item.shape) < 2:
        raise ValueError(
            f"{name} has shape {tuple(item.shape)}; give {VOLUME_FORMS}, at least 2 voxels along each axis"
        )
    if item.dtype.kind not in "iufb":
        raise ValueError(f"{name} has type {item.dtype}; give numbers")
    values = np.ascontiguousarray(item, dtype=np.float32)
    if count := int((~np.isfinite(values)).sum()):
        raise ValueError(f"{name} holds {count} NaN or infinite values; replace them before passing it in")
    return Volume(values, VolumeGrid.of(item.shape))


def percentile_window(values: np.ndarray, percentiles: Sequence[float]) -> tuple[float, float]:
    """Two percentiles of an array, such as (0.5, 99.5); where all values are the same, the second is 1 above the first."""
    low, high = (float(value) for value in np.percentile(values, percentiles))
    return low, high if high > low else low + 1.0


def scale_values(values: np.ndarray, window: Sequence[float] | None, power: float, name: str) -> np.ndarray:
    """Clips float32 values to a window, whose ends become 0 and 1, and raises them to a power.

    Raises:
        ValueError: the window is None, and values lie outside [0, 1]; the message calls them `name`.
    """
    if window is not None:
        low, high = window
        values = np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
    else:
        try:
            values = check_unit_range(values, name)
        except ValueError as error:
            raise ValueError(f"{error}, or give the processor an intensity_range or intensity_percentiles") from None
    return values if power == 1 else values**power


def context_values(volume: Volume, window: Sequence[float], name: str) -> np.ndarray:
    """What lies beside a volume as its context (`find_context`), float32 on its grid, clipped to a window whose ends become 0 and
    1. Zeros, with a warning that calls the volume `name`, where there is none.

    Raises:
        ValueError: an unusable file (`VolumeReadError`), or one on another grid.
    """
    path = find_context(volume.path)
    if path is None:
        logger.warning("no %s lies beside %s: it is looked at without", CONTEXT_NAME.upper(), volume.path or name)
        return np.zeros(volume.values.shape, dtype=np.float32)
    return scale_values(read_on_grid(path, volume.grid, "context"), window, 1.0, str(path))


def usable_context_range(
    names: Sequence[str], contexts: Sequence[Path | None], wanted: Sequence[float] | None
) -> Sequence[float] | None:
    """The range that is wanted of the contexts of training volumes, or None, with a warning, where none of these has any.

    Raises:
        ValueError: if some have, and some have not; one of these is named.
    """
    if wanted is None or all(contexts):
        return wanted
    if any(contexts):
        raise ValueError(
            f"{names[list(contexts).index(None)]} has no {CONTEXT_NAME.upper()} beside it, and other training volumes have: add "
            "it, leave the volume out, or learn without (--set volume.context_range=null)"
        )
    logger.warning("no %s lies beside the training volumes: they are learned without", CONTEXT_NAME.upper())
    return None


def restore_values(values: Tensor, window: Sequence[float], power: float) -> np.ndarray:
    """Inverse of `scale_values`; values are clamped to [0, 1] first."""
    low, high = window
    return values.clamp(0, 1).pow(1 / power).mul(high - low).add(low).numpy()


def cropped_to_foreground(volume: Volume, threshold: float) -> VolumeGrid:
    """The grid of a volume with the box around its subject: the connected regions (26 neighbours) of voxels above `threshold`,
    without those smaller than a hundredth of the largest. If no voxel is above, there is no box."""
    grid = volume.grid
    labels, count = ndimage.label(grid.to_ras(volume.values) > threshold, structure=np.ones((3, 3, 3)))
    if not count:
        return grid
    sizes = np.bincount(labels.ravel())[1:]
    regions = [
        region for region, size in zip(ndimage.find_objects(labels), sizes, strict=True) if size >= sizes.max() / 100
    ]
    ends = [(min(p.start for p in parts), max(p.stop for p in parts)) for parts in zip(*regions, strict=True)]
    return replace(grid, box=tuple(ends))


def resize(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resamples an array (D, H, W) float32 to another shape over the same extent, axis by axis.

    Interpolation is linear. The kernel is a triangle as wide as the coarser of the two steps, so that a smaller result averages.
    """
    for axis, length in enumerate(shape):
        before = values.shape[axis]
        if before == length:
            continue
        ratio = before / length
        centres = (np.arange(length) + 0.5) * ratio - 0.5
        weights = 1 - np.abs(np.arange(before) - np.clip(centres, 0, before - 1)[:, None]) / max(ratio, 1.0)
        weights = np.maximum(weights, 0.0)
        weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
        values = np.ascontiguousarray(np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis))
    return values


def common_size(
    grids: Sequence[VolumeGrid], names: Sequence[str], spacing: Sequence[float], stretch: bool, divisor: int
) -> list[int]:
    """Voxels along the RAS axes of the smallest grid that holds every box at `spacing` (mm), or, to `stretch` boxes to it, the
    median one; multiples of `divisor`.

    Raises:
        ValueError: more than `MOST_VOXELS`; gives the largest volume by its name.
    """
    extents = np.array([grid.ras_extent for grid in grids])
    voxels = np.ceil((np.median if stretch else np.max)(extents, axis=0) / spacing - 1e-3)
    size = [int(-(-count // divisor) * divisor) for count in voxels]
    if math.prod(size) > MOST_VOXELS:
        largest = int(np.argmax((extents / spacing).prod(1)))
        measures = " x ".join(f"{extent:g}" for extent in extents[largest])
        raise ValueError(
            f"a grid for all volumes would have {' x '.join(map(str, size))} voxels, and {MOST_VOXELS:,} are the most: "
            f"{names[largest]} measures {measures} mm, at {' x '.join(f'{step:g}' for step in spacing)} mm; leave it out, "
            "correct its affine, or give another size or spacing"
        )
    return size


def place_in_grid(
    grid: VolumeGrid, size: tuple[int, ...], padded_size: tuple[int, ...], spacing: Sequence[float] | None
) -> tuple[slice, ...]:
    """Where the box of a volume lies in the grid of the model, which has `padded_size` voxels: in its middle.

    Along each RAS axis it has the voxels that it needs at `spacing` (mm), `size` at most; exactly `size` if `spacing` is None.
    """
    shape: Sequence[int] = size
    if spacing is not None:
        wanted = (grid.ras_extent / spacing).tolist()
        shape = [min(side, max(1, round(count))) for side, count in zip(size, wanted, strict=True)]
    starts = [(side - length) // 2 for side, length in zip(padded_size, shape, strict=True)]
    return tuple(slice(start, start + length) for start, length in zip(starts, shape, strict=True))


def to_model_grid(
    values: np.ndarray, grid: VolumeGrid, place: tuple[slice, ...], padded_size: tuple[int, ...]
) -> np.ndarray:
    """Turns an array on a volume's own grid to RAS, resamples its box to `place`, and surrounds it with zeros. Float32."""
    padded = np.zeros(padded_size, dtype=np.float32)
    shape = [part.stop - part.start for part in place]
    padded[place] = resize(grid.to_ras(values)[grid.ras_box].astype(np.float32), shape)
    return padded


def from_model_grid(
    values: np.ndarray, grid: VolumeGrid, place: tuple[slice, ...], outside: float = 0.0
) -> np.ndarray:
    """Inverse of `to_model_grid`: float32 array on the volume's own grid, with the value `outside` around its box."""
    whole = np.full(grid.ras_shape, outside, dtype=np.float32)
    box = grid.ras_box
    whole[box] = resize(values[place], [part.stop - part.start for part in box])
    return np.ascontiguousarray(grid.from_ras(whole))


def check_pair(
    name: str, pair: Sequence[float] | None, least: float = -np.inf, largest: float = np.inf
) -> list[float] | None:
    """A pair of numbers as floats, or None; ValueError names it unless the first is smaller and both lie in the limits."""
    if pair is None:
        return None
    try:
        low, high = (float(value) for value in pair)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be two numbers, low < high, got {pair!r}") from None
    if not (least <= low < high <= largest and np.isfinite(high - low)):
        raise ValueError(f"{name} must be two numbers, {least:g} <= low < high <= {largest:g}, got {pair!r}")
    return [low, high]


def check_spacing(spacing: float | Sequence[float] | None) -> list[float] | None:
    """One or three positive numbers of mm as three, or None; ValueError for anything else."""
    if spacing is None:
        return None
    values = np.broadcast_to(np.asarray(spacing, dtype=float), 3) if np.size(spacing) in (1, 3) else np.zeros(1)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"spacing must be one positive number of mm, or three, got {spacing!r}")
    return [float(value) for value in values]
