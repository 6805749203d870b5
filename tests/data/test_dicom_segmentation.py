"""Masks as DICOM segmentations; skipped without the extra `dicom`."""

import numpy as np
import pytest

from iltm_anomaly.data.dicom_segmentation import write_segmentation
from iltm_anomaly.data.volume_files import read_volume
from iltm_anomaly.evaluation.detect import _write_maps
from iltm_anomaly.evaluation.inputs import Input
from iltm_anomaly.output import AnomalyResult

pytest.importorskip("SimpleITK", reason="needs the extra dicom")
highdicom = pytest.importorskip("highdicom", reason="needs highdicom, of the extra dicom")
pydicom = pytest.importorskip("pydicom", reason="needs pydicom, of the extra dicom")

SHAPE, SPACING = (7, 6, 5), (2.0, 3.0, 4.0)


@pytest.fixture
def series(tmp_path):
    """Slices of a PET with what a scanner writes beside their voxels; names are not in the order of places."""
    folder = tmp_path / "series"
    folder.mkdir()
    study, whole, frame = (pydicom.uid.generate_uid() for _ in range(3))
    for number in range(SHAPE[2]):
        one = pydicom.Dataset()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = pydicom.uid.PositronEmissionTomographyImageStorage
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, whole, frame
        one.PatientID, one.PatientName, one.PatientBirthDate, one.PatientSex = "1", "Phantom", "", "O"
        one.StudyDate, one.StudyTime, one.StudyID, one.AccessionNumber = "20260101", "120000", "1", ""
        one.ReferringPhysicianName, one.Modality, one.Manufacturer = "", "PT", ""
        one.SeriesNumber, one.InstanceNumber = 1, number + 1
        one.PositionReferenceIndicator = ""
        one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10, 20, 100 + 4 * number]
        one.PixelSpacing, one.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        one.Rows, one.Columns, one.SamplesPerPixel = SHAPE[1], SHAPE[0], 1
        one.PhotometricInterpretation, one.PixelRepresentation = "MONOCHROME2", 0
        one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
        one.RescaleSlope, one.RescaleIntercept = 1, 0
        one.PixelData = np.full((SHAPE[1], SHAPE[0]), number, np.uint16).tobytes()
        one.save_as(folder / f"IM{(number * 3) % SHAPE[2]}", enforce_file_format=True)
    return folder


def test_a_mask_comes_back_from_a_segmentation_in_its_place(series, tmp_path):
    volume, mask = read_volume(series), np.zeros(SHAPE, bool)
    mask[1:4, 2:4, 3:] = mask[5, 0, 1] = True
    assert write_segmentation(mask, volume, tmp_path / "mask.dcm")
    found = highdicom.seg.segread(tmp_path / "mask.dcm").get_volume(combine_segments=True, segment_numbers=[1])
    left_back_up = np.argwhere(found.array)
    places = (found.affine[:3] @ np.c_[left_back_up, np.ones(len(left_back_up))].T).T * (-1, -1, 1)
    expected = (volume.grid.matrix[:3] @ np.c_[np.argwhere(mask), np.ones(mask.sum())].T).T
    np.testing.assert_allclose(sorted(places.round(3).tolist()), sorted(expected.round(3).tolist()))


def test_detect_writes_it_beside_the_mask_and_takes_back_that_of_an_earlier_call(series, tmp_path):
    volume, mask = read_volume(series), np.zeros(SHAPE, bool)
    mask[1:4, 2:4, 3:] = True
    for abnormal in (mask, ~mask & mask):
        found = AnomalyResult(volume, 2.0, 1.0, 2.0 * abnormal.astype(np.float32), abnormal, volume.values, 0.0)
        row = _write_maps(tmp_path, Input(series), found, SHAPE)
        assert (tmp_path / row["mask"].replace(".nii.gz", ".dcm")).exists() == abnormal.any()


def test_where_a_series_lacks_what_the_standard_asks_for_it_is_said(series, tmp_path, caplog):
    volume, mask = read_volume(series), np.ones(SHAPE, bool)
    assert not write_segmentation(~mask, volume, tmp_path / "mask.dcm")
    one = pydicom.dcmread(series / "IM0")
    del one.StudyInstanceUID
    one.save_as(series / "IM0")
    assert not write_segmentation(mask, volume, tmp_path / "mask.dcm")
    assert "no DICOM segmentation" in caplog.text and not (tmp_path / "mask.dcm").exists()
