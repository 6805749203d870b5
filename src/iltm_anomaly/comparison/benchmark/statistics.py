"""Paired bootstrap over test images.

How often a draw takes an image is Poisson distributed with mean 1 (Chamandy et al., "Estimating uncertainty for massive data
streams", Google, 2012). It depends on draw, category and image alone, not on method, contamination or seed. So two methods have
the same draws, wherever they were scored, and so have two seeds, whose test sets overlap: a paired difference is the difference
draw by draw, a mean over seeds the mean draw by draw. Each cell stores its metrics of every draw, and no map is needed to compare
cells.

The pixels of a cell are sorted into bins once, by quantiles of their scores, and a draw adds up the histograms of its images. A
bin is treated as the exact metrics treat a tie. The result is exact for maps with at most `BINS` different values, and close to
exact for others (a test says how close).
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iltm_anomaly.metrics.region_overlap import region_weights
from iltm_anomaly.seeds import sample_seed, uniforms

BINS = 2048
DRAWS = 500
LEVEL = 0.95  # of intervals
_POISSON = np.cumsum([1 / math.e / math.factorial(k) for k in range(12)])  # P(count <= k), mean 1
_SAMPLED_PIXELS = 2_000_000  # the edges of the bins are quantiles of about so many pixels


@dataclass(frozen=True)
class ImageStatistics:
    """All that the metrics of any draw of the images need.

    Args:
        normal, anomalous: (N, K) numbers of pixels in each of K bins, by rising score.
        weights: (N, K) float, the same for anomalous pixels, each counted as one over the size of its defect region.
        regions: (N,) number of defect regions of each image.
        scores: (N,) image scores.
        labels: (N,) bool, True for defective images.
    """

    normal: np.ndarray
    anomalous: np.ndarray
    weights: np.ndarray
    regions: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def arrays(self) -> dict[str, Any]:
        """The arrays by name, for `numpy.savez`; the constructor takes them back."""
        return dict(vars(self))


def image_statistics(
    maps: Sequence[np.ndarray], masks: Sequence[np.ndarray], scores: np.ndarray, bins: int = BINS
) -> ImageStatistics:
    """Histograms of every image.

    Args:
        maps: (H, W) scores of each image's pixels, of any sizes.
        masks: (H, W) bool per image, all False for a good one.
        scores: (N,) image scores.
        bins: the largest number of bins.
    """
    edges = _edges(maps, bins)
    count = len(edges) + 1
    normal = np.zeros((len(maps), count), np.uint32)
    anomalous = np.zeros_like(normal)
    weights = np.zeros((len(maps), count), np.float32)
    regions = np.zeros(len(maps), np.int64)
    for index, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        places = np.searchsorted(edges, values, side="right")
        normal[index] = np.bincount(places[~mask], minlength=count)
        if mask.any():
            share, regions[index] = region_weights(mask)
            anomalous[index] = np.bincount(places[mask], minlength=count)
            weights[index] = np.bincount(places[mask], weights=share, minlength=count)
    labels = np.array([bool(mask.any()) for mask in masks])
    return ImageStatistics(normal, anomalous, weights, regions, np.asarray(scores, np.float64), labels)


def _edges(maps: Sequence[np.ndarray], bins: int) -> np.ndarray:
    """Lower edges of all bins but the first, which has none, in rising order."""
    step = max(1, sum(values.size for values in maps) // _SAMPLED_PIXELS)
    pixels = np.sort(np.concatenate([values.reshape(-1)[::step] for values in maps]))
    distinct = pixels[np.flatnonzero(np.diff(pixels, prepend=np.nan) != 0)]  # NaN != 0: the first one counts
    if len(distinct) <= bins:
        return distinct[1:]
    return np.unique(pixels[np.linspace(0, len(pixels), bins, endpoint=False).astype(int)[1:]])


def draw_images(labels: np.ndarray, rows: Sequence[int], category: str, draws: int = DRAWS) -> np.ndarray:
    """How often each test image is in each draw, (draws, N) int32.

    Args:
        labels: (N,) bool, True for defective images. A draw without a good or without a defective image, as there may be of a
            small test set, takes each image of that kind once.
        rows: (N,) row of each image in the category's own test split, which identifies it.
        category: name of the category.
    """
    key = int.from_bytes(hashlib.sha256(category.encode()).digest()[:8])
    uniform = np.stack([uniforms(sample_seed(key, row), draws) for row in rows], axis=1)
    counts = np.searchsorted(_POISSON, uniform, side="right").astype(np.int32)
    for value in (False, True):
        members = np.flatnonzero(labels == value)
        counts[np.ix_(counts[:, members].sum(1) == 0, members)] = 1
    return counts


def metrics_of_draws(statistics: ImageStatistics, counts: np.ndarray, limit: float = 0.3) -> dict[str, np.ndarray]:
    """Pooled pixel AUROC and AUPRO, and image AUROC, of every draw: (draws,) each, by the names of `headings.METRICS`. A metric
    is left out if the test set lacks the good or the defective images that it needs.

    Args:
        statistics: of the N test images.
        counts: (draws, N) of `draw_images`.
        limit: the false positive rate up to which AUPRO is integrated.
    """
    times = counts.astype(np.float64)
    normal = times @ statistics.normal
    anomalous = times @ statistics.anomalous
    found = {}
    if statistics.labels.any() and statistics.normal.any():
        below = np.cumsum(normal, axis=1) - normal / 2  # of a tie, half counts as below
        found["pixel_auroc"] = (anomalous * below).sum(1) / (normal.sum(1) * anomalous.sum(1))
        pro = np.cumsum((times @ statistics.weights)[:, ::-1], axis=1) / (times @ statistics.regions)[:, None]
        fpr = np.cumsum(normal[:, ::-1], axis=1) / normal.sum(1, keepdims=True)
        found["aupro"] = _area(fpr, pro, limit)
    good, defective = np.flatnonzero(~statistics.labels), np.flatnonzero(statistics.labels)
    if good.size and defective.size:
        difference = statistics.scores[defective][None] - statistics.scores[good][:, None]
        wins = (difference > 0) + 0.5 * (difference == 0)
        pairs = times[:, good].sum(1) * times[:, defective].sum(1)
        found["image_auroc"] = ((times[:, good] @ wins) * times[:, defective]).sum(1) / pairs
    return found


def _area(x: np.ndarray, y: np.ndarray, limit: float) -> np.ndarray:
    """Area under the lines through (0, 0) and the points (draws, K), from 0 to `limit`, divided by it."""
    x0, y0 = np.pad(x, ((0, 0), (1, 0)))[:, :-1], np.pad(y, ((0, 0), (1, 0)))[:, :-1]
    width = np.maximum(np.minimum(x, limit) - x0, 0.0)
    share = np.divide(width, x - x0, out=np.zeros_like(x), where=x > x0)
    return np.minimum((width * (y0 + share * (y - y0) / 2)).sum(1) / limit, 1.0)


def interval(differences: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of the draws (D,)."""
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def packed_draws(statistics: ImageStatistics, rows: Sequence[int], category: str) -> dict[str, Any]:
    """What a cell stores of all draws: their number and kind, and each metric as text. `rows` and `category` are those of
    `draw_images`."""
    draws = metrics_of_draws(statistics, draw_images(statistics.labels, rows, category))
    return {"count": DRAWS, "kind": "poisson"} | {metric: pack(values) for metric, values in draws.items()}


def pack(draws: np.ndarray) -> str:
    """Values in [0, 1] as one line of text, in hundred-thousandths, which is short in JSON."""
    return " ".join(str(round(value * 1e5)) for value in draws.tolist())


def unpack(text: str) -> np.ndarray:
    """The values in a text of `pack`, exact to five digits."""
    return np.array([int(word) for word in text.split()]) / 1e5
