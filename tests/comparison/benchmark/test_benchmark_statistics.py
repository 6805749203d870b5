"""The bootstrap against the exact metrics of the resampled images themselves."""

import numpy as np
import pytest

from iltm_anomaly.comparison.benchmark.statistics import (
    draw_images,
    image_statistics,
    interval,
    metrics_of_draws,
    pack,
    unpack,
)
from iltm_anomaly.headings import METRICS
from iltm_anomaly.metrics import evaluate_maps


def some_maps(values: int | None = None, seed: int = 0):
    """Maps that find half of each defect, on images of different sizes; with `values`, of so many different scores."""
    generator = np.random.default_rng(seed)
    maps, masks = [], []
    for number in range(14):
        height, width = 20 + number, 24
        mask = np.zeros((height, width), bool)
        if number >= 5:
            mask[2 : 4 + number // 2, 3:9] = True
            mask[-3:, -4:] = number % 2 == 0
        scores = generator.normal(size=(height, width)) + 1.5 * mask
        maps.append((scores if values is None else np.round(scores * values / 12) / 8).astype(np.float32))
        masks.append(mask)
    return maps, masks, np.array([m.max() + generator.normal() for m in maps])


def exactly(maps, masks, scores, chosen) -> dict[str, float]:
    labels = [int(masks[i].any()) for i in chosen]
    return evaluate_maps([maps[i] for i in chosen], [masks[i] for i in chosen], scores[chosen], labels)


def images_of(counts: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize(("values", "tolerance"), [(40, 1e-6), (None, 1e-3)])
def test_every_draw_has_the_metrics_of_its_images(values, tolerance):
    """Exact with fewer values than bins, where ties are frequent; close with a value of its own for every pixel."""
    maps, masks, scores = some_maps(values)
    assert (len(np.unique(np.concatenate([m.ravel() for m in maps]))) < 500) == (values is not None)
    statistics = image_statistics(maps, masks, scores, bins=500)
    counts = np.concatenate([np.ones((1, 14), int), draw_images(statistics.labels, range(14), "bottle", draws=25)])
    found = metrics_of_draws(statistics, counts)
    for draw, times in enumerate(counts):
        expected = exactly(maps, masks, scores, images_of(times))
        for metric in METRICS:
            assert found[metric][draw] == pytest.approx(expected[metric], abs=tolerance), (draw, metric)


def test_perfect_and_reversed_maps():
    _, masks, _ = some_maps()
    for maps, value in (([m.astype(float) for m in masks], 1.0), ([-m.astype(float) for m in masks], 0.0)):
        scores = np.array([m.any() * (1 if value else -1) for m in masks], float)
        statistics = image_statistics(maps, masks, scores)
        found = metrics_of_draws(statistics, draw_images(statistics.labels, range(14), "x", draws=5))
        for metric in METRICS:
            np.testing.assert_allclose(found[metric], value, atol=1e-12)


def test_draws_depend_on_category_and_image_alone():
    labels = np.array([False] * 20 + [True] * 32)
    counts = draw_images(labels, range(52), "bottle")
    assert counts.shape == (500, 52)
    assert np.array_equal(counts, draw_images(labels, range(52), "bottle"))
    assert not np.array_equal(counts, draw_images(labels, range(52), "cable"))
    # another seed's test set, in another order: an image that both have is in the same draws
    other = [51, 3, 60, 25]
    again = draw_images(np.array([True, False, True, True]), other, "bottle", draws=500)
    kept = (counts[:, 3] > 0) & (counts[:, [51, 25]].sum(1) > 0)  # the draws that lacked no kind
    assert kept.mean() > 0.4
    for column, row in ((0, 51), (1, 3), (3, 25)):
        assert np.array_equal(again[kept, column], counts[kept, row])
    # Poisson with mean 1: in a share of 1/e of the draws an image is not, in as many it is once
    np.testing.assert_allclose(counts.mean(0), 1, atol=0.2)
    assert counts.var() == pytest.approx(1, abs=0.03)
    assert [(counts == k).mean() for k in (0, 1, 2)] == pytest.approx(np.exp(-1) / np.array([1, 1, 2]), abs=0.01)
    # pinned: cells of other machines and days must be paired with these
    assert counts[0, :20].tolist() == [3, 3, 1, 0, 3, 1, 0, 0, 0, 1, 1, 1, 2, 0, 0, 1, 0, 3, 1, 3]


def test_a_draw_has_images_of_both_kinds():
    labels = np.array([False, True, True])
    counts = draw_images(labels, [0, 1, 2], "x")
    assert (counts[:, :1].sum(1) > 0).all() and (counts[:, 1:].sum(1) > 0).all()


def test_the_mean_over_seeds_that_share_images_is_as_uncertain_as_their_images_are():
    """Three seeds that test the same images say no more than one about how other images would do."""
    maps, masks, scores = some_maps()
    statistics = image_statistics(maps, masks, scores)
    draws = metrics_of_draws(statistics, draw_images(statistics.labels, range(14), "bottle"))["image_auroc"]
    other = metrics_of_draws(statistics, draw_images(statistics.labels, range(14, 28), "bottle"))["image_auroc"]
    ranked = scores.copy()
    ranked[:7] = scores[:7][::-1]  # of another training
    retrained = image_statistics(maps, masks, ranked)
    same = metrics_of_draws(retrained, draw_images(statistics.labels, range(14), "bottle"))["image_auroc"]
    assert np.std((draws + same) / 2) > 0.9 * np.std(draws)
    assert np.std((draws + other) / 2) < 0.8 * np.std(draws)


def test_without_good_images_only_the_image_metric_is_left_out():
    maps, masks, scores = (part[5:] for part in some_maps())
    statistics = image_statistics(maps, masks, scores)
    assert set(metrics_of_draws(statistics, np.ones((2, 9), int))) == {"pixel_auroc", "aupro"}


def test_packing_keeps_five_digits():
    values = np.random.default_rng(0).random(100)
    np.testing.assert_allclose(unpack(pack(values)), values, atol=5.1e-6)
    assert len(pack(values)) <= 600


def test_the_interval_holds_its_share_of_the_draws():
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))
