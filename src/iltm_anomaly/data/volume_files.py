"""Files of volumes: found in folders with their ground truth, read (NIfTI, and DICOM by `dicom`), and written (NIfTI)."""

import logging
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from iltm_anomaly.data.dicom import is_dicom_file, read_dicom_series
from iltm_anomaly.data.images import check_name, data_files, find_problem, warn_of_folder
from iltm_anomaly.data.volume_grid import ROUNDING, Volume, VolumeGrid, VolumeReadError

logger = logging.getLogger(__name__)

VOLUME_SUFFIXES = (".nii", ".nii.gz")
"""Suffixes (lower case) of the files that a folder is searched for."""

MASK_NAMES = ("mask", "lesion", "lesions", "seg", "label")
"""Last part of the name of a file that is the ground truth of another one: `P1_lesion.nii` of `P1.nii` or `P1_suv.nii`."""

CONTEXT_NAME = "ct"
"""Last part of the name of a file that shows the anatomy of another one, on its grid: `P1_ct.nii` beside `P1_suv.nii`."""

REFUSED_UNITS = {1: "metres", 3: "micrometres"}
"""Codes of units of length in a header (`xyzt_units`). Any other is read as millimetres: 2 says so, and 0 says nothing."""

DEFLATE = 1032
"""Bytes that one byte of a gzip file holds at the most."""

MOST_BYTES_BEFORE_VOXELS = 2**26
"""Of header and extensions, which are read as a whole."""


def is_volume_file(path: str | os.PathLike) -> bool:
    """Whether a name ends like that of a NIfTI file."""
    return Path(path).name.lower().endswith(VOLUME_SUFFIXES)


def volume_stem(path: str | os.PathLike) -> str:
    """Name of a file without `.nii` or `.nii.gz`."""
    return re.sub(r"\.nii(\.gz)?\Z", "", Path(path).name, flags=re.IGNORECASE)


def find_volumes(
    folder: str | os.PathLike, recursive: bool = False, refused: Callable[[OSError], None] = warn_of_folder
) -> list[Path]:
    """NIfTI files of a folder, as `data_files` lists them, without those that are named like ground truth, or like the context
    (`CONTEXT_NAME`) of another volume beside it.

    A warning names each file that is left out although no volume has the rest of its name, such as `no_lesion.nii`.
    """
    found = data_files(Path(folder), recursive, is_volume_file, refused)
    volumes = [path for path in found if not is_mask_name(path)]
    volumes = [path for path in volumes if not _is_context(path, volumes)]
    stems, parents = [volume_stem(path) for path in volumes], {path.parent for path in volumes}
    for path in filter(is_mask_name, found):
        subject = volume_stem(path).rpartition("_")[0]
        is_known = any(stem.startswith(subject) for stem in stems) if subject else path.parent in parents
        if not is_known:
            logger.warning("left out: %s is named like ground truth; rename it if it is a volume", path)
    return volumes


def is_mask_name(path: str | os.PathLike) -> bool:
    """Whether a name is one of `MASK_NAMES`, or ends in one as `P1_lesion` does."""
    return volume_stem(path).lower().rpartition("_")[2] in MASK_NAMES


def _is_context(path: Path, volumes: list[Path]) -> bool:
    """Whether a volume is named `P1_ct`, and one of the others in its folder `P1` or `P1_suv`."""
    subject, _, last = volume_stem(path).rpartition("_")
    if last.lower() != CONTEXT_NAME or not subject:
        return False
    others = [volume_stem(other) for other in volumes if other.parent == path.parent and other != path]
    return any(subject in (other, other.rpartition("_")[0]) for other in others)


def find_context(path: Path | None) -> Path | None:
    """The context of a volume in its folder, or in that of the file that it is a link to, or None. Of `P1_suv` or `P1` it is
    `P1_ct`."""
    if path is None or os.path.isdir(path):
        return None
    stem = volume_stem(path)
    stems = [f"{s}_{CONTEXT_NAME}" for s in (stem.rpartition("_")[0], stem) if s]
    return first_file(path.parent, stems) or first_file(path.resolve().parent, stems)


def find_mask_beside(path: Path) -> Path | None:
    """Ground truth in the folder of a volume, or None.

    Of `P1_suv` it is `P1_suv_mask` or `P1_mask`. A bare `mask` counts if the volume is the only one in its folder. Any of
    `MASK_NAMES` may stand for `mask`.
    """
    stem = volume_stem(path)
    stems = [stem, stem.rpartition("_")[0]]
    found = first_file(path.parent, [f"{s}_{name}" for s in stems if s for name in MASK_NAMES])
    bare = first_file(path.parent, MASK_NAMES) if found is None else None
    if bare is None:
        return found
    volumes = [file for file in data_files(path.parent, False, is_volume_file) if not is_mask_name(file)]
    return bare if len(volumes) == 1 else None


def first_file(folder: Path, stems: Iterable[str]) -> Path | None:
    """The first NIfTI file in a folder that has one of these names without suffix, tried in their order."""
    for stem in stems:
        for suffix in (*reversed(VOLUME_SUFFIXES), *map(str.upper, reversed(VOLUME_SUFFIXES))):
            path = folder / f"{stem}{suffix}"
            if path.is_file():
                return path
    return None


def read_volume(source: str | os.PathLike | nib.spatialimages.SpatialImage, scaled: bool = True) -> Volume:
    """Reads a NIfTI file or a folder with one DICOM series (needs the extra `dicom`), or takes a nibabel image. Size and voxel
    size are checked before voxels are read.

    Values are those stored, times the slope of the file, plus its intercept.

    Args:
        source: file, folder or image.
        scaled: False accepts an unusable slope, which does not matter to a mask.

    Raises:
        VolumeReadError: missing, empty, truncated or unknown file; not one three-dimensional image; a single slice; NaN or
            infinite voxels; too many voxels; voxel size, orientation or scaling that are missing or impossible. Says what to do.
    """
    if isinstance(source, nib.spatialimages.SpatialImage):
        file = source.get_filename()
        if file is None or not _is_image_of(source, Path(file)):
            return Volume.from_image(source, str(file or "the nibabel image"))
        _check_header(Path(file))
        return Volume.from_image(source, file, Path(file))
    path = Path(source)
    if os.path.isdir(path):
        return read_dicom_series(path)
    check_name(path)
    if problem := find_problem(path):
        raise VolumeReadError(f"cannot read volume {path}: {problem}")
    if not is_volume_file(path):
        hint = "; of a DICOM series give the folder" if is_dicom_file(path) else ""
        raise VolumeReadError(f"cannot read volume {path}: not a NIfTI file ({' or '.join(VOLUME_SUFFIXES)}){hint}")
    try:
        _check_header(path, scaled)
        return Volume.from_image(nib.load(path), f"{path}", path)
    except VolumeReadError:
        raise
    except Exception as error:  # damaged files make nibabel raise nearly anything
        raise VolumeReadError(
            f"cannot read volume {path}: the file is truncated or damaged ({error or type(error).__name__})"
        ) from error


def _is_image_of(image: Any, path: Path) -> bool:
    """Whether a file still holds the image that was loaded from it."""
    if not (is_volume_file(path) and path.is_file()):
        return False
    try:
        found: Any = nib.load(path)
    except Exception:  # the file was damaged since; what is in memory may be whole
        return False
    return found.shape == image.shape and image.affine is not None and np.allclose(found.affine, image.affine)


def _check_header(path: Path, scaled: bool = True) -> None:
    """Looks at the header as it is stored: nibabel repairs voxel sizes and scaling while loading, and so hides errors."""
    with nib.openers.ImageOpener(str(path), "rb") as file:
        start = file.read(nib.Nifti2Header.sizeof_hdr)
    kind = nib.Nifti2Header if start[4:6] == b"n+" else nib.Nifti1Header
    start = start[: kind.sizeof_hdr]
    if (start[4:6] != b"n+" and start[344:346] not in (b"n+", b"ni")) or len(start) < kind.sizeof_hdr:
        raise VolumeReadError(
            f"cannot read volume {path}: the file is truncated or no NIfTI file: it has no such header"
        )
    header = kind(start, check=False)
    stored = math.prod(map(int, header.get_data_shape())) * header.get_data_dtype().itemsize
    before, held = float(header["vox_offset"]), path.stat().st_size * DEFLATE
    if before > MOST_BYTES_BEFORE_VOXELS or stored > held:
        raise VolumeReadError(
            f"cannot read volume {path}: the file is truncated or damaged: its header claims {stored:,} bytes of voxels after "
            f"{before:,.0f} others, but a file of its size holds {held:,} at the most, and no more than "
            f"{MOST_BYTES_BEFORE_VOXELS:,} are read before voxels"
        )
    spacing = [float(size) for size in header["pixdim"][1:4]]
    if not all(math.isfinite(size) and size > 0 for size in spacing):
        raise VolumeReadError(
            f"cannot read volume {path}: its voxels measure {' x '.join(f'{size:g}' for size in spacing)} mm; "
            "every side must be positive: correct pixdim in the header"
        )
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        raise VolumeReadError(
            f"cannot read volume {path}: it has no affine (sform_code and qform_code are 0), so left and right, up and down "
            "are unknown; save it again with the affine of its scan"
        )
    unit = REFUSED_UNITS.get(int(header["xyzt_units"]) & 7)
    if unit is not None:
        raise VolumeReadError(
            f"cannot read volume {path}: its header gives lengths in {unit}; save it again in millimetres (xyzt_units, "
            "pixdim and affine)"
        )
    slope = float(header["scl_slope"])
    if scaled and (slope == 0 or math.isinf(slope)):
        raise VolumeReadError(
            f"cannot read volume {path}: its rescale slope (scl_slope) is {slope:g}, so what its voxels mean is unknown; "
            "set it to 1 if they are right as stored"
        )


def read_mask(path: str | os.PathLike | None, grid: VolumeGrid) -> np.ndarray:
    """Reads ground truth: (D, H, W) bool on `grid`, True where the file is above 0; all False where `path` is None.

    Raises:
        VolumeReadError: as `read_volume`.
        ValueError: ground truth on another grid.
    """
    if path is None:
        return np.zeros(grid.shape, dtype=bool)
    return read_on_grid(path, grid, "mask", scaled=False) > 0


def read_on_grid(path: str | os.PathLike, grid: VolumeGrid, kind: str, scaled: bool = True) -> np.ndarray:
    """Values (D, H, W) of a volume that lies on the `grid` of another one; messages call it `kind`.

    Raises:
        VolumeReadError: as `read_volume`.
        ValueError: a volume on another grid.
    """
    found = read_volume(path, scaled)
    same = found.grid.shape == grid.shape and np.allclose(found.grid.matrix, grid.matrix, atol=ROUNDING, rtol=ROUNDING)
    if not same:
        raise ValueError(
            f"{kind} {path} has {found.grid.shape} voxels and affine {found.grid.affine}, its volume {grid.shape} and "
            f"{grid.affine}: resample it onto the volume"
        )
    return found.values


def write_volume(values: np.ndarray, path: str | os.PathLike, like: Volume) -> Path:
    """Writes an array (D, H, W) that lies on the grid of another volume, as NIfTI; bool is stored as uint8.

    The affine is that of the other volume, and so is the header (units, codes, description) where that came from a NIfTI file.

    Raises:
        ValueError: an array of another shape.
    """
    if values.shape != like.grid.shape:
        raise ValueError(f"values have shape {values.shape}, the volume they belong to {like.grid.shape}")
    stored = values.astype(np.uint8) if values.dtype == bool else values
    header: Any = None
    if like.path is not None and like.path.is_file():
        header = nib.load(like.path).header.copy()
        header.set_data_dtype(stored.dtype)
        header["cal_max"] = header["cal_min"] = 0  # the display range of the input, not of this array
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    image_type = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = image_type(stored, like.grid.matrix, header if isinstance(header, nib.Nifti1Header) else None)
    if header is None:
        image.header.set_xyzt_units("mm")
    nib.save(image, target)
    return target
