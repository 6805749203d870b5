"""Projections of volumes."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from iltm_anomaly.drawing import MOST_DRAWN, draw_projections, grey, overlay, project
from iltm_anomaly.evaluation.gallery import volume_row

SIDES = (20, 12, 30)  # right, front, head


def test_projections_show_the_patient_as_radiologists_look_at_it():
    values = np.zeros(SIDES, np.float32)
    values[18, 10, 27] = 1  # to the patient's right, at the front, at the head
    front, side = project(values, 1), project(values, 0)
    assert front.shape == (30, 20) and side.shape == (30, 12)
    assert front.argmax() == 2 * 20 + 1  # near the top; the patient's right is on the left
    assert side.argmax() == 2 * 12 + 10  # near the top; the front is on the right
    picture = np.asarray(grey(project(values, 1), (0, 1)))
    assert picture.dtype == np.uint8 and picture[2, 1] == 255 and picture.sum() == 255


def test_a_sheet_has_map_and_outline_with_square_voxels():
    generator = np.random.default_rng(0)
    values = generator.uniform(0, 1, SIDES).astype(np.float32)
    hot, truth = np.zeros(SIDES, np.float32), np.zeros(SIDES, bool)
    hot[5:9, 4:8, 10:15] = 10
    truth[4:10, 3:9, 9:16] = True

    def sheet(*more) -> np.ndarray:
        return np.asarray(draw_projections(values, hot, 1.0, (2.0, 2.0, 4.0), *more).convert("RGB")).astype(int)

    plain, outlined = sheet(), sheet(truth)
    height, width = plain.shape[0] - 12, plain.shape[1] - 30
    assert width / height == pytest.approx(2 * (20 + 12) * 2.0 / (30 * 4.0), rel=0.01)  # in mm
    red = (outlined[..., 0] > 100) & (outlined[..., 2] < 60)
    assert red.any() and isinstance(draw_projections(values, hot, 1.0, (1, 1, 1)), Image.Image)
    changed = (plain != outlined).any(-1)
    assert changed.any() and (outlined[changed] == (255, 0, 255)).all()  # the outline is magenta, and all that differs


def test_a_row_of_volumes_is_drawn_in_millimetres(tmp_path):
    """12 slices of 6 mm are as high as 72 voxels of 1 mm are wide."""
    values = np.zeros((64, 8, 12), np.float32)
    values[8:56, 2:6, 2:10] = 1
    affine = np.diag([1.0, 1.0, 6.0, 1.0])
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image((values > 0).astype(np.uint8), affine), tmp_path / "m.nii.gz")
    output = SimpleNamespace(scores=[1.0], anomaly_maps=[values], healed_images=[values])
    row = volume_row({"image": tmp_path / "a.nii.gz", "mask": tmp_path / "m.nii.gz", "defect": "x"}, output, 0)
    picture = np.asarray(row.image)
    assert picture.shape == row.truth.shape == row.anomaly_map.shape == (72, 72)
    rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
    assert len(rows) == 48 == len(columns)
    assert np.array_equal(picture > 0, row.truth) and np.array_equal(row.truth, row.anomaly_map > 0)


def test_a_map_is_coloured_from_its_lowest_value_on():
    """Densities that are not relative have maps that start below 0, and so may a threshold."""
    image, values = Image.new("L", (4, 1)), np.array([[0.0, 1.0, 2.0, 4.0]])
    expected = np.asarray(overlay(image, values, 2.0))
    assert (expected[0, :2] == 0).all() and expected[0, 2:].any(-1).all()  # from half the threshold on
    assert np.array_equal(np.asarray(overlay(image, values - 3, -1.0, lowest=-3.0)), expected)


def test_a_large_image_is_drawn_smaller_and_keeps_its_smallest_defect():
    values, outline = np.zeros((3000, 5000), np.float32), np.zeros((3000, 5000), bool)
    values[2999, 4999] = 10
    outline[30:60, 30:60] = True
    picture = overlay(Image.new("L", (5000, 3000), 128), values, 1.0, outline)
    assert picture.size == (1667, 1000) and max(picture.size) <= MOST_DRAWN
    pixels = np.asarray(picture).astype(int)
    assert (pixels[-1, -1] != 128).any() and (pixels[0, 0] == 128).all()
    assert (pixels[10, 10] == (255, 0, 255)).all() and (
        pixels[15, 15] == 128
    ).all()  # the outline, and what it is around


@pytest.mark.parametrize(
    "spacing", [(1e-5, 1.0, 1.0), (1.0, 1.0, 1e-5), (1e30, 1.0, 1.0), (1.0, 1.0, 1e30), (1e-30,) * 3]
)
def test_projections_of_voxels_of_any_shape_have_a_bounded_size(spacing, tmp_path):
    values = np.ones((4, 5, 6), np.float32)
    sheet = draw_projections(values, values, 1.0, spacing)
    assert max(sheet.size) <= 4 * MOST_DRAWN + 30
