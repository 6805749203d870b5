"""Streaming AUPRO: within its own bound always, within 1e-4 at the defaults, in memory that does not grow."""

import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_reference import brute_aupro, defect_maps, small_test_sets

from iltm_anomaly.metrics import StreamingAUPRO, aupro, streaming


@settings(max_examples=100, deadline=None)
@given(small_test_sets(max_images=8), st.sampled_from([0.05, 0.3, 1.0]), st.sampled_from([1, 20, 10**6]))
def test_bound_holds_at_the_coarsest_resolution(test_set, limit, buffered):
    maps, masks = test_set
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "BUFFERED_SCORES", buffered)
        parts = [StreamingAUPRO(limit, resolution=16) for _ in range(2)]
        for i, pair in enumerate(zip(maps, masks, strict=True)):
            parts[i % 2].update([pair[0]], [pair[1]])
        metric = parts[0].merge(parts[1])
        assert abs(metric.compute() - brute_aupro(maps, masks, limit)) <= metric.error_bound
        assert metric.images == len(maps)
        assert max(metric.normal.values.size, metric.anomalous.values.size) <= 3 * 16 + 2


def distributions():
    scores, masks = defect_maps(n=60, size=128, dtype=np.float64)
    image = np.arange(60)[:, None, None]
    yield "linear", scores, masks
    yield "float32", scores.astype(np.float32), masks
    yield "exponentiated", np.exp(20 * scores), masks
    yield "tied", np.round(scores, 1), masks
    yield "8-bit", (scores * 30 + 100).clip(0, 255).astype(np.uint8), masks
    yield "constant", np.zeros_like(scores), masks
    yield "mostly zero", np.where(scores > 1, scores, 0), masks
    yield "infinite tail", np.where(scores > 2, np.inf, scores), masks
    yield "rising from image to image", scores + 0.2 * image, masks
    yield "falling from image to image", scores - 0.2 * image, masks
    yield "each image finer than the last", scores * 0.5**image, masks
    yield "each image coarser than the last", scores * 2.0**image, masks
    yield "first image far too wide", np.where(image == 0, scores * 1e9, scores), masks
    yield "tiny differences", 1 + scores * 1e-9, masks
    yield "sorted over the whole set", np.sort(scores.ravel()).reshape(scores.shape), masks


@pytest.mark.parametrize(("scores", "masks"), [pytest.param(*c[1:], id=c[0]) for c in distributions()])
def test_within_1e4_of_exact(scores, masks, monkeypatch):
    monkeypatch.setattr(streaming, "BUFFERED_SCORES", 1 << 16)  # many updates of the summary, as in a long stream
    exact = aupro(scores, masks)
    metric = StreamingAUPRO()
    for start in range(0, len(scores), 4):
        metric.update(scores[start : start + 4], masks[start : start + 4])
    error = abs(metric.compute() - exact)
    assert error <= 1e-4 and error <= metric.error_bound <= 1e-3


def test_default_bound_on_a_shuffled_stream_is_below_1e4():
    scores, masks = defect_maps(n=80, size=128)
    metric = StreamingAUPRO()
    metric.update(scores, masks)
    assert metric.error_bound < 1e-4


def test_invariant_under_increasing_transforms():
    scores, masks = defect_maps(n=20, dtype=np.float64)
    values = []
    for maps in (scores, np.exp(20 * scores), np.arctan(scores)):
        metric = StreamingAUPRO(resolution=500)
        metric.update(maps, masks)
        values.append((metric.compute(), metric.error_bound))
    assert values[0] == values[1] == values[2]


def test_merge_of_many_processes_is_order_independent_within_the_bound():
    scores, masks = defect_maps(n=32, size=64)
    exact = aupro(scores, masks)
    parts = [StreamingAUPRO(resolution=2000) for _ in range(8)]
    for i, part in enumerate(parts):
        part.update(scores[i::8], masks[i::8])
    parts = [StreamingAUPRO.from_state_dict(p.state_dict()) if i % 2 else pickle.loads(pickle.dumps(p))
             for i, p in enumerate(parts)]  # fmt: skip
    for order in (range(8), reversed(range(8))):
        total = StreamingAUPRO(resolution=2000)
        for i in order:
            total.merge(parts[i])
        assert total.images == 32
        assert abs(total.compute() - exact) <= min(total.error_bound, 1e-3)
    with pytest.raises(ValueError, match="limits"):
        total.merge(StreamingAUPRO(limit=0.1))


def test_state_does_not_grow_with_the_images():
    scores, masks = defect_maps(n=16, size=256)
    metric = StreamingAUPRO(resolution=4096)
    peaks = []
    for repeat in range(6):
        tracemalloc.start()
        for i in range(16):
            metric.update(scores[i : i + 1] + repeat * 0.1, masks[i : i + 1])
        metric.compute()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert metric.normal.values.size <= 3 * 4096 + 2
        assert sum(array.nbytes for array in metric.state_dict().values() if isinstance(array, np.ndarray)) < 1e6
    assert peaks[-1] < 1.2 * peaks[0]


def test_curve_and_continuing_after_compute():
    scores, masks = defect_maps(n=12)
    metric = StreamingAUPRO()
    metric.update(scores[:6], masks[:6])
    curve = metric.compute(return_curve=True)
    exact = aupro(scores[:6], masks[:6], return_curve=True)
    grid = np.linspace(0, 0.3, 50)
    assert np.interp(grid, curve.fpr, curve.pro) == pytest.approx(np.interp(grid, exact.fpr, exact.pro), abs=1e-3)
    assert curve.fpr[-1] == 0.3 and curve.aupro == metric.compute()
    metric.update(scores[6:], masks[6:])
    assert metric.compute() == pytest.approx(aupro(scores, masks), abs=1e-4)
    metric.reset()
    assert metric.images == 0


def test_errors():
    scores, masks = defect_maps(n=4, size=16)
    metric = StreamingAUPRO()
    with pytest.raises(ValueError, match="no anomalous pixel in any of the 0"):
        metric.compute()
    metric.update(scores[:1], [None])
    with pytest.raises(ValueError, match="no anomalous pixel in any of the 1"):
        metric.compute()
    scores[2, 0, 0] = np.nan
    with pytest.raises(ValueError, match="image 2 contain NaN"):
        metric.update(scores, masks)
    assert metric.images == 1  # the invalid batch was refused as a whole
    full = StreamingAUPRO()
    full.update(scores[:1], np.ones_like(masks[:1]))
    with pytest.raises(ValueError, match="no normal pixel"):
        full.compute()
    with pytest.raises(ValueError, match="resolution"):
        StreamingAUPRO(resolution=1)
