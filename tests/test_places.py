"""Pipelines on places: whole bodies whose uptake is judged by what others have at the same place."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch

from iltm_anomaly import ILTMAnomalyPipeline, PlaceTokenizerConfig, PlaceTokenizerModel
from iltm_anomaly.cli import main
from iltm_anomaly.hub.upload import plan_upload
from iltm_anomaly.prior import PlacePriorConfig
from iltm_anomaly.settings import PlaceSettings, read_settings
from iltm_anomaly.training.places import LEAST, calibrate, fit_highest, kept_tokens, splitting_value

RECIPE = """
name: smallest
places: {reach: 1}
volume: {spacing: 8, intensity_range: [0, 30], intensity_power: 0.5, stretch: true}
rounds: {rounds: 2}
"""


def write(path, seed, lesion=False):
    """A body of SUV 1 with a hot organ that varies, and in some a lesion, less hot than organs may be, at one place in all."""
    generator = np.random.default_rng(seed)
    suv = np.full((20, 18, 24), 1.0)
    suv[4:8, 4:8, 4:8] = 8 * np.exp(generator.normal(0, 0.2))
    mask = np.zeros(suv.shape, np.uint8)
    mask[11:16, 10:15, 14:20] = lesion
    suv[mask > 0] = 5 * np.exp(generator.normal(0, 0.1))
    suv *= np.exp(generator.normal(0, 0.05, suv.shape))
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([8.0, 8.0, 8.0, 1])
    nib.save(nib.Nifti1Image(suv.astype(np.float32), affine), path)
    if lesion:
        target = path.parents[2] / "ground_truth" / path.parent.name / path.name.replace(".nii", "_mask.nii")
        target.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(mask, affine), target)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("places")
    (root / "recipe.yaml").write_text(RECIPE)
    for number in range(20):
        group = "lesion" if number < 6 else "good"
        write(root / "data" / "train" / group / f"{number:03}.nii.gz", number, group == "lesion")
    for number in range(100, 108):
        group = "lesion" if number < 103 else "good"
        write(root / "data" / "test" / group / f"{number:03}.nii.gz", number, group == "lesion")
    arguments = ["--data", str(root / "data"), "--preset", str(root / "recipe.yaml"), "--output", str(root / "run")]
    assert main(["train", "--volumes", *arguments]) == 0
    return root


def test_rounds_give_up_lesions_that_recur_and_the_threshold_tells_volumes_apart(root, tmp_path):
    assert main(["evaluate", str(root / "run"), "--data", str(root / "data"), "--output", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "results.json").read_text())
    first, last = document["results"][0], document["results"][-1]
    assert first["masked_share_defect_tokens"] == 0 and last["masked_share_defect_tokens"] > 0.8
    assert last["masked_share_normal_tokens"] < 0.05 and last["aupr"] > 0.9
    pipe = ILTMAnomalyPipeline.from_pretrained(root / "run" / "model")
    for path in sorted((root / "data" / "test").glob("*/*.nii.gz")):
        assert (pipe(path).scores[0] >= pipe.settings.score_threshold) == (path.parent.name == "lesion"), path


def test_organs_may_be_hot_where_they_are_and_healing_shows_what_is_usual(root):
    pipe = ILTMAnomalyPipeline.from_pretrained(root / "run" / "model")
    out = pipe(root / "data" / "test" / "lesion" / "100.nii.gz")
    found = out.anomaly_maps[0]
    assert found[13, 12, 17] > 1.5 > 1.2 > found[4:8, 4:8, 4:8].max()  # the organ is hotter than the lesion
    assert out.masks[0][13, 12, 17] and out.scores[0] == found.max()
    assert out.healed_images[0][13, 12, 17] < 1.3 and out.healed_images[0][6, 6, 6] > 4
    scored = pipe(root / "data" / "test" / "lesion" / "100.nii.gz", effort="score")
    np.testing.assert_array_equal(scored.anomaly_maps[0], found)


def test_the_list_of_training_volumes_begins_with_those_that_have_lesions(root):
    with open(root / "run" / "training_images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all("lesion" in row["path"] for row in rows[:6])
    assert sum(int(row["looks_defective"]) for row in rows) == 6


def test_the_lower_half_tells_of_round_0_and_each_volume_is_judged_by_the_others():
    uptake = np.zeros((10, 3, 3, 3), np.float32)
    uptake += np.linspace(0, 0.9, 10, dtype=np.float32)[:, None, None, None]
    uptake[9] = 7
    keep, settings = np.ones(uptake.shape, bool), PlaceSettings(smoothing=0.0)
    config = PlacePriorConfig(grid_shape=(3, 3, 3), reach=0)
    prior, above = fit_highest(config, uptake, keep, settings, is_first=True)
    assert prior.highest.flatten().tolist() == pytest.approx([0.5 + 2 * (0.5 - 0.1)] * 27)  # whatever the highest has
    prior, above = fit_highest(config, uptake, keep, settings, is_first=False)
    assert prior.highest.max() == 7 and above[9].max() == pytest.approx(7 - 0.8)
    keep[9] = False
    prior, above = fit_highest(config, uptake, keep, settings, is_first=False)
    assert prior.highest.max() == pytest.approx(0.8) and above[8].max() == pytest.approx(0.1)


def test_volumes_that_stand_out_give_up_whole_regions_and_what_is_about_them():
    above = np.full((5, 9, 9, 9), -1.0)
    above[0, 2:5, 2:5, 2:5] = 0.1
    above[0, 3, 3, 3] = 3
    above[0, 7, 7, 7] = 0.1  # a region by itself that is not so high
    above[1, 4, 4, 4] = 1
    keep = kept_tokens(above, 0.2, 1)
    assert (~keep[0]).sum() == 27 + 6 * 9 and keep[0, 7, 7, 7] and keep[1:].all()


def test_a_value_between_two_groups():
    values = np.array([0.1, 3.1, 0.2, 0.3, 2.9, 0.15])
    assert splitting_value(values) == pytest.approx(1.6)


def test_settings_and_shapes_that_cannot_be_are_refused():
    assert isinstance(read_settings(vars(PlaceSettings()), "here"), PlaceSettings)
    with pytest.raises(ValueError, match="background"):
        PlaceSettings(background=0.0)
    with pytest.raises(ValueError, match=r"volumes must be \(B, 1, 8, 8, 8\)"):
        PlaceTokenizerModel(PlaceTokenizerConfig()).encode(torch.rand(1, 1, 4, 4, 4))


def test_the_card_says_what_was_trained(root):
    card = plan_upload(root / "run" / "model", "me/pet", []).files["README.md"].decode()
    assert "at the same place of other bodies" in card and "VQ-VAE" not in card


def test_volumes_that_are_all_alike_have_no_threshold_among_them():
    above = np.random.default_rng(0).normal(-0.3, 0.1, (20, 4, 4, 4)).astype(np.float32)
    settings, _, scores = calibrate(above, PlaceSettings(), 0.4)
    assert settings.score_threshold == pytest.approx(LEAST) and not bool((scores >= LEAST).any())
    above[:6, 0, 0, 0] = 1.0
    settings, kept, _ = calibrate(above, PlaceSettings(), 0.4)
    assert LEAST < settings.score_threshold < np.e and len(kept.others) == 6
