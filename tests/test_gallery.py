"""Projections of volumes."""

import numpy as np
import pytest
from PIL import Image

from iltm_anomaly.gallery import draw_projections, project, projection

SIDES = (20, 12, 30)  # right, front, head


def test_projections_show_the_patient_as_radiologists_look_at_it():
    values = np.zeros(SIDES, np.float32)
    values[18, 10, 27] = 1  # to the patient's right, at the front, at the head
    front, side = project(values, 1), project(values, 0)
    assert front.shape == (30, 20) and side.shape == (30, 12)
    assert front.argmax() == 2 * 20 + 1  # near the top; the patient's right is on the left
    assert side.argmax() == 2 * 12 + 10  # near the top; the front is on the right
    picture = np.asarray(projection(values, (0, 1), 1))
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
