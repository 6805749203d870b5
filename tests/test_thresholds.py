"""Thresholds from training scores and from labelled images."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_pipeline

from iltm_anomaly.evaluation.choose_threshold import choose_threshold
from iltm_anomaly.thresholds import KEY, TrainingScores, abnormal_pixels, labelled_threshold


@pytest.mark.parametrize("share", [0.2, 0.01, 0.001])
def test_the_share_of_false_alarms_is_what_was_asked_for(share):
    generator = np.random.default_rng(0)
    training = TrainingScores(np.exp(generator.normal(0.5, 0.3, 1000)) - 0.2, 0.2, np.full(250, 50.0))
    threshold = training.threshold(share)
    others = np.exp(generator.normal(0.5, 0.3, 200_000)) - 0.2
    assert float((others >= threshold).mean()) == pytest.approx(share, rel=0.4)
    assert training.false_alarms(threshold) == pytest.approx(share)
    assert training.reached(threshold) == pytest.approx(0.2 + 0.8 * (training.good >= threshold).mean())
    assert training.false_alarms(-1.0) == 1.0
    plain = TrainingScores(generator.laplace(-1, 2, 40_000), None)  # whose tails are exponential
    assert float((generator.laplace(-1, 2, 200_000) >= plain.threshold(share)).mean()) == pytest.approx(share, rel=0.4)
    assert plain.false_alarms(plain.threshold(share)) == pytest.approx(share) and plain.false_alarms(-100.0) == 1.0


def test_a_few_defective_images_hardly_move_the_threshold():
    scores = np.exp(np.random.default_rng(0).normal(0, 0.3, 500))
    clean = TrainingScores(scores, 0.0).threshold(0.01)
    assert TrainingScores(np.array([*scores, *[50.0] * 25]), 0.0).threshold(0.01) < 1.15 * clean
    assert np.quantile([*scores, *[50.0] * 25], 0.99) > 20 * clean


def test_scores_survive_a_report():
    kept = TrainingScores(np.random.default_rng(0).gamma(2, 1, 200), 0.5, np.array([9.0, 8.0]))
    again = TrainingScores.of_report(json.loads(json.dumps(kept.to_report())))
    assert again.threshold(0.01) == pytest.approx(kept.threshold(0.01), rel=1e-4) and again.others.tolist() == [8, 9]
    few = {"good": [1], "others": [], "zero": 0}
    assert TrainingScores.of_report({}) is None and TrainingScores.of_report({KEY: few}) is None
    for wrong in (few | {"good": [math.nan] * 9}, few | {"good": ["x"] * 9}, [], {"good": [1] * 9, "zero": 0}):
        with pytest.raises(ValueError, match=r"training_report\.json: training_scores"):
            TrainingScores.of_report({KEY: wrong})
    for share in (0, 0.5, math.nan):
        with pytest.raises(ValueError, match=r"above 0 and below 0\.5"):
            again.threshold(share)


def test_labelled_images_give_threshold_precision_and_recall():
    apart = labelled_threshold([1, 2, 3, 7, 8], [False, False, False, True, True])
    assert (apart.threshold, apart.good, apart.defective) == (5.0, 3, 2)
    assert (apart.precision, apart.recall) == (1.0, 1.0)
    mixed = labelled_threshold([1, 2, 6, 5, 7, 8], [False, False, False, True, True, True])
    assert mixed.threshold == 3.5  # one false alarm in four is better than one miss in three
    assert 0.5 < mixed.precision < 1 and mixed.recall < 1  # less than 3 of 4 and all, which it has on its own images
    with pytest.raises(ValueError, match="3 good and 1 defective"):
        labelled_threshold([1, 2, 3, 4], [False, False, False, True])


def test_a_calibrated_pipeline_keeps_its_training_scores(tmp_path):
    pipeline = tiny_pipeline()
    pipeline.calibrate(torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    pipeline.save_pretrained(tmp_path)
    again = type(pipeline).from_pretrained(tmp_path)
    own = again.settings.score_threshold
    assert "threshold" in choose_threshold(again) and "expected to reach it" in choose_threshold(again)
    assert again.settings.score_threshold == own
    said = choose_threshold(again, false_alarms=0.05)
    assert "spread 5 % of good images" in said and "of 12 training images that look good do" in said
    assert again.settings.score_threshold != own
    choose_threshold(again, threshold=7.0)
    assert again.settings.score_threshold == 7.0


def test_a_folder_of_labelled_images_sets_the_threshold(tmp_path, caplog):
    pipeline = tiny_pipeline()
    with pytest.raises(ValueError, match="keeps no scores of its training images"):
        choose_threshold(pipeline, false_alarms=0.01)
    generator = np.random.default_rng(0)
    for number in range(8):
        kind = "good" if number < 4 else f"kind_{number % 2}"
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8) // (1 if number < 4 else 20)
        path = tmp_path / kind / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    scores = {path: float(pipeline(path).scores[0]) for path in tmp_path.glob("*/*.png")}
    said = choose_threshold(pipeline, labelled=tmp_path)
    assert "by 4 good and 4 defective images, expected precision" in said
    expected = labelled_threshold(list(scores.values()), [path.parent.name != "good" for path in scores])
    assert pipeline.settings.score_threshold == pytest.approx(expected.threshold)
    for lead, is_doubted in ((1.0, True), (-1.0, False)):  # of training images over the threshold
        pipeline.training_report |= TrainingScores(
            np.full(12, expected.threshold + lead), None, np.empty(0)
        ).to_report()
        caplog.clear()
        choose_threshold(pipeline, labelled=tmp_path)
        assert ("were its images trained on?" in caplog.text) == is_doubted
    shutil.rmtree(tmp_path / "good")
    with pytest.raises(ValueError, match=r"must hold a subfolder good .* its subfolders: kind_0, kind_1"):
        choose_threshold(pipeline, labelled=tmp_path)


def test_a_mask_ends_near_what_stands_out():
    values = np.zeros((6, 12), dtype=np.float32)
    values[1:4, 1:4] = 5  # what smoothing leaves around a peak
    values[2, 2:4] = 40, 13
    values[4, 8:10] = 6, 5.5  # a weak defect elsewhere is kept whole
    expected = np.zeros_like(values, dtype=bool)
    expected[2, 2:4] = expected[4, 8:10] = True
    assert (abnormal_pixels(values, 40.0, 5.0) == expected).all()
    assert not abnormal_pixels(values, 4.0, 5.0).any()
    assert abnormal_pixels(values, 50.0, 45.0).sum() == 1, "the highest hundredth"
    assert (abnormal_pixels(values - 50, -10.0, -45.0) == (values >= 5)).all(), "below 0 there are no shares"
    volume = np.stack([values, values])
    assert (abnormal_pixels(volume, 40.0, 5.0) == (volume >= 5)).all()
