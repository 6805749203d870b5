"""A volume in memory: its voxels, and where in the patient they lie.

Arrays keep the order of axes of their file. `VolumeGrid.to_ras` turns them, so that the first axis runs to the patient's right,
the second to the front and the third to the head, as in nibabel and MONAI. In `pixel_values`, D, H and W are these three axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from iltm_anomaly.data.images import ImageReadError

ROUNDING = 1e-3
"""Numbers of two headers that differ by no more than this (mm, or parts of a unit vector) are the same, but for rounding."""

MOST_VOXELS = 2**28
"""Voxels of the largest volume that is read, 512 x 512 x 1024: one GiB as float32, of which scoring holds several."""

MOST_ALONG_AN_AXIS = 2**13
"""Voxels along an axis at the most: resampling takes memory by their number times that of the model's grid."""

SMALLEST_SIDE, LARGEST_SIDE = 1e-6, 1e3
"""Millimetres of the side of a voxel; what lies beyond is an error of the header, not a scan."""


class VolumeReadError(ImageReadError):
    """A volume that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class VolumeGrid:
    """Where the voxels of a volume are.

    Args:
        shape: voxels along each axis of the array.
        affine: 4 rows of 4 numbers, voxel indices to millimetres (right, anterior, superior).
        box: (start, stop) in voxels along each RAS axis, of the part that is looked at; None for the whole volume.
        window: the two values of the volume that became 0 and 1; None unless percentiles of its own voxels set them.
    """

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    box: tuple[tuple[int, int], ...] | None = None
    window: tuple[float, float] | None = None

    @classmethod
    def of(cls, shape: Sequence[int], affine: np.ndarray | None = None) -> VolumeGrid:
        """From a shape and a (4, 4) array. Without an array, voxels are 1 mm and the axes are RAS already."""
        rows = np.eye(4) if affine is None else np.asarray(affine, dtype=float)
        first, second, third = (int(side) for side in shape)
        return cls((first, second, third), tuple(tuple(float(value) for value in row) for row in rows))

    @property
    def matrix(self) -> np.ndarray:
        """The affine as a (4, 4) float64 array."""
        return np.array(self.affine)

    @cached_property
    def _orientation(self) -> np.ndarray:
        # (3, 2): for each axis of the array, the axis of the patient that it runs along, and the direction (1 or -1)
        return io_orientation(self.matrix)

    @property
    def _ras_axes(self) -> list[int]:
        return [int(axis) for axis in np.argsort(self._orientation[:, 0])]

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
        """`box`, or the whole volume, as an index into an array in RAS order."""
        return tuple(slice(*ends) for ends in self.box or [(0, side) for side in self.ras_shape])

    @property
    def ras_extent(self) -> np.ndarray:
        """(3,) millimetres of the box to the right, front and head."""
        return np.array([part.stop - part.start for part in self.ras_box]) * self.ras_spacing

    def to_ras(self, values: np.ndarray) -> np.ndarray:
        """Turns and flips an array on this grid, from `shape` to `ras_shape`. Nothing is resampled."""
        return apply_orientation(values, self._orientation)

    def from_ras(self, values: np.ndarray) -> np.ndarray:
        """Inverse of `to_ras`."""
        return apply_orientation(values, ornt_transform(axcodes2ornt("RAS"), self._orientation))


@dataclass(frozen=True)
class Volume:
    """Voxels with their place.

    Args:
        values: (D, H, W) float32, axes as in the file.
        grid: where they are.
        path: of the file or DICOM folder that they came from; None for an array or an image in memory.
    """

    values: np.ndarray
    grid: VolumeGrid
    path: Path | None = None

    @classmethod
    def from_image(cls, image: Any, name: str, path: Path | None = None) -> Volume:
        """Takes voxels and affine of a nibabel image; trailing axes of length 1 are dropped.

        Args:
            image: nibabel image.
            name: what error messages call it.
            path: as of the class.

        Raises:
            VolumeReadError: not three-dimensional, a single slice, more than `MOST_VOXELS` or `MOST_ALONG_AN_AXIS`, no usable
                affine, or voxels that are no finite numbers.
        """
        shape = tuple(image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3:
            kind = f"{len(shape)}-D, of shape {shape}"
            remedy = "choose one frame or channel of it" if len(shape) > 3 else "give a stack of slices"
            raise VolumeReadError(f"cannot read volume {name}: it is {kind}, not one 3-D volume; {remedy}")
        if min(shape) < 2:
            raise VolumeReadError(
                f"cannot read volume {name}: it is a single slice, {' x '.join(map(str, shape))} voxels; "
                "give the whole stack, or treat it as an image"
            )
        if math.prod(map(int, shape)) > MOST_VOXELS or max(shape) > MOST_ALONG_AN_AXIS:
            raise VolumeReadError(
                f"cannot read volume {name}: it has {' x '.join(map(str, shape))} voxels, and {MOST_VOXELS:,} in all and "
                f"{MOST_ALONG_AN_AXIS:,} along an axis are the most; crop it, or resample it more coarsely"
            )
        if image.affine is None:
            raise VolumeReadError(
                f"cannot read volume {name}: it has no affine; save it again with the affine of its scan"
            )
        affine = np.asarray(image.affine, dtype=float)
        sides = np.linalg.norm(affine[:3, :3], axis=0)
        if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 1e-6 * sides.prod():
            raise VolumeReadError(
                f"cannot read volume {name}: its affine is singular or not finite, so voxels have no size: "
                f"{affine[:3].tolist()}"
            )
        if not SMALLEST_SIDE <= sides.min() <= sides.max() <= LARGEST_SIDE:
            raise VolumeReadError(
                f"cannot read volume {name}: by its affine, voxels measure {' x '.join(f'{side:g}' for side in sides)} mm; "
                f"correct it: sides of {SMALLEST_SIDE:g} to {LARGEST_SIDE:g} mm are possible"
            )
        data = np.asanyarray(image.dataobj)
        if data.dtype.kind not in "iufb":
            raise VolumeReadError(f"cannot read volume {name}: its voxels are of type {data.dtype}, not numbers")
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite, and is refused
            values = np.ascontiguousarray(data.reshape(shape), dtype=np.float32)
        if count := int((~np.isfinite(values)).sum()):
            raise VolumeReadError(
                f"cannot read volume {name}: it holds {count} NaN or infinite voxels; replace them, for instance by 0 "
                "outside the body"
            )
        return cls(values, VolumeGrid.of(shape, affine), path)
