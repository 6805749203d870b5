"""Arrays of voxels with their place in space, and what is done with them.

Arrays keep the order of axes of their file. Where they are turned (`to_ras`), the first axis runs to the patient's right,
the second to the front, the third to the head, as in nibabel and MONAI; D, H, W elsewhere in the package mean these three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage


@dataclass(frozen=True)
class VolumeGrid:
    """Where the voxels of a volume are.

    Args:
        shape: voxels along each axis of the array.
        affine: 4 rows of 4 numbers, voxel indices to millimetres (right, anterior, superior).
        box: first voxel and the one after the last along each RAS axis, of the part that is looked at; None for all of it.
        window: the volume's values that became 0 and 1; None unless its own percentiles decided about them.
    """

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    box: tuple[tuple[int, int], ...] | None = None
    window: tuple[float, float] | None = None

    @classmethod
    def of(cls, shape: Sequence[int], affine: np.ndarray | None = None) -> VolumeGrid:
        """From a shape and a (4, 4) array; without one voxels are 1 mm and axes are RAS already."""
        rows = np.eye(4) if affine is None else np.asarray(affine, dtype=float)
        first, second, third = (int(side) for side in shape)
        return cls((first, second, third), tuple(tuple(float(value) for value in row) for row in rows))

    @property
    def matrix(self) -> np.ndarray:
        """The affine as a (4, 4) float64 array."""
        return np.array(self.affine)

    @cached_property
    def _orientation(self) -> np.ndarray:
        return io_orientation(self.matrix)  # (3, 2): axis of the patient and direction, for each axis of the array

    @property
    def ras_shape(self) -> tuple[int, int, int]:
        """Voxels to the right, front and head."""
        return tuple(self.shape[i] for i in self._ras_axes)  # type: ignore[return-value]

    @property
    def ras_spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels to the right, front and head."""
        lengths = np.linalg.norm(self.matrix[:3, :3], axis=0)
        return tuple(float(lengths[i]) for i in self._ras_axes)  # type: ignore[return-value]

    @property
    def ras_box(self) -> tuple[slice, ...]:
        """`box`, or the whole volume, to index an array in RAS order with."""
        return tuple(slice(*ends) for ends in self.box or [(0, side) for side in self.ras_shape])

    @property
    def ras_extent(self) -> np.ndarray:
        """(3,) millimetres of the box to the right, front and head."""
        return np.array([part.stop - part.start for part in self.ras_box]) * self.ras_spacing

    @property
    def _ras_axes(self) -> list[int]:
        return [int(axis) for axis in np.argsort(self._orientation[:, 0])]

    def to_ras(self, values: np.ndarray) -> np.ndarray:
        """An array on this grid (shape) -> (ras_shape), turned and flipped but not resampled."""
        return apply_orientation(values, self._orientation)

    def from_ras(self, values: np.ndarray) -> np.ndarray:
        """Inverse of `to_ras`."""
        return apply_orientation(values, ornt_transform(axcodes2ornt("RAS"), self._orientation))


@dataclass(frozen=True)
class Volume:
    """
    Args:
        values: (D, H, W) float32, axes as in the file.
        grid: where they are.
        path: of the file, if it came from one.
    """

    values: np.ndarray
    grid: VolumeGrid
    path: Path | None = None


def cropped_to_foreground(volume: Volume, threshold: float) -> VolumeGrid:
    """The volume's grid with the box around its subject: the connected regions (26 neighbours) above `threshold`, without those
    of less than a hundredth of the largest; all of the volume if nothing is above."""
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


def resize_axis(values: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Resamples one axis over the same extent: linear, with a triangle as wide as the coarser of both steps, so that making it
    smaller averages. Float32."""
    before = values.shape[axis]
    if before == length:
        return values
    ratio = before / length
    centres = (np.arange(length) + 0.5) * ratio - 0.5
    weights = 1 - np.abs(np.arange(before) - np.clip(centres, 0, before - 1)[:, None]) / max(ratio, 1.0)
    weights = np.maximum(weights, 0.0)
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis))


def resize(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resamples an array to another shape over the same extent, axis by axis (`resize_axis`)."""
    for axis, length in enumerate(shape):
        values = resize_axis(values, axis, length)
    return values


def thinned(values: np.ndarray, count: int) -> np.ndarray:
    """About `count` values of an array, spread evenly over it.

    They lie a fixed step apart in memory. It has no factor in common with any side of the array, as it would then never meet most
    places along that axis.
    """
    step = max(1, values.size // count)
    while any(math.gcd(step, side) > 1 for side in values.shape):
        step += 1
    return values.ravel()[::step]
