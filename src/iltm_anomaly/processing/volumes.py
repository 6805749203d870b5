"""Volumes in every form that is taken, and the scale of their grey values."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from iltm_anomaly.data.volume_files import read_volume
from iltm_anomaly.data.volume_grid import Volume, VolumeGrid

VOLUME_FORMS = (
    "a path of a NIfTI file or of a folder with one DICOM series, a nibabel image, a numpy array or torch tensor (D, H, W), a "
    "batch (N, D, H, W) or (N, 1, D, H, W), or a list of these"
)


def flatten_volumes(volumes: Any) -> list[Any]:
    """One volume or any nesting of them as a flat list; raises TypeError for what is no volume."""
    if isinstance(volumes, (str, os.PathLike, Volume)) or hasattr(volumes, "dataobj"):
        return [volumes]
    if isinstance(volumes, (np.ndarray, torch.Tensor)):
        if volumes.ndim == 5 and volumes.shape[1] == 1:
            volumes = volumes[:, 0]
        return list(volumes) if volumes.ndim == 4 else [volumes]
    if isinstance(volumes, (dict, Image.Image)) or not isinstance(volumes, Iterable):
        raise TypeError(f"cannot use a {type(volumes).__name__} as volumes; give {VOLUME_FORMS}")
    return [volume for item in volumes for volume in flatten_volumes(item)]


def as_volume(item: Any, name: str) -> Volume:
    """One volume of any form; an array has no place in space of its own."""
    if isinstance(item, Volume):
        return item
    if not isinstance(item, (np.ndarray, torch.Tensor)):
        return read_volume(Path(item) if isinstance(item, str) else item)
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu()
        item = (item.float() if item.dtype == torch.bfloat16 else item).numpy()
    if item.ndim != 3 or min(item.shape) < 2:
        raise ValueError(
            f"{name} has shape {tuple(item.shape)}; give {VOLUME_FORMS}, at least 2 voxels along each axis"
        )
    if item.dtype.kind not in "iufb":
        raise ValueError(f"{name} has type {item.dtype}; give numbers")
    values = np.ascontiguousarray(item, dtype=np.float32)
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise ValueError(f"{name} holds {count} NaN or infinite values; replace them before passing it in")
    return Volume(values, VolumeGrid.of(item.shape))


def as_grid(size: Sequence[int] | VolumeGrid) -> VolumeGrid:
    """The grid of a volume, of a bare shape one with voxels of 1 mm in RAS order."""
    return size if isinstance(size, VolumeGrid) else VolumeGrid.of(size)


def window(values: np.ndarray, percentiles: Sequence[float]) -> tuple[float, float]:
    """The values at two percentiles, which are to become 0 and 1; of flat values, which cannot be stretched, one apart."""
    low, high = (float(value) for value in np.percentile(values, percentiles))
    return low, high if high > low else low + 1.0
