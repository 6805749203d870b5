import math

import pytest
import torch

from iltm_anomaly import masking


def test_the_default_threshold_is_the_lineage_s_for_256_codes():
    assert masking.default_token_threshold(256) == pytest.approx(0.005, abs=1e-4)


def test_pointwise_rule_rejects_exactly_what_is_less_likely_than_tau():
    likelihood = torch.tensor([[0.5, 0.006, 0.005, 0.0049, 1e-6]]).log()
    keep = masking.keep_mask(masking.token_surprise(likelihood), masking.surprise_limit(0.005) + 1e-6)
    assert keep.tolist() == [[True, True, True, False, False]]


def test_tau_zero_rejects_nothing_and_a_negative_one_is_an_error():
    assert masking.keep_mask(torch.tensor([1e9]), masking.surprise_limit(0.0)).all()
    with pytest.raises(ValueError, match="probability"):
        masking.surprise_limit(-0.1)


def test_neighbourhood_finds_a_weak_region_that_single_tokens_do_not_show():
    generator = torch.Generator().manual_seed(0)
    likelihood = -torch.rand(64, 16, 16, generator=generator) * 2
    likelihood[:4, 4:9, 4:9] -= 1.2  # never worse than the worst single normal tokens by much
    defect = torch.zeros(64, 16, 16, dtype=torch.bool)
    defect[:4, 5:8, 5:8] = True

    def found(neighbourhood: float) -> float:
        surprise = masking.token_surprise(likelihood, neighbourhood)
        keep = masking.keep_mask(surprise, masking.outlier_limit(surprise))
        return masking.masked_shares(keep, defect, ~defect)[0]

    assert found(1.0) > 0.9
    assert found(0.0) < 0.2


def test_neighbourhood_averages_within_an_image_only():
    likelihood = torch.zeros(2, 8, 8)
    likelihood[0] = -5.0
    surprise = masking.token_surprise(likelihood, 1.0)
    assert torch.allclose(surprise[0], torch.full((8, 8), 5.0))
    assert torch.equal(surprise[1], torch.zeros(8, 8))


def test_outlier_limit_is_three_standard_deviations_of_a_normal_sample_whatever_the_outliers():
    sample = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    assert masking.outlier_limit(sample) == pytest.approx(3.0, abs=0.05)
    contaminated = torch.cat([sample, torch.full((5_000,), 100.0)])
    assert masking.outlier_limit(contaminated) == pytest.approx(3.2, abs=0.15)


def test_threshold_of_scores_is_three_standard_deviations_of_their_logarithm():
    good = torch.randn(70_000, generator=torch.Generator().manual_seed(0)).mul(0.2).exp()
    assert masking.score_threshold(good) == pytest.approx(math.exp(0.6), rel=0.02)
    assert masking.score_threshold(torch.zeros(5)) == pytest.approx(1e-6)  # maps of zeros have a logarithm too


def test_iou_and_convergence():
    first = torch.tensor([False, False, True, True])
    second = torch.tensor([False, True, False, True])
    assert masking.mask_iou(first, second) == pytest.approx(1 / 3)
    assert masking.mask_iou(torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)) == 1.0
    assert masking.has_converged(first, first)
    wide = torch.ones(1000, dtype=torch.bool)
    wide[:100] = False
    moved = torch.ones(1000, dtype=torch.bool)
    moved[30:160] = False
    assert not masking.has_converged(wide, moved)


def test_a_mask_that_leaves_too_little_is_refused_and_names_the_threshold():
    keep = torch.tensor([True] + [False] * 9)
    rule = masking.RejectionRule(token_threshold=0.2)
    with pytest.raises(masking.TokenThresholdError, match=r"90%.*allows 50%: lower token_threshold"):
        masking.check_masked_fraction(keep, -math.log(0.2), rule)
    with pytest.raises(masking.TokenThresholdError, match=r"outlier_scale 3\).*raise outlier_scale"):
        masking.check_masked_fraction(keep, 1.0, masking.RejectionRule())
    assert masking.check_masked_fraction(keep, 1.0, rule, largest=0.95) == pytest.approx(0.9)


@pytest.mark.parametrize("values", [{"token_threshold": 5}, {"neighbourhood": -1}, {"outlier_scale": math.nan}])
def test_a_rule_out_of_range_is_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        masking.RejectionRule(**values)


def test_the_score_threshold_does_not_depend_on_where_the_scale_of_scores_begins():
    scores = torch.rand(200, generator=torch.Generator().manual_seed(0)) + 0.1
    expected = masking.score_threshold(scores)
    assert masking.score_threshold(scores - 0.7, lowest=-0.7) == pytest.approx(expected - 0.7, rel=1e-4)
    assert 0.3 < masking.score_threshold(scores - 0.7, lowest=-0.7) < 10


@pytest.mark.parametrize(("spatial", "grid"), [((16, 24), (2, 3)), ((8, 16, 8), (1, 2, 1))])
def test_defect_tokens_have_a_quarter_of_their_pixels_in_the_mask(spatial, grid):
    mask = torch.zeros(1, *spatial)
    mask[(0, *[slice(0, 8)] * len(spatial))] = 1  # covers the first token
    mask[(0, *[slice(0, 1)] * (len(spatial) - 1), -1)] = 1  # one pixel of the last one along the last axis
    defect, normal = masking.defect_tokens(mask, grid)
    assert defect.shape == normal.shape == (1, *grid)
    assert defect.sum() == 1 and bool(defect.flatten()[0])
    touched = 1 if len(spatial) == 2 else 0  # in 3-D the pixel lies in the first token
    assert normal.sum() == math.prod(grid) - 1 - touched
    assert not (defect & normal).any()


def test_masked_shares_are_none_where_there_is_nothing_to_share():
    keep = torch.tensor([True, False])
    none = torch.zeros(2, dtype=torch.bool)
    assert masking.masked_shares(keep, none, ~none) == (None, 0.5)
