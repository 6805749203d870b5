import json

import numpy as np
import pytest

from iltm_anomaly.data.volume_files import read_mask, read_volume
from iltm_anomaly.data.volumes import load_volumes
from iltm_anomaly.synthetic.phantoms import LYMPHOMA, RADII, generate_phantom, write_phantoms


@pytest.fixture(scope="module")
def pair():
    return generate_phantom(3, lesions=4, spacing=12), generate_phantom(3, lesions=0, spacing=12)


def test_a_seed_gives_the_same_subject_with_and_without_lesions(pair):
    bearing, healthy = pair
    again = generate_phantom(3, lesions=4, spacing=12)
    np.testing.assert_array_equal(bearing.volume.values, again.volume.values)
    assert bearing.lesions == again.lesions and len(bearing.lesions) == 4 and not healthy.lesions
    difference = np.abs(bearing.volume.values - healthy.volume.values)
    assert not healthy.mask.any()
    assert difference[bearing.mask].mean() > 0.5
    far = difference < 1e-3
    assert far.mean() > 0.9  # the rest of the body is the same, noise included
    other = generate_phantom(4, spacing=12).volume.values
    assert np.abs(other - healthy.volume.values).max() > 1


def test_lesions_are_where_the_record_says_and_hotter_than_around(pair):
    bearing, healthy = pair
    affine = np.linalg.inv(bearing.volume.grid.matrix)
    for lesion in bearing.lesions:
        voxel = tuple(np.round((affine @ [*lesion.centre, 1])[:3]).astype(int))
        assert bearing.volume.values[voxel] > 1.3 * healthy.volume.values[voxel]
        assert lesion.contrast >= 2.9 and RADII[0] <= lesion.radius <= RADII[1]


def test_lesions_that_recur_lie_at_sites_of_the_disease_in_everybody():
    places: dict[str, list] = {name: [] for name in LYMPHOMA}
    for seed in range(4):
        phantom = generate_phantom(seed, lesions=len(LYMPHOMA), spacing=12, recurring=True)
        assert {lesion.site for lesion in phantom.lesions} == set(LYMPHOMA)  # each site once
        for lesion in phantom.lesions:
            low, high = LYMPHOMA[lesion.site][1]
            assert low <= lesion.radius <= high and phantom.mask.any()
            places[lesion.site].append(lesion.centre)
    first = next(iter(LYMPHOMA))
    assert all(generate_phantom(seed, 1, 16, recurring=True).lesions[0].site == first for seed in range(4))
    for name, (at, _) in LYMPHOMA.items():
        away = np.abs(np.array(places[name]) - at)
        assert away.max() < 100  # build, sway and chance
        assert len(np.unique(away, axis=0)) == 4


def test_uptake_is_that_of_a_body(pair):
    values = pair[1].volume.values
    assert values.dtype == np.float32 and values.min() >= 0
    assert np.median(values[values > 0.2]) == pytest.approx(0.6, abs=0.3)  # soft tissue
    head = values[:, :, int(0.85 * values.shape[2]) :]
    assert head.max() > 4  # brain
    corners = values[:3, :3]
    assert corners.mean() < 0.1  # air


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="lesions must not be negative"):
        generate_phantom(0, -1)
    with pytest.raises(ValueError, match="5 sites, got lesions=8"):
        generate_phantom(0, 8, recurring=True)
    with pytest.raises(ValueError, match="spacing must be from 2 to 20"):
        generate_phantom(0, 0, 40)


@pytest.mark.parametrize("recurring", [False, True])
def test_a_written_set_is_contaminated_as_asked(tmp_path, recurring):
    root = write_phantoms(tmp_path / "data", 4, 1, 2, contamination=0.5, spacing=16, seed=1, recurring=recurring)
    dataset = load_volumes(root)
    assert sorted(dataset["train"]["label"]) == [0, 0, 1, 1] and sorted(dataset["test"]["label"]) == [0, 1, 1]
    record = json.loads((root / "lesions.json").read_text())
    for split in ("train", "test"):
        for row in dataset[split]:
            volume = read_volume(row["image"])
            mask = read_mask(row["mask"], volume.grid)
            name = row["image"].split("data/")[-1]
            assert mask.any() == bool(row["label"]) == bool(record[name])
    with pytest.raises(FileExistsError, match="not empty"):
        write_phantoms(root)
