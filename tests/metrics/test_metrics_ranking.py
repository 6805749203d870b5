"""AUROC, AUPR, F1 and Dice against brute force; per-image statistics; everything at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from metrics_reference import brute_aupro, defect_maps, small_test_sets

from iltm_anomaly.metrics import (
    aupr,
    aupro,
    best_dice,
    best_f1,
    dice,
    evaluate_maps,
    image_auroc,
    image_curves,
    per_image_aupro,
    per_image_auroc,
    pixel_auroc,
)


def pooled(maps, masks):
    scores = np.concatenate([np.ravel(m) for m in maps]).astype(np.float64)
    truth = [np.zeros(np.shape(m), bool) if k is None else k for m, k in zip(maps, masks, strict=True)]
    return scores, np.concatenate([np.ravel(k) for k in truth])


def brute_auroc(scores, truth):
    difference = scores[truth][:, None] - scores[~truth][None]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def brute_precision_recall(scores, truth):
    """(average precision, best F1) over all distinct thresholds."""
    area = last_recall = best = 0.0
    for threshold in np.unique(scores)[::-1]:
        detected = scores >= threshold
        hits = (detected & truth).sum()
        area += (hits / truth.sum() - last_recall) * hits / detected.sum()
        last_recall = hits / truth.sum()
        best = max(best, 2 * hits / (detected.sum() + truth.sum()))
    return area, best


@settings(max_examples=100, deadline=None)
@given(small_test_sets())
def test_pixel_metrics_equal_brute_force(test_set):
    scores, truth = pooled(*test_set)
    area, f1 = brute_precision_recall(scores, truth)
    assert pixel_auroc(*test_set) == pytest.approx(brute_auroc(scores, truth), abs=1e-12)
    assert aupr(*test_set) == pytest.approx(area, abs=1e-12)
    value, threshold = best_dice(*test_set, return_threshold=True)
    assert value == pytest.approx(f1, abs=1e-12)
    assert dice(*test_set, threshold) == pytest.approx(value, abs=1e-12)
    assert best_f1(*test_set) == best_dice(*test_set) == value


def test_the_areas_of_image_curves_are_the_metrics():
    scores, labels = np.array([3.0, 1, 2, 2, 5, 4, 2, 0]), np.array([1, 0, 1, 0, 1, 0, 0, 0])
    curves = image_curves(scores, labels)
    assert curves.thresholds.tolist() == [5, 4, 3, 2, 1, 0]
    assert curves.recall.tolist() == [1 / 3, 1 / 3, 2 / 3, 1, 1, 1]
    assert curves.false_alarms.tolist() == [0, 1 / 5, 1 / 5, 3 / 5, 4 / 5, 1]
    across, up = (np.append(0, values) for values in (curves.false_alarms, curves.recall))
    assert np.trapezoid(up, across) == pytest.approx(image_auroc(scores, labels), abs=1e-12)
    gained = np.diff(curves.recall, prepend=0)
    assert np.sum(gained * curves.precision) == pytest.approx(aupr(scores, labels), abs=1e-12)
    with pytest.raises(ValueError, match="a curve is undefined: no good image"):
        image_curves([1, 2], [1, 1])


def test_image_metrics_take_lists_arrays_and_tensors():
    scores, labels = [0.1, 0.4, 0.4, 0.9, 0.2], [0, 0, 1, 1, 0]
    area, f1 = brute_precision_recall(np.array(scores), np.array(labels, bool))
    for s, y in (
        (scores, labels),
        (np.array(scores), np.array(labels, bool)),
        (torch.tensor(scores), torch.tensor(labels)),
    ):
        assert image_auroc(s, y) == pytest.approx(5.5 / 6)
        assert aupr(s, y) == pytest.approx(area)
        assert best_f1(s, y) == pytest.approx(f1)
    assert best_f1(scores, labels, return_threshold=True)[1] == 0.4
    assert aupr(iter(scores), labels) == pytest.approx(area)
    assert image_auroc([-np.inf, np.inf, 0.0], [0, 1, 0]) == 1.0


def test_dice_at_a_threshold():
    score = np.array([[0.1, 0.5], [0.7, 0.9]], dtype=np.float32)
    mask = np.array([[0, 1], [0, 1]])
    assert dice([score], [mask], 0.5) == pytest.approx(2 * 2 / 5)
    assert dice([score], [mask], np.inf) == 0.0
    assert dice([score], [None], 2.0) == 1.0
    # 0.1 as float32 is above 0.1: the threshold must not be rounded to the map's precision
    assert dice([score], [np.array([[1, 0], [0, 0]])], 0.1) == pytest.approx(2 / 5)
    with pytest.raises(ValueError, match="NaN"):
        dice([score], [mask], np.nan)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: image_auroc([0.1, 0.2], [1, 1]), "no good image among the 2"),
        (lambda: image_auroc([0.1, 0.2], [0, 0]), "no anomalous image among the 2"),
        (lambda: image_auroc([0.1, np.nan], [0, 1]), "score of image 1 is NaN"),
        (lambda: image_auroc([0.1, 0.3], [0, 2]), "label of image 1"),
        (lambda: image_auroc([0.1, 0.3], [0, 1, 1]), "2 image scores but 3 labels"),
        (lambda: image_auroc([], []), "no image"),
        (lambda: aupr([0.1, 0.2], [0, 0]), "AUPR is undefined"),
        (lambda: best_f1([0.1, 0.2], [0, 0]), "F1 is undefined"),
        (lambda: pixel_auroc(np.zeros((2, 4, 4)), np.zeros((2, 4, 4))), "anomalous pixel"),
        (lambda: pixel_auroc(np.zeros((2, 4, 4)), np.ones((2, 4, 4))), "normal pixel"),
        (lambda: per_image_auroc(np.zeros((2, 4, 4)), np.zeros((2, 4, 4))), "defined|undefined"),
        (lambda: evaluate_maps(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)), [1, 2, 3], [0, 1, 1]), "2 maps but 3"),
    ],
)
def test_undefined_and_invalid(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_per_image_mean_and_standard_deviation():
    scores, masks = defect_maps(n=6)
    masks[1] = True  # no normal pixel: undefined
    result = per_image_auroc(scores, masks)
    expected = [
        brute_auroc(s.ravel(), m.ravel()) for s, m in zip(scores, masks, strict=True) if m.any() and not m.all()
    ]
    assert np.isnan(result.values[[1, 4, 5]]).all() and np.isfinite(result.values[[0, 2, 3]]).all()
    assert result.values[[0, 2, 3]] == pytest.approx(expected)
    assert (result.mean, result.std) == (pytest.approx(np.mean(expected)), pytest.approx(np.std(expected)))
    overlap = per_image_aupro(scores, masks, 0.2)
    expected = [aupro([scores[i]], [masks[i]], 0.2) for i in (0, 2, 3)]
    assert (overlap.mean, overlap.std) == (pytest.approx(np.mean(expected)), pytest.approx(np.std(expected)))


@settings(max_examples=40, deadline=None)
@given(small_test_sets())
def test_evaluate_maps_agrees_with_the_single_metrics(test_set):
    result = evaluate_maps(*test_set)
    assert result["aupro"] == pytest.approx(brute_aupro(*test_set), abs=1e-12)
    assert result["pixel_auroc"] == pixel_auroc(*test_set)
    assert result["aupr"] == aupr(*test_set)
    assert result["best_dice"] == best_dice(*test_set)


def test_evaluate_maps_keys_and_defaults():
    scores, masks = defect_maps()
    result = evaluate_maps(scores, masks)
    assert all(type(value) is float for value in result.values())
    assert set(result) == {
        *("pixel_auroc", "aupro", "aupr", "best_dice", "image_auroc", "image_aupr", "image_best_f1"),
        *("per_image_auroc_mean", "per_image_auroc_std", "per_image_aupro_mean", "per_image_aupro_std"),
    }
    labels = masks.any(axis=(1, 2))
    assert result["image_auroc"] == image_auroc(scores.max(axis=(1, 2)), labels)
    assert result["per_image_auroc_mean"] == per_image_auroc(scores, masks).mean
    assert result["per_image_aupro_std"] == per_image_aupro(scores, masks).std
    means = scores.mean(axis=(1, 2))
    assert evaluate_maps(scores, masks, means, ~labels)["image_auroc"] == image_auroc(means, ~labels)


def test_evaluate_maps_gives_none_for_undefined_metrics():
    scores, masks = defect_maps()
    no_good = evaluate_maps(scores[:4], masks[:4])
    assert no_good["image_auroc"] is None and no_good["aupro"] is not None
    good_only = evaluate_maps(scores, [None] * len(scores))
    assert set(good_only.values()) == {None}
    without_masks = evaluate_maps(scores, [None] * len(scores), labels=masks.any(axis=(1, 2)))
    assert without_masks["image_auroc"] is not None and without_masks["aupro"] is None
