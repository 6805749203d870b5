"""DICOM series: a folder of slices to one volume. Needs SimpleITK, the extra `dicom`."""

import logging
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from iltm_anomaly.data.images import data_files
from iltm_anomaly.data.volume_grid import ROUNDING, Volume, VolumeReadError

logger = logging.getLogger(__name__)

MAX_SHIFT = 0.1
"""Millimetres by which a slice may lie beside the others, across their normal."""
POSITION, ORIENTATION = "0020|0032", "0020|0037"
SLICE_TAGS = {"0028|0030": ("pixel spacing", 2), POSITION: ("position", 3), ORIENTATION: ("orientation", 6)}
"""Tags that say where a slice is: their names in messages, and how many numbers they hold."""


def is_dicom_file(path: str | os.PathLike) -> bool:
    """Whether the content of a file begins as DICOM does; such files often have no suffix. False if it cannot be read."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def find_dicom_folders(folder: str | os.PathLike) -> list[Path]:
    """Folders that hold DICOM files, this one or any below, sorted by path. DICOMDIR, the index of a disc, is no slice."""
    slices = data_files(Path(folder), True, lambda path: path.name != "DICOMDIR" and is_dicom_file(path))
    return sorted({path.parent for path in slices})


def read_dicom_series(folder: Path) -> Volume:
    """Reads the one DICOM series in a folder, with the rescale slope and intercept of each slice applied.

    Raises:
        VolumeReadError: SimpleITK is not installed, no series or several, or slices that make no upright stack of numbers.
    """
    try:
        import SimpleITK
    except ImportError:
        raise VolumeReadError(
            f"cannot read {folder}: reading DICOM series needs SimpleITK; pip install 'iltm-anomaly[dicom]'"
        ) from None
    warns = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    # ITK would print its warnings; those that matter are errors of `_check_slices`.
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return _read_slices(folder, SimpleITK)
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(warns)


def _read_slices(folder: Path, SimpleITK: Any) -> Volume:
    series = SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        found = "no DICOM series" if not series else f"{len(series)} DICOM series"
        raise VolumeReadError(f"cannot read {folder}: it holds {found}; give a folder with the slices of one")
    reader = SimpleITK.ImageSeriesReader()
    reader.MetaDataDictionaryArrayUpdateOn()
    files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    reader.SetFileNames(files)
    # In PET every slice has a slope of its own. Left to itself, the reader takes a type that fits the first slice alone.
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
    return Volume.from_image(nib.Nifti1Image(values.astype(np.float32), affine), str(folder), folder)


def _check_slices(reader: Any, count: int, folder: Path) -> None:
    """Looks for what ITK reads without complaint: colour, slopes of 0, and slices that make no stack. Warns of Bq/ml."""

    def numbers(number: int, tag: str) -> list[float]:
        text = reader.GetMetaData(number, tag) if reader.HasMetaDataKey(number, tag) else ""
        return [float(value) for value in text.split("\\")] if text.strip() else []

    name = f"cannot read the DICOM series in {folder}:"
    samples = numbers(0, "0028|0002")
    if samples not in ([], [1.0]):
        raise VolumeReadError(f"{name} it is in colour, with {samples[0]:g} samples a voxel; give a grey one")
    # A single file holds all frames, and their places within itself.
    tags = SLICE_TAGS if count > 1 else {}
    for number in range(count):
        if numbers(number, "0028|1053") == [0.0]:
            raise VolumeReadError(
                f"{name} slice {number} has a rescale slope (0028,1053) of 0, so what its voxels mean is unknown; set it to 1 if "
                "they are right as stored"
            )
        for tag, (what, length) in tags.items():
            found = numbers(number, tag)
            if len(found) != length or (what == "pixel spacing" and not min(found) > 0):
                raise VolumeReadError(
                    f"{name} slice {number} has no usable {what} ({tag.replace('|', ',')}), but {found}; export the series again"
                )
    if count > 1:
        _check_stack({tag: np.array([numbers(n, tag) for n in range(count)]) for tag in tags}, name)
    if reader.HasMetaDataKey(0, "0054|1001") and reader.GetMetaData(0, "0054|1001").strip() == "BQML":
        logger.warning("%s: its values are Bq/ml, not SUV; a recipe with a range of SUV does not suit them", folder)


def _check_stack(tables: dict[str, np.ndarray], name: str) -> None:
    """Refuses slices unless they are alike and lie straight above each other, equally far apart.

    `tables` holds (slices, numbers) of each of `SLICE_TAGS`; `name` is the beginning of the message.
    """
    places = tables.pop(POSITION)
    for tag, given in tables.items():
        other = np.flatnonzero(np.abs(given - given[0]).max(1) > ROUNDING)
        if other.size:
            raise VolumeReadError(
                f"{name} slice {other[0]} has another {SLICE_TAGS[tag][0]} ({tag.replace('|', ',')}) than slice 0, "
                f"{given[other[0]].tolist()} and {given[0].tolist()}, so they are no stack; export them apart"
            )
    turn = tables[ORIENTATION][0]
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
            f"{name} its {len(places)} slices lie {steps.min():g} to {steps.max():g} mm apart, so some are missing or damaged, "
            "or it has several frames; give one slice for every place"
        )
