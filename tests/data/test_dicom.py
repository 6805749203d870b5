"""DICOM series, written by SimpleITK; skipped without the extra `dicom`."""

import locale

import numpy as np
import pytest

from iltm_anomaly.data.dicom import is_dicom_file
from iltm_anomaly.data.volume_files import read_volume, write_volume
from iltm_anomaly.data.volume_grid import VolumeReadError
from iltm_anomaly.evaluation.inputs import Input, list_inputs

sitk = pytest.importorskip("SimpleITK", reason="needs the extra dicom")

SHAPE, SPACING, ORIGIN = (7, 6, 5), (2.0, 3.0, 4.0), (-10.0, 20.0, 100.0)


@pytest.fixture(autouse=True)
def kept_locale():
    """Writing with SimpleITK leaves the whole process in the locale C, where Python reads text as ASCII; reading does not."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


def save(folder, values, places=None, **tags):
    """Slices without a suffix, as scanners export them; `tags` such as t0054_1001="BQML", or a list with one for each slice."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    for number in range(values.shape[2]):
        image = sitk.GetImageFromArray(values[:, :, number : number + 1].transpose())
        image.SetSpacing(SPACING)
        place = (*ORIGIN[:2], ORIGIN[2] + SPACING[2] * (number if places is None else places[number]))
        given = {
            "0008|0060": "PT",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.1",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0032": "\\".join(map(str, place)),
            "0020|0013": str(number),
        } | {
            tag[1:].replace("_", "|"): value if isinstance(value, str) else value[number]
            for tag, value in tags.items()
        }
        for tag, value in given.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"slice{number}.dcm"))
        writer.Execute(image)
        (folder / f"slice{number}.dcm").rename(folder / f"IM{number:04d}")
    return folder


@pytest.fixture
def values():
    return np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)


def patch(path, tag, text):
    """Overwrites the text of an element (implicit VR, little endian) by one of its length."""
    content = bytearray(path.read_bytes())
    start = content.index(tag) + 8
    length = int.from_bytes(content[start - 4 : start], "little")
    content[start : start + length] = text.ljust(length).encode()
    path.write_bytes(bytes(content))


def test_a_series_is_a_volume_in_its_place(tmp_path, values):
    folder = save(tmp_path / "series", values, t0028_1052="-5", t0028_1053="2")
    volume = read_volume(folder)
    np.testing.assert_allclose(volume.values, values, atol=1)  # GDCM stores what its slope makes of the values
    # left and posterior grow in DICOM: to RAS both are turned
    np.testing.assert_allclose(volume.grid.matrix, [[-2, 0, 0, 10], [0, -3, 0, -20], [0, 0, 4, 100], [0, 0, 0, 1]])
    assert volume.grid.ras_spacing == SPACING
    np.testing.assert_array_equal(volume.grid.to_ras(volume.values), volume.values[::-1, ::-1])
    assert is_dicom_file(folder / "IM0000") and list_inputs([folder], volumes=True) == [Input(folder)]
    again = read_volume(write_volume(volume.values, tmp_path / "map.nii.gz", volume))
    np.testing.assert_array_equal(again.values, volume.values)
    np.testing.assert_allclose(again.grid.matrix, volume.grid.matrix)


def test_slices_are_sorted_by_place_and_not_by_name(tmp_path, values):
    order = [3, 0, 4, 1, 2]
    shuffled = read_volume(save(tmp_path / "a", values[:, :, order], places=order))
    np.testing.assert_array_equal(shuffled.values, read_volume(save(tmp_path / "b", values)).values)


def test_every_slice_has_a_slope_of_its_own(tmp_path, values):
    """As in PET; a first slope of 1 must not make whole numbers of the others'."""
    folder = save(tmp_path / "series", np.zeros_like(values), t0028_1052="0", t0028_1053="2")
    slopes = ("1", ".5", ".2", ".1", "2")
    for number, slope in enumerate(slopes):
        patch(folder / f"IM{number:04d}", b"\x28\x00\x53\x10", slope)
    assert read_volume(folder).values.max() == 0
    stored = np.arange(np.prod(SHAPE[:2]), dtype=np.int16).reshape(SHAPE[:2])
    for number in range(len(slopes)):
        path = folder / f"IM{number:04d}"
        content = bytearray(path.read_bytes())
        content[-stored.nbytes :] = stored.T.tobytes()
        path.write_bytes(bytes(content))
    found = read_volume(folder).values
    for number, slope in enumerate(slopes):
        np.testing.assert_allclose(found[:, :, number], stored * float(slope), rtol=1e-5)


def test_slices_that_are_no_upright_stack_are_refused(tmp_path, values):
    tilted = save(tmp_path / "tilted", values, t0020_0032=[f"-10\\{20 + n}\\{100 + 4 * n}" for n in range(SHAPE[2])])
    with pytest.raises(VolumeReadError, match="shifted sideways by up to 4 mm"):
        read_volume(tilted)
    across, along = "1\\0\\0\\0\\1\\0", "0\\1\\0\\1\\0\\0"
    turned = save(tmp_path / "turned", values, t0020_0037=[across, across, along, across, across])
    with pytest.raises(VolumeReadError, match="slice 2 has another orientation"):
        read_volume(turned)
    finer = save(tmp_path / "finer", values)
    patch(finer / "IM0004", b"\x28\x00\x30\x00", "1\\1")
    with pytest.raises(VolumeReadError, match="slice 4 has another pixel spacing"):
        read_volume(finer)


def test_bad_series_are_refused(tmp_path, values):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VolumeReadError, match="no DICOM series"):
        read_volume(tmp_path / "empty")
    with pytest.raises(VolumeReadError, match="single slice"):
        read_volume(save(tmp_path / "one", values[:, :, :1]))
    missing = save(tmp_path / "missing", values)
    (missing / "IM0002").unlink()
    with pytest.raises(VolumeReadError, match="4 slices lie 4 to 8 mm apart"):
        read_volume(missing)
    damaged = save(tmp_path / "damaged", values)
    content = (damaged / "IM0002").read_bytes()
    (damaged / "IM0002").write_bytes(content[: len(content) // 2])
    with pytest.raises(VolumeReadError, match="damaged"):
        read_volume(damaged)
    twice = save(tmp_path / "twice", values, places=[0, 0, 1, 1, 2])
    with pytest.raises(VolumeReadError, match="several frames"):
        read_volume(twice)
    two = save(tmp_path / "two", values)
    save(two / "b", values, t0020_000e="1.2.3.4")
    for path in (two / "b").iterdir():
        path.rename(two / f"b{path.name}")
    with pytest.raises(VolumeReadError, match="2 DICOM series"):
        read_volume(two)


def test_a_slope_of_0_and_no_spacing_are_refused(tmp_path, values):
    folder = save(tmp_path / "slope", values, t0028_1052="0", t0028_1053="2")
    patch(folder / "IM0003", b"\x28\x00\x53\x10", "0")
    with pytest.raises(VolumeReadError, match=r"slice 3 has a rescale slope \(0028,1053\) of 0"):
        read_volume(folder)
    folder = save(tmp_path / "spacing", values)
    patch(folder / "IM0000", b"\x28\x00\x30\x00", "0\\0")
    with pytest.raises(VolumeReadError, match=r"spacing|cannot read the DICOM series"):
        read_volume(folder)


def test_counts_in_place_of_suv_are_warned_of(tmp_path, values, caplog):
    read_volume(save(tmp_path / "pet", values, t0054_1001="BQML"))
    assert "Bq/ml, not SUV" in caplog.text
