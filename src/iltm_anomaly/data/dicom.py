"""DICOM series to arrays; reading them needs the extra `dicom`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from iltm_anomaly.data.images import VolumeReadError, data_files

logger = logging.getLogger(__name__)

ROUNDING = 1e-3  # of numbers in headers, in their own units

MAX_SHIFT = 0.1  # mm, of slices across their normal

SLICE_TAGS = {"0028|0030": ("pixel spacing", 2), "0020|0032": ("position", 3), "0020|0037": ("orientation", 6)}


def is_dicom_file(path: str | os.PathLike) -> bool:
    """Whether a file says that it is DICOM; its name need not."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def find_dicom_folders(folder: str | os.PathLike) -> list[Path]:
    """Folders, this one or any below, that hold DICOM files, sorted by path."""

    def is_slice(path: Path) -> bool:
        return path.name != "DICOMDIR" and is_dicom_file(path)  # that one is the index of a disc

    return sorted({path.parent for path in data_files(Path(folder), True, is_slice)})


def read_dicom_series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """One DICOM series, with its rescale slope and intercept applied: (D, H, W) float32 and its affine (4, 4), voxel indices to
    millimetres (right, anterior, superior).

    Raises:
        VolumeReadError: without SimpleITK, or if the folder does not hold exactly one series whose slices make a volume.
    """
    try:
        import SimpleITK
    except ImportError:
        raise VolumeReadError(
            f"cannot read {folder}: reading DICOM series needs SimpleITK; pip install 'iltm-anomaly[dicom]'"
        ) from None
    warns = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # what matters of it is an error of `_check_slices`
    try:
        return _from_dicom_files(folder, SimpleITK)
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(warns)


def _from_dicom_files(folder: Path, SimpleITK: Any) -> tuple[np.ndarray, np.ndarray]:
    series = SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        found = "no DICOM series" if not series else f"{len(series)} DICOM series"
        raise VolumeReadError(f"cannot read {folder}: it holds {found}; give a folder with the slices of one")
    reader = SimpleITK.ImageSeriesReader()
    reader.MetaDataDictionaryArrayUpdateOn()
    files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    reader.SetFileNames(files)
    # PET has a slope for every slice; by itself the reader would take the type that the first one's values fit into
    reader.SetOutputPixelType(SimpleITK.sitkFloat32)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise VolumeReadError(f"cannot read the DICOM series in {folder}: {error}") from error
    _check_slices(reader, len(files), folder)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    affine[:2] *= -1  # DICOM counts to the left and to the back
    values = SimpleITK.GetArrayFromImage(image).transpose()  # (z, y, x) -> (x, y, z)
    return values.astype(np.float32), affine


def _check_slices(reader: Any, count: int, folder: Path) -> None:
    """What ITK reads without complaint: slices without a place, missing or twice, a slope of 0, counts that are no SUV."""

    def numbers(number: int, tag: str) -> list[float]:
        text = reader.GetMetaData(number, tag) if reader.HasMetaDataKey(number, tag) else ""
        return [float(value) for value in text.split("\\")] if text.strip() else []

    name = f"cannot read the DICOM series in {folder}:"
    if numbers(0, "0028|0002") not in ([], [1.0]):
        raise VolumeReadError(
            f"{name} it is in colour, with {numbers(0, '0028|0002')[0]:g} samples a voxel; give a grey one"
        )
    for number in range(count):
        if numbers(number, "0028|1053") == [0.0]:
            raise VolumeReadError(
                f"{name} slice {number} has a rescale slope (0028,1053) of 0, so what its voxels mean is unknown; set it to 1 if "
                "they are right as stored"
            )
        # the frames of a single file are placed within it
        for tag, (what, length) in SLICE_TAGS.items() if count > 1 else ():
            found = numbers(number, tag)
            if len(found) != length or (what == "pixel spacing" and not min(found) > 0):
                raise VolumeReadError(
                    f"{name} slice {number} has no usable {what} ({tag.replace('|', ',')}), but {found}; export the series again"
                )
    if count > 1:
        tables = {tag: np.array([numbers(number, tag) for number in range(count)]) for tag in SLICE_TAGS}
        places = tables.pop("0020|0032")
        for tag, given in tables.items():
            other = np.flatnonzero(np.abs(given - given[0]).max(1) > ROUNDING)
            if other.size:
                raise VolumeReadError(
                    f"{name} slice {other[0]} has another {SLICE_TAGS[tag][0]} ({tag.replace('|', ',')}) than slice 0, "
                    f"{given[other[0]].tolist()} and {given[0].tolist()}, so they are no stack; export them apart"
                )
        turn = tables["0020|0037"][0]
        normal = np.cross(turn[:3], turn[3:])
        aside = places - places[0] - np.outer((places - places[0]) @ normal, normal)
        if (shift := float(np.linalg.norm(aside, axis=1).max())) > MAX_SHIFT:
            raise VolumeReadError(
                f"{name} its slices do not lie straight above each other but are shifted sideways by up to {shift:.3g} mm, as "
                "with a tilted gantry; resample the series to an upright one"
            )
        steps = np.diff(np.sort(places @ normal))
        if not steps.min() > 0.5 * np.median(steps) or steps.max() > 1.5 * np.median(steps):
            raise VolumeReadError(
                f"{name} its {count} slices lie {steps.min():g} to {steps.max():g} mm apart, so some are missing or damaged, or "
                "it has several frames; give one slice for every place"
            )
    if reader.HasMetaDataKey(0, "0054|1001") and reader.GetMetaData(0, "0054|1001").strip() == "BQML":
        logger.warning("%s: its values are Bq/ml, not SUV; a recipe with a range of SUV does not suit them", folder)
