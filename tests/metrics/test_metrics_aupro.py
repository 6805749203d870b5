"""Exact AUPRO: equal to brute force on small maps and to the official algorithm on larger ones."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_reference import brute_aupro, defect_maps, small_test_sets
from scipy import ndimage

from iltm_anomaly.metrics import aupro, evaluate_maps

LIMITS = st.sampled_from([0.01, 0.1, 0.3, 0.5, 1.0])


def official_aupro(maps, masks, limit=0.3):
    """The published procedure: sort all pixels together, cumulate both rates, keep the last of each tie, integrate."""
    structure = np.ones((3,) * np.ndim(maps[0]))
    regions, scores, false, overlap = 0, [], [], []
    for score_map, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask, structure)
        gain = np.zeros(labels.shape)
        for label in range(1, count + 1):
            gain[labels == label] = 1 / np.count_nonzero(labels == label)
        regions += count
        scores.append(np.ravel(score_map))
        false.append((labels == 0).ravel())
        overlap.append(gain.ravel())
    scores, false, overlap = (np.concatenate(x) for x in (scores, false, overlap))
    order = np.argsort(scores, kind="stable")[::-1]
    keep = np.append(np.diff(scores[order]) != 0, True)
    fpr = np.append(0, np.cumsum(false[order], dtype=np.float64)[keep] / false.sum())
    pro = np.append(0, np.cumsum(overlap[order])[keep] / regions)
    stop = np.searchsorted(fpr, limit)
    pro_limit = np.interp(limit, fpr[stop - 1 : stop + 1], pro[stop - 1 : stop + 1])
    return np.trapezoid(np.append(pro[:stop], pro_limit), np.append(fpr[:stop], limit)) / limit


@settings(max_examples=150, deadline=None)
@given(small_test_sets(), LIMITS)
def test_equals_brute_force_in_2d(test_set, limit):
    assert aupro(*test_set, limit) == pytest.approx(brute_aupro(*test_set, limit), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(small_test_sets(ndim=3, side=4), LIMITS)
def test_equals_brute_force_in_3d(test_set, limit):
    assert aupro(*test_set, limit) == pytest.approx(brute_aupro(*test_set, limit), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(small_test_sets(), LIMITS)
def test_curve_is_the_curve_of_the_value(test_set, limit):
    curve = aupro(*test_set, limit, return_curve=True)
    assert curve.aupro == aupro(*test_set, limit)
    assert np.trapezoid(curve.pro, curve.fpr) / limit == pytest.approx(curve.aupro, abs=1e-12)
    assert (np.diff(curve.fpr) >= 0).all() and (np.diff(curve.pro) >= 0).all()
    assert curve.fpr[0] == curve.pro[0] == 0 and curve.fpr[-1] == limit and curve.pro.max() <= 1


@settings(max_examples=60, deadline=None)
@given(small_test_sets(), LIMITS, st.integers(0, 2**32 - 1))
def test_invariant_under_any_increasing_transform(test_set, limit, seed):
    maps, masks = test_set
    levels = np.unique(np.concatenate([np.ravel(m) for m in maps]))
    # strictly rising values that span 600 orders of magnitude, as the exponential of a map would
    values = np.exp(np.sort(np.random.default_rng(seed).uniform(-690, 690, levels.size)))
    transformed = [values[np.searchsorted(levels, m)] for m in maps]
    assert aupro(transformed, masks, limit) == aupro(maps, masks, limit)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-6), (np.float16, 1e-6)])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_equals_official_algorithm(dtype, tolerance, limit):
    scores, masks = defect_maps(dtype=dtype)
    assert abs(aupro(scores, masks, limit) - official_aupro(scores, masks, limit)) < tolerance


def test_equals_official_algorithm_on_8_bit_and_heavy_tailed_scores():
    scores, masks = defect_maps(dtype=np.float64)
    for maps in ((scores * 30 + 100).clip(0, 255).astype(np.uint8), np.exp(np.exp(scores)), np.round(scores)):
        assert abs(aupro(maps, masks) - official_aupro(maps, masks)) < 1e-9


def test_equals_official_algorithm_in_3d():
    scores, masks = defect_maps(n=24, size=32)
    volumes, truths = scores.reshape(3, 8, 32, 32), masks.reshape(3, 8, 32, 32)
    assert abs(aupro(volumes, truths) - official_aupro(volumes, truths)) < 1e-6
    assert aupro(volumes, truths) != pytest.approx(aupro(scores, masks), abs=1e-6)  # regions span slices


@pytest.mark.parametrize("limit", [0.1, 0.3, 1.0])
def test_constant_maps_give_the_diagonal(limit):
    mask = np.eye(5, dtype=bool)
    assert aupro(np.full((1, 5, 5), 7.0), mask[None], limit) == pytest.approx(limit / 2)


def test_perfect_and_inverted_maps():
    _, masks = defect_maps()
    assert aupro(masks.astype(float), masks) == 1.0
    assert aupro(-masks.astype(float), masks) == 0.0


def test_every_region_weighs_the_same():
    mask = np.zeros((20, 20), bool)
    mask[0:10, 0:10] = True
    mask[15, 15] = True
    score = np.zeros((20, 20))
    score[15, 15] = 1  # the region of one pixel is found, the one of a hundred is tied with the background
    assert aupro([score], [mask]) == pytest.approx(0.5 + 0.5 * 0.15)


def test_corners_connect_in_2d_and_3d():
    for ndim in (2, 3):
        mask = np.zeros((4,) * ndim, bool)
        mask[(0,) * ndim] = mask[(1,) * ndim] = True
        score = np.zeros(mask.shape)
        score[(0,) * ndim] = 1
        # one region of two pixels, half of it found: PRO starts at 1/2; as two regions it would be the same,
        # so a third pixel tells them apart
        mask[(3,) * ndim] = True
        score[(3,) * ndim] = 1
        assert aupro([score], [mask], 1.0) == pytest.approx(0.75 + 0.25 * 0.5)


def test_thousands_of_regions_of_one_pixel():
    mask = np.zeros((200, 200), bool)
    mask[::2, ::2] = True
    score = np.random.default_rng(0).normal(size=mask.shape) + mask
    assert ndimage.label(mask)[1] == 10_000
    order = np.argsort(-score.ravel())
    fpr = np.append(0, np.cumsum(~mask.ravel()[order])) / (~mask).sum()
    tpr = np.append(0, np.cumsum(mask.ravel()[order])) / mask.sum()
    stop = np.searchsorted(fpr, 0.3, side="right")
    expected = np.trapezoid(np.append(tpr[:stop], tpr[stop - 1]), np.append(fpr[:stop], 0.3)) / 0.3
    assert aupro([score], [mask]) == pytest.approx(expected, abs=1e-9)


def test_infinite_scores_are_ranked():
    scores, masks = defect_maps(dtype=np.float64)
    infinite, finite = scores.copy(), scores.copy()
    infinite[scores > 1.5], finite[scores > 1.5] = np.inf, 1e9
    infinite[scores < -1.5], finite[scores < -1.5] = -np.inf, -1e9
    assert aupro(infinite, masks) == aupro(finite, masks)
    with pytest.raises(ValueError, match="image 3 are not finite"):
        scores[3, 0, 0] = np.inf
        aupro(scores, masks, allow_infinite=False)


def test_no_good_image_and_good_images_count_in_the_fpr():
    scores, masks = defect_maps(n=6)
    only_bad = aupro(scores[:4], masks[:4])
    assert only_bad == pytest.approx(official_aupro(scores[:4], masks[:4]), abs=1e-9)
    quiet = [*scores[:4], np.full((64, 64), -100.0)]
    assert aupro(quiet, [*masks[:4], None]) > only_bad


def test_layouts_agree():
    scores, masks = defect_maps()
    expected = aupro(scores, masks)
    assert aupro(scores[:, None], masks[:, None].astype(np.uint8)) == expected
    assert aupro(torch.tensor(scores), torch.tensor(masks)) == expected
    assert aupro(torch.tensor(scores)[:, None].requires_grad_(), torch.tensor(masks)[:, None].float()) == expected
    assert aupro(list(scores[:, None]), [torch.tensor(m) for m in masks]) == expected
    assert aupro(iter(scores), iter(masks)) == expected
    assert aupro(scores[:, None], masks[:, None], spatial_dims=3) == expected  # volumes of depth 1
    assert aupro(scores, [m if m.any() else None for m in masks]) == expected
    assert aupro(np.moveaxis(np.moveaxis(scores, 1, 2).copy(), 2, 1), masks) == expected  # not contiguous
    assert aupro(scores[0], masks[0]) == aupro(scores[:1], masks[:1])
    assert aupro([s[None, None] for s in scores], list(masks)) == expected  # batches of one image
    half = torch.tensor(scores).bfloat16()
    assert aupro(half, masks) == aupro(half.float(), masks)
    assert aupro(scores[None, None], masks[None]) == aupro([scores], [masks])  # one volume


def test_maps_of_different_sizes():
    scores, masks = defect_maps(n=3)
    ragged = [scores[0], scores[1][:40, :30], scores[2].T[:50]]
    truths = [masks[0], masks[1][:40, :30], masks[2].T[:50]]
    assert aupro(ragged, truths) == pytest.approx(official_aupro(ragged, truths), abs=1e-9)
    as_objects = np.empty(3, dtype=object)
    as_objects[:] = ragged
    assert aupro(as_objects, truths) == aupro(ragged, truths)


def test_inputs_are_not_changed():
    scores, masks = defect_maps()
    scores_before, masks_before = scores.copy(), masks.copy()
    aupro(scores, masks)
    aupro(scores, masks, return_curve=True)
    evaluate_maps(scores, masks)
    assert (scores == scores_before).all() and (masks == masks_before).all()


def test_thin_curve_keeps_ends_and_shape():
    curve = aupro(*defect_maps(), return_curve=True)
    thin = curve.thin(200)
    assert curve.fpr.size > 5000 and thin.fpr.size <= 200 and thin.aupro == curve.aupro
    assert (thin.fpr[0], thin.fpr[-1], thin.pro[-1]) == (curve.fpr[0], curve.fpr[-1], curve.pro[-1])
    assert np.trapezoid(thin.pro, thin.fpr) / 0.3 == pytest.approx(curve.aupro, abs=2e-3)


def invalid_inputs():
    scores, masks = defect_maps(n=4, size=16)
    nan = scores.copy()
    nan[2, 3, 4] = np.nan
    grey = masks.astype(np.uint8) * 255
    some = masks.astype(float)
    some[1, 0, 0] = 0.5
    yield "NaN", (nan, masks), r"image 2 contain NaN \(first at \(3, 4\)\)"
    yield "shape", (list(scores), [masks[0], masks[1][:8], *masks[2:]]), r"image 1: scores have shape \(16, 16\)"
    yield "grey mask", (scores, grey), "mask of image 0 is not binary: it contains 255"
    yield "soft mask", (scores, some), "mask of image 1 is not binary: it contains 0.5"
    yield "text mask", (scores, masks.astype(str)), "mask of image 0 has dtype"
    yield "complex", (scores.astype(complex), masks), "scores of image 0 have dtype complex"
    yield "none", (scores, np.zeros_like(masks)), r"no anomalous pixel in any of the 4 masks \(images 0 to 3\)"
    yield "all", (scores, np.ones_like(masks)), "no normal pixel in any of the 4 masks"
    yield "count", (scores, masks[:3]), "4 score maps but 3 masks"
    yield "empty", ([], []), "no image to evaluate"
    yield "no masks", (scores, None), "masks are None"
    yield "number", (np.float64(3), masks), "scores are"
    yield "empty map", ([scores[0], scores[1][:0]], [masks[0], masks[1][:0]]), "scores of image 1 are empty"
    yield "map is None", ([scores[0], None], list(masks[:2])), "scores of image 1 are None"
    yield "rank", ([scores[0], scores[1][0]], [masks[0], masks[1][0]]), "image 1: shape"
    yield (
        "channels",
        (np.stack([scores] * 3, axis=1), np.stack([masks] * 3, axis=1), 0.3, False),
        r"image 0: shape \(3, 16, 16\) is not a 2-D map",
    )


@pytest.mark.parametrize(("arguments", "message"), [pytest.param(*c[1:], id=c[0]) for c in invalid_inputs()])
def test_invalid_input_names_the_image(arguments, message):
    with pytest.raises(ValueError, match=message):
        aupro(*arguments, spatial_dims=2 if len(arguments) == 4 else None)


@pytest.mark.parametrize("limit", [0, -0.1, 1.01, float("nan")])
def test_invalid_limit(limit):
    with pytest.raises(ValueError, match="limit must lie in"):
        aupro(*defect_maps(n=3, size=16), limit)


def test_memory_is_one_copy_of_the_pixels():
    scores, masks = defect_maps(n=40, size=128)
    aupro(scores[:1], masks[:1])  # imports
    tracemalloc.start()
    aupro(scores, masks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # one copy of the normal scores, plus the copies that are cut out of the defective two thirds
    assert peak < 2.1 * scores.nbytes
