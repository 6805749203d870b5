"""Distances on one scale, three looks as one, how much they usually vary at a place, and scores and threshold of images."""

import numpy as np
import pytest
import torch

from iltm_anomaly import feature_map
from iltm_anomaly.settings import FeatureSettings, InferenceSettings, read_settings


def looks_of(*looks):
    return torch.stack([torch.as_tensor(look) for look in looks])


def test_distances_are_weighted_on_their_scales():
    settings = FeatureSettings(code_share=0.25, code_scale=2.0, position_scale=4.0)
    distances = feature_map.Distances(*torch.tensor([[[8.0]], [[3.0]], [[16.0]], [[5.0]]]))
    fine, coarse, detail = feature_map.looks_of(distances, settings)
    assert fine.item() == pytest.approx(0.25 * 8 / 2 + 0.75 * 16 / 4) and (coarse.item(), detail.item()) == (5.0, 3.0)


def test_calibrated_looks_are_0_where_usual_and_1_where_one_in_a_hundred_is():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(3, 4000, 2, 2, generator=generator)
    looks = looks_of(3 + values[0], 50 + 9 * values[1], 7 + 0.5 * values[2])
    settings = FeatureSettings(coarse_weight=0.5)
    usual = feature_map.calibrate_looks(looks, torch.ones(4000, 2, 2, dtype=torch.bool), settings)
    for look, one in zip(feature_map.calibrated(looks, settings, usual), (1, 0.5, 1), strict=True):
        assert np.quantile(look, [0.5, 0.99]) == pytest.approx([0, one], abs=1e-4)


@pytest.mark.parametrize(
    ("looks", "surprise"),
    [
        ((0.5, -1.0, 9.0), 0.5),  # what is usual does not become abnormal by its detail
        ((0.5, 3.0, 0.0), 3.0),  # the larger look, which detail does not confirm
        ((3.0, 0.5, 1.0), 3.0 + 10 * 1.0),  # confirmed in part
        ((3.0, 0.5, 9.0), 3.0 + 10 * 2.0),  # and at most as far as it is abnormal
    ],
)
def test_detail_adds_to_what_is_abnormal_as_far_as_it_confirms_it(looks, surprise):
    found = feature_map.surprise_of(torch.tensor(looks).view(3, 1, 1), FeatureSettings(detail_weight=10.0))
    assert found.item() == pytest.approx(surprise)


def test_a_map_has_its_scale_and_its_highest_values_are_averaged():
    looks = torch.zeros(3, 4, 4)
    looks[0, 0, 0], looks[1, 3, 3] = 0.8, 0.4
    settings = FeatureSettings(smoothing=0.0, score_share=0.1, map_scale=0.5)
    values, highest = feature_map.map_of(looks, settings, (4, 4), 1)
    assert values[0, 0] == pytest.approx(1.6) and values[3, 3] == pytest.approx(0.8)
    assert highest.tolist() == pytest.approx([1.2, 0.6])  # two pixels of 16; the sum of both looks has no scale here


def test_either_way_an_image_is_scored_in_the_spread_of_training_images():
    clean = torch.ones(2000, dtype=torch.bool)
    highest = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 0.1])
    highest += torch.tensor([10.0, 1.0])
    settings = FeatureSettings()
    scores = feature_map.calibrate_scores(highest, clean, settings)
    assert (settings.map_scale, settings.sum_scale) == pytest.approx((2 * 0.6745, 0.1 * 0.6745), rel=0.1)
    zero = 10 / settings.map_scale
    assert settings.score_threshold == pytest.approx(zero + feature_map.LIMIT, abs=0.2)
    for values in ((10 + 2 * 6.745, 1.0), (10.0, 1 + 0.1 * 6.745)):  # ten spreads in one way, none in the other
        scaled = torch.tensor(values) / torch.tensor([settings.map_scale, 1.0])
        assert feature_map.image_score(scaled, settings) - zero == pytest.approx(10, rel=0.1)
    assert settings.false_alarm_share == (scores >= settings.score_threshold).float().mean() < 0.01


def test_a_few_defects_hardly_move_the_threshold_and_rejected_images_do_not_at_all():
    highest = 1 + 0.1 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    clean = torch.ones(1000, dtype=torch.bool)
    before, after, without = FeatureSettings(), FeatureSettings(), FeatureSettings()
    feature_map.calibrate_scores(highest, clean, before)
    highest[:50] *= 10
    feature_map.calibrate_scores(highest, clean, after)
    assert before.map_scale < after.map_scale < 1.2 * before.map_scale
    clean[:50] = False
    feature_map.calibrate_scores(highest, clean, without)
    assert without.map_scale == pytest.approx(before.map_scale, rel=0.03) and without.false_alarm_share >= 0.05


def test_images_that_are_all_alike_have_a_finite_score():
    settings = FeatureSettings()
    scores = feature_map.calibrate_scores(torch.ones(10, 2), torch.ones(10, dtype=torch.bool), settings)
    assert bool(scores.isfinite().all()) and settings.false_alarm_share == 0


def test_usual_variation_is_that_of_each_place_evened_out():
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([[1.0, 1.0, 5.0]])
    surprise = spread * torch.randn(4000, 1, 3, generator=generator)
    usual = feature_map.usual_variation(surprise, torch.ones(4000, 1, 3, dtype=torch.bool))
    even = feature_map.EVENNESS
    assert torch.allclose(usual, (spread + even) / (1 + even), rtol=0.1)


def test_rejected_tokens_say_nothing_of_what_is_usual():
    surprise = torch.randn(50, 2, 2, generator=torch.Generator().manual_seed(0))
    keep = torch.ones(50, 2, 2, dtype=torch.bool)
    keep[:20] = False
    spoiled = surprise.clone()
    spoiled[:20] = 1e6
    assert torch.equal(feature_map.usual_variation(surprise, keep), feature_map.usual_variation(spoiled, keep))


def test_a_place_without_any_kept_token_has_the_typical_variation():
    keep = torch.ones(50, 2, 2, dtype=torch.bool)
    keep[:, 0, 0] = False
    surprise = torch.randn(50, 2, 2, generator=torch.Generator().manual_seed(0))
    assert feature_map.usual_variation(surprise, keep)[0, 0] == pytest.approx(1.0)


def test_settings_of_both_kinds_are_told_apart():
    assert isinstance(read_settings(vars(FeatureSettings()), "here"), FeatureSettings)
    assert isinstance(read_settings(vars(InferenceSettings()), "here"), InferenceSettings)
    with pytest.raises(ValueError, match="here has no setting 'num_samples'"):
        read_settings({"code_share": 0.5, "num_samples": 3}, "here")
    with pytest.raises(ValueError, match="'score_share' must be a number from"):
        FeatureSettings(score_share=0.0)
