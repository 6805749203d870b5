"""DICOM segmentations: a mask for the viewer that shows the series it was found in. Needs highdicom, of the extra `dicom`."""

import logging
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from iltm_anomaly.data.dicom import is_dicom_file
from iltm_anomaly.data.volume_grid import Volume

logger = logging.getLogger(__name__)

NAME = "iltm-anomaly"


def write_segmentation(mask: np.ndarray, volume: Volume, path: Path) -> bool:
    """Writes a mask of a DICOM series as one segment of a DICOM segmentation, which refers to the slices of the series.

    Args:
        mask: (D, H, W) bool, in the order of `volume`.
        volume: what was read from the folder of the series; of any other nothing is written.
        path: of the file.

    Returns:
        Whether it was written: not where highdicom is not installed, nothing is abnormal, or the series does not consist of one
        file a slice with all that the standard asks for; that is logged.
    """
    try:
        import highdicom
        import pydicom
    except ImportError:
        return False
    if not mask.any() or volume.path is None or not volume.path.is_dir():
        return False
    slices = [pydicom.dcmread(file) for file in sorted(volume.path.iterdir()) if is_dicom_file(file)]
    try:
        places = [_place_along(one, volume) for one in slices]
        if sorted(places) != list(range(mask.shape[2])):
            raise ValueError(f"{len(slices)} files are not the {mask.shape[2]} slices of the volume")
        frames = mask.transpose(2, 1, 0)[places].astype(np.uint8)  # (x, y, z) -> (slice, row, column)
        _segmentation(highdicom, slices, frames).save_as(path)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        logger.warning("no DICOM segmentation of %s is written: %s", volume.path, error)
        return False
    return True


def _place_along(one: Any, volume: Volume) -> int:
    """Index of a slice along the last axis of the volume."""
    left, back, up = (float(number) for number in one.ImagePositionPatient)
    return round(float(np.linalg.solve(volume.grid.matrix, [-left, -back, up, 1.0])[2]))


def _segmentation(highdicom: Any, slices: list[Any], frames: np.ndarray) -> Any:
    from pydicom.sr.codedict import codes

    version = metadata.version(NAME)
    described = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="abnormal",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=NAME, version=version, family=codes.cid7162.ArtificialIntelligence
        ),
    )
    return highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=frames,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[described],
        series_instance_uid=highdicom.UID(),
        series_number=1000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=NAME,
        manufacturer_model_name=NAME,
        software_versions=version,
        device_serial_number="0",
        series_description="abnormal uptake, not for diagnosis",
    )
