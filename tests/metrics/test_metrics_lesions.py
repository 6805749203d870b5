import numpy as np
import pytest

from iltm_anomaly.metrics import lesion_curve, lesion_detection


def scan(hot: dict, lesions: list, side: int = 12):
    """A map that is 0 but for `hot` {voxel: score}, and a mask with 2-voxel cubes at `lesions`."""
    values, mask = np.zeros((side,) * 3, np.float32), np.zeros((side,) * 3, bool)
    for voxel, score in hot.items():
        values[voxel] = score
    for x, y, z in lesions:
        mask[x : x + 2, y : y + 2, z : z + 2] = True
    return values, mask


def test_counts_by_hand():
    # lesions found at 0.9, 0.5 and (background) 0; false alarms at 0.7 and, two connected voxels, 0.6
    first = scan({(1, 1, 1): 0.9, (9, 9, 9): 0.7}, [(1, 1, 1), (5, 5, 5)])
    second = scan({(3, 3, 3): 0.5, (8, 8, 8): 0.6, (9, 9, 9): 0.6}, [(3, 3, 3)])
    curve = lesion_curve([first[0], second[0]], [first[1], second[1]])
    assert (curve.lesions, curve.scans) == (3, 2)
    at = {
        round(t, 3): (s, f) for t, s, f in zip(curve.thresholds, curve.sensitivity, curve.false_positives, strict=True)
    }
    assert at[0.9] == (pytest.approx(1 / 3), 0)
    assert at[0.6] == (pytest.approx(1 / 3), 1.0)
    assert at[0.5] == (pytest.approx(2 / 3), 1.0)
    assert curve.sensitivity_at(0) == pytest.approx(1 / 3)
    assert curve.sensitivity_at(0.9) == pytest.approx(1 / 3)
    assert curve.sensitivity_at(1) >= 2 / 3


def test_one_detection_of_everything_is_none():
    """Noise has many false alarms before everything grows into one region that touches the lesion."""
    generator = np.random.default_rng(0)
    maps = [generator.random((16, 16, 16)) for _ in range(3)]
    mask = np.zeros((16, 16, 16), bool)
    mask[4:7, 4:7, 4:7] = True
    for values in maps:
        values[mask] *= 0.3
    curve = lesion_curve(maps, [mask] * 3)
    assert curve.sensitivity.max() == 1
    assert curve.sensitivity_at(2) == 0


def test_infinite_scores_are_ranked_as_the_highest_are():
    values, mask = scan({(1, 1, 1): 0.5}, [(1, 1, 1)])
    finite, infinite = values.copy(), values.copy()
    finite[8:10, 8, 8] = 9
    infinite[8:10, 8, 8] = np.inf
    assert lesion_detection([infinite], [mask], [0.5, 1]) == lesion_detection([finite], [mask], [0.5, 1])
    assert lesion_detection([infinite], [mask], [0.5, 1])["lesion_sensitivity_at_0.5_fp"] == 0


def test_diagonal_neighbours_are_one_detection():
    values, mask = scan({(2, 2, 2): 0.8, (3, 3, 3): 0.8, (7, 7, 7): 0.9}, [(7, 7, 7)])
    curve = lesion_curve([values], [mask])
    at = dict(zip(curve.thresholds.round(3), curve.false_positives, strict=True))
    assert at[0.9] == 0
    assert lesion_curve([np.where(values == 0.9, 0.5, values)], [mask]).false_positives[0] == 1


def test_perfect_and_undefined():
    values, mask = scan({(1, 1, 1): 1.0, (2, 2, 2): 1.0}, [(1, 1, 1)])
    report = lesion_detection([values, np.zeros_like(values)], [mask, None])
    assert report["lesion_sensitivity_at_0.5_fp"] == 1 and report["lesions"] == 1
    with pytest.raises(ValueError, match="none of the 1 scans has a lesion"):
        lesion_curve([values], [None])
