"""Distances on one scale, two looks as one, how much they usually vary at a place, and the threshold of images."""

import numpy as np
import pytest
import torch

from iltm_anomaly import feature_map
from iltm_anomaly.settings import FeatureSettings, InferenceSettings, read_settings


def looks_of(fine, coarse):
    return torch.stack([torch.as_tensor(fine), torch.as_tensor(coarse)])


def test_distances_are_weighted_on_their_scales():
    settings = FeatureSettings(code_share=0.25, code_scale=2.0, position_scale=4.0)
    distances = feature_map.Distances(*torch.tensor([[[8.0]], [[16.0]], [[5.0]]]))
    fine, coarse = feature_map.two_looks(distances, settings)
    assert fine.item() == pytest.approx(0.25 * 8 / 2 + 0.75 * 16 / 4) and coarse.item() == 5.0


def test_the_larger_look_counts_the_coarse_one_by_its_weight():
    settings = FeatureSettings(coarse_weight=0.5, usual_fine=1.0, usual_coarse=2.0)
    usual = torch.tensor([[2.0], [4.0]])
    assert feature_map.combined(looks_of([[8.0]], [[12.0]]), settings, usual).item() == (8 - 1) / 2
    assert feature_map.combined(looks_of([[8.0]], [[48.0]]), settings, usual).item() == 0.5 * (48 - 2) / 4


def test_calibrated_looks_are_0_where_usual_and_1_where_one_in_a_hundred_is():
    generator = torch.Generator().manual_seed(0)
    looks = looks_of(
        3 + torch.rand(4000, 2, 2, generator=generator), 50 + 9 * torch.rand(4000, 2, 2, generator=generator)
    )
    settings = FeatureSettings()
    usual = feature_map.calibrate_looks(looks, torch.ones(4000, 2, 2, dtype=torch.bool), settings)
    for look, scale, zero in zip(looks, usual, (settings.usual_fine, settings.usual_coarse), strict=True):
        assert np.quantile((look - zero) / scale, [0.5, 0.99]) == pytest.approx([0, 1], abs=1e-4)


def test_the_score_is_the_mean_of_the_highest_share():
    values = torch.arange(100.0).view(10, 10)
    assert feature_map.image_score(values, 0.03) == 98.0
    assert feature_map.image_score(values.numpy(), 0.0001) == 99.0  # one pixel at least


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


def test_the_threshold_of_good_images_lets_nearly_all_of_them_pass():
    scores = torch.exp(0.1 * torch.randn(2000, generator=torch.Generator().manual_seed(0)))
    threshold, share = feature_map.threshold_of(scores, torch.ones(2000, dtype=torch.bool))
    assert threshold == pytest.approx(np.exp(0.1 * 2.698), rel=0.03)  # 0.6745 x 4 standard deviations
    assert share == pytest.approx(0.0035, abs=0.003)


def test_defects_that_no_token_was_rejected_for_move_the_threshold_little():
    scores = torch.exp(0.1 * torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    clean = torch.ones(1000, dtype=torch.bool)
    before, _ = feature_map.threshold_of(scores, clean)
    scores[:50] *= 10
    after, _ = feature_map.threshold_of(scores, clean)
    assert after < 1.05 * before


def test_images_with_rejected_tokens_do_not_count_unless_they_are_most():
    scores, clean = torch.ones(10), torch.ones(10, dtype=torch.bool)
    scores[:4], clean[:4] = 100.0, False
    threshold, share = feature_map.threshold_of(scores, clean)
    assert threshold == 1.0 and share == 1.0
    clean[:6] = False
    assert feature_map.threshold_of(scores, clean)[0] > 1.0


def test_settings_of_both_kinds_are_told_apart():
    assert isinstance(read_settings(vars(FeatureSettings()), "here"), FeatureSettings)
    assert isinstance(read_settings(vars(InferenceSettings()), "here"), InferenceSettings)
    with pytest.raises(ValueError, match="here has no setting 'num_samples'"):
        read_settings({"code_share": 0.5, "num_samples": 3}, "here")
    with pytest.raises(ValueError, match="'score_share' must be a number from"):
        FeatureSettings(score_share=0.0)
