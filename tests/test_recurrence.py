"""What other images do not have is surprising, and loses weight where few images have it."""

import pytest
import torch

from iltm_anomaly.recurrence import REJECTED_AT, recurrence_surprise, recurrence_weights


def tokens(images: int = 30, seed: int = 0) -> torch.Tensor:
    """Every image holds the same things, at other places, with noise."""
    generator = torch.Generator().manual_seed(seed)
    things = 3 * torch.randn(16, 8, generator=generator)
    placed = torch.stack([things[torch.randperm(16, generator=generator)] for _ in range(images)])
    return (placed + 0.1 * torch.randn(placed.shape, generator=generator)).view(images, 4, 4, 8)


def keep_all(values: torch.Tensor) -> torch.Tensor:
    return torch.ones(values.shape[:3], dtype=torch.bool)


def test_what_no_other_image_has_is_the_most_surprising():
    values = tokens()
    values[4, 1, 2] = 20.0
    surprise = recurrence_surprise(values, keep_all(values), seed=0)
    assert surprise.argmax() == 4 * 16 + 1 * 4 + 2
    assert surprise[4, 1, 2] > 3 * surprise[5:].max()


def test_an_image_never_vouches_for_itself():
    values = tokens()
    values[4] = 20.0  # sixteen times the same thing, in one image
    surprise = recurrence_surprise(values, keep_all(values), seed=0)
    assert surprise[4].min() > 3 * surprise[5:].max()


def test_rejected_tokens_vouch_for_nobody():
    values = tokens()
    values[:6, 1, 2] = 20.0  # so many images have it that it seems normal
    before = recurrence_surprise(values, keep_all(values), seed=0)
    keep = keep_all(values)
    keep[:5, 1, 2] = False
    after = recurrence_surprise(values, keep, seed=0)
    assert before[5, 1, 2] < 5 < after[5, 1, 2]


def test_where_nobody_is_left_to_vouch_it_stays_finite():
    values = tokens(4)
    surprise = recurrence_surprise(values, torch.zeros(4, 4, 4, dtype=torch.bool), seed=0)
    assert bool(surprise.isfinite().all())


def test_one_image_alone_surprises_nobody():
    values = tokens(1)
    assert not recurrence_surprise(values, keep_all(values), seed=0).any()


def test_it_depends_on_the_seed_alone():
    values = tokens(100)
    first, same, other = (recurrence_surprise(values, keep_all(values), seed) for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)


def spread_out(images: int, odd: int) -> torch.Tensor:
    """Surprise about 1, and 3 at a token of each of the first `odd` images."""
    surprise = 1 + 0.2 * torch.rand(images, 4, 4, generator=torch.Generator().manual_seed(0))
    surprise[:odd, 0, 0] = torch.linspace(3, 3.3, odd)
    return surprise


def test_what_gathers_in_few_images_is_rejected_at_once():
    weights, limit = recurrence_weights(spread_out(40, 4), abnormal_share=0.25)
    assert not weights[:4, 0, 0].any() and weights[4:].all() and set(weights.unique().tolist()) == {0.0, 1.0}
    assert 1.2 < limit < 3


def test_what_many_images_have_keeps_most_of_its_weight():
    surprise = spread_out(40, 30)
    weights, limit = recurrence_weights(surprise, abnormal_share=0.25)
    assert limit > 3 and (weights[:, 0, 0] > 0.5).all()
    assert ((surprise > limit).flatten(1).any(1).float().mean() - 0.25).abs() <= 0.026  # by one image


def test_raised_limits_reject_softly():
    surprise = spread_out(40, 30)
    surprise[0, 0, 0] = 3.3 * 1.1
    surprise[1, 0, 0] = 3.3 * 2
    weights, limit = recurrence_weights(surprise, abnormal_share=0.25)
    assert weights[0, 0, 0].item() == pytest.approx((limit / 3.63) ** 4, rel=1e-3)
    assert surprise[1, 0, 0] > REJECTED_AT * limit and weights[1, 0, 0] == 0


def test_nothing_stands_out_of_what_is_all_alike():
    weights, _ = recurrence_weights(torch.ones(10, 4, 4), abnormal_share=0.25)
    assert weights.all()
