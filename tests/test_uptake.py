"""Pipelines on tissues: PET whose uptake is weighed by what the CT shows."""

import json
import logging

import nibabel as nib
import numpy as np
import pytest
import torch

from iltm_anomaly import ILTMAnomalyPipeline, ILTMImageProcessor, TissueTokenizerConfig, TissueTokenizerModel
from iltm_anomaly.cli import main
from iltm_anomaly.data.volume_files import find_context, find_volumes
from iltm_anomaly.hub.upload import plan_upload
from iltm_anomaly.prior import relative_log_odds
from iltm_anomaly.settings import InferenceSettings, UptakeSettings, read_settings
from iltm_anomaly.tokenizers.tissue import voxels_of
from iltm_anomaly.uptake_map import findings_threshold

AFFINE = np.diag([4.0, 4.0, 4.0, 1])
RECIPE = """
name: smallest
tissues: {vocab_size: 8, scales: [0.7, 1.5, 3.0]}
volume: {spacing: 4, intensity_range: [0, 30], intensity_power: 0.5, context_range: [-250, 300]}
rounds: {rounds: 2, rejected_share: 0.05}
"""


def write(folder, name, seed, shape=(20, 18, 22), ct=True, hot_fat=(6, 8)):
    """A half of muscle and one of fat. A hot block of SUV 4 lies in the muscle; in fat one that is not abnormal is as hot."""
    generator = np.random.default_rng(seed)
    fat_or_muscle = np.full(shape, -100.0)
    fat_or_muscle[: shape[0] // 2] = 50
    suv, mask = generator.gamma(2, 0.3, shape), np.zeros(shape, np.uint8)
    mask[3:8, 4:9, 5:10] = 1
    suv[mask > 0] += 4
    suv[-6:-2, 4:9, slice(*hot_fat)] += 4
    folder.mkdir(parents=True, exist_ok=True)
    for part, values in (("suv", suv), ("ct", fat_or_muscle + generator.normal(0, 10, shape)), ("lesion", mask)):
        if ct or part != "ct":
            nib.save(nib.Nifti1Image(values.astype(np.float32), AFFINE), folder / f"{name}_{part}.nii.gz")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("uptake")
    (root / "recipe.yaml").write_text(RECIPE)
    for number in range(4):
        write(
            root / "scans", f"P{number}", number, (20 + 2 * number, 18, 22), hot_fat=(6, 16) if number == 3 else (6, 8)
        )
    for number in range(4):
        split = "test" if number == 3 else "train"
        for source, target in (
            (f"P{number}_suv", f"{split}/tumour/P{number}_suv.nii.gz"),
            (f"P{number}_lesion", f"ground_truth/tumour/P{number}_suv_mask.nii.gz"),
        ):
            (root / "data" / target).parent.mkdir(parents=True, exist_ok=True)
            (root / "data" / target).symlink_to(root / "scans" / f"{source}.nii.gz")
    arguments = ["--data", str(root / "data"), "--preset", str(root / "recipe.yaml"), "--output", str(root / "run")]
    assert main(["train", "--volumes", *arguments]) == 0
    return root


def test_rounds_learn_in_which_tissue_uptake_is_abnormal(root, tmp_path):
    assert main(["evaluate", str(root / "run"), "--data", str(root / "data"), "--output", str(tmp_path)]) == 0
    rounds = json.loads((tmp_path / "results.json").read_text())["results"]
    assert rounds[0]["masked_share_defect_tokens"] == 0 and rounds[-1]["masked_share_defect_tokens"] > 0.8
    assert rounds[-1]["masked_share_normal_tokens"] < 0.05
    assert (
        rounds[-1]["aupr"] > rounds[0]["aupr"] + 0.01
    )  # what is hot in fat no longer ranks with what is so in muscle


def test_the_map_is_an_uptake_and_healing_shows_what_is_usual(root):
    pipe = ILTMAnomalyPipeline.from_pretrained(root / "run" / "model")
    out = pipe(root / "scans" / "P3_suv.nii.gz")
    lesion = nib.load(root / "scans" / "P3_lesion.nii.gz").get_fdata() > 0
    assert 3 < np.median(out.anomaly_maps[0][lesion]) < 12
    assert out.masks[0][lesion].mean() > 0.9 and out.scores[0] == out.anomaly_maps[0].max()
    assert np.median(out.healed_images[0][lesion]) < 1.5


def test_padding_is_no_token(root):
    pipe = ILTMAnomalyPipeline.from_pretrained(root / "run" / "model")
    processor = pipe.image_processor
    pixels = processor.preprocess(root / "scans" / "P0_suv.nii.gz")[
        "pixel_values"
    ]  # the smallest, in the middle of the grid
    assert voxels_of(pixels[0]) == (slice(2, 22), slice(0, 18), slice(0, 22))
    maps, _, _, healed, _ = pipe.score_batch(pixels, pipe.settings, 0)
    assert not maps[0][:2].any() and not healed[0][22:].any() and maps[0][2:22].min() > 0
    alone = pipe.score_batch(pixels[:, :, 2:22], pipe.settings, 0)[0][0]
    torch.testing.assert_close(maps[0][2:22], alone)


def test_without_ct_uptake_alone_is_looked_at(root, tmp_path, caplog):
    pipe = ILTMAnomalyPipeline.from_pretrained(root / "run" / "model")
    write(tmp_path, "Q", 9, ct=False)
    with caplog.at_level(logging.WARNING):
        found = pipe(tmp_path / "Q_suv.nii.gz").anomaly_maps[0]
    assert "no CT lies beside" in caplog.text
    pipe.settings.tissue_weight = 0.0
    np.testing.assert_allclose(found, pipe(tmp_path / "Q_suv.nii.gz").anomaly_maps[0])


def test_training_without_any_ct_learns_from_the_pet_and_refuses_a_half(tmp_path, capsys):
    for number in range(3):
        write(tmp_path, f"P{number}", number, ct=False)
    pattern, recipe = str(tmp_path / "*_suv.nii.gz"), tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    arguments = ["train", "--volumes", "--data", pattern, "--preset", str(recipe), "--output"]
    assert main([*arguments, str(tmp_path / "run")]) == 0
    assert ILTMAnomalyPipeline.from_pretrained(tmp_path / "run" / "model").tokenizer.config.in_channels == 1
    write(tmp_path, "P0", 0)
    assert main([*arguments, str(tmp_path / "other")]) != 0
    assert "P1_suv.nii.gz has no CT beside it" in capsys.readouterr().err


def test_the_context_is_found_beside_a_scan_and_is_no_scan_itself(tmp_path):
    write(tmp_path / "scans", "P1", 0)
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), AFFINE), tmp_path / "scans" / "other_ct.nii.gz")
    assert [path.name for path in find_volumes(tmp_path / "scans")] == ["P1_suv.nii.gz", "other_ct.nii.gz"]
    link = tmp_path / "link_suv.nii.gz"
    link.symlink_to(tmp_path / "scans" / "P1_suv.nii.gz")
    assert find_context(link) is None  # of another name
    (tmp_path / "P1_suv.nii.gz").symlink_to(tmp_path / "scans" / "P1_suv.nii.gz")
    assert find_context(tmp_path / "P1_suv.nii.gz") == tmp_path / "scans" / "P1_ct.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), AFFINE), tmp_path / "scans" / "P1_ct.nii.gz")
    processor = ILTMImageProcessor(
        {"depth": 4, "height": 4, "width": 4}, spacing=4, intensity_range=(0, 9), context_range=(0, 9)
    )
    with pytest.raises(ValueError, match=r"context .*P1_ct\.nii\.gz has .*resample it"):
        processor(tmp_path / "P1_suv.nii.gz")


def test_odds_are_relative_rare_tissues_say_little_and_none_is_weighted_down():
    odds = relative_log_odds(torch.tensor([50.0, 50.0, 1.0]), torch.tensor([100.0, 900.0, 2.0]))
    assert odds[0] > 1 and odds[1] == 0 and 0 < odds[2] < 0.2
    assert relative_log_odds(torch.zeros(2), torch.tensor([5.0, 9.0])).tolist() == [0, 0]


def test_the_threshold_leaves_so_many_regions_a_volume():
    one, two = np.random.default_rng(0).random((2, 20, 20, 20))  # many regions, from 1 down
    one[2:5, 2:5, 2:5], one[10:13, 10:13, 10:13], two[2:5, 2:5, 2:5] = 9, 4, 3
    one[3, 2:5, 2:5] = 7  # at a threshold of 8 the hottest falls into two
    assert 3 < findings_threshold([one, two], 1.0, 0.97) <= 3.1
    assert 0.99 < findings_threshold([one, two], 1.5, 0.97) <= 1.1
    assert findings_threshold([one, two], 0.1, 0.97) == 9


def test_detect_tells_how_many_findings_the_threshold_leaves(root, tmp_path, capsys):
    report = json.loads((root / "run/model/training_report.json").read_text())
    assert 0 < report["findings"] <= 2
    detect = ["detect", str(root / "run"), str(root / "scans/P3_suv.nii.gz"), "--output", str(tmp_path), "--no-maps"]
    assert main(detect) == 0
    assert f"training volumes have {report['findings']:.2g} findings each" in capsys.readouterr().out
    assert main([*detect, "--threshold", "3"]) == 0
    assert "findings each" not in capsys.readouterr().out  # they are known at the model's own alone


def test_settings_and_shapes_that_cannot_be_are_refused():
    assert isinstance(read_settings(vars(UptakeSettings()), "here"), UptakeSettings)
    assert isinstance(read_settings({}, "here"), InferenceSettings)
    with pytest.raises(ValueError, match="tissue_weight"):
        UptakeSettings(tissue_weight=-1.0)
    with pytest.raises(ValueError, match=r"volumes must be \(B, 2, D, H, W\)"):
        TissueTokenizerModel(TissueTokenizerConfig()).encode(torch.rand(1, 1, 4, 4, 4))


def test_the_card_says_what_was_trained(root):
    card = plan_upload(root / "run" / "model", "me/pet", []).files["README.md"].decode()
    assert "of a tissue that the CT shows" in card and "VQ-VAE" not in card
