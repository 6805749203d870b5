"""Area under the per-region-overlap curve (AUPRO), exact.

Definition: P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger, C. Steger, "The MVTec Anomaly Detection Dataset: A
Comprehensive Real-World Dataset for Unsupervised Anomaly Detection", IJCV 129 (2021), and the evaluation code
published with the data set. At each threshold, PRO is the mean over all ground-truth regions of the share of the
region that is detected, FPR the share of all normal pixels that is. AUPRO is the area under PRO(FPR) from 0 to
`limit`, divided by `limit`.

Why no curve is needed for the area. A pixel of a region of n pixels adds 1/n to PRO from its own score downwards, so
it adds to the area its weight times the length of the FPR axis that lies below its score; where its score is tied
with normal pixels, half of the tie's step lies below. That needs the sorted scores of the top `limit` share of the
normal pixels only, and no argsort of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np

from ._inputs import check_limit, iterate_pairs


@dataclass(frozen=True)
class ProCurve:
    """PRO against FPR up to the limit.

    Attributes:
        fpr: (P,) false positive rate over all normal pixels, rising from 0 to `limit`.
        pro: (P,) mean share of each region that is detected, rising.
        thresholds: (P,) score at or above which a pixel counts as detected; +inf at the start. The last point is
            interpolated at `limit` and carries the threshold of the segment's far end.
        limit: upper end of the FPR axis.
        aupro: area under the curve divided by `limit`, in [0, 1].
    """

    fpr: np.ndarray
    pro: np.ndarray
    thresholds: np.ndarray
    limit: float
    aupro: float

    def thin(self, max_points: int = 2000) -> "ProCurve":
        """The same curve in at most about `max_points` points, evenly spaced along both axes, with the same `aupro`.

        Both axes, because a good map has its steep part within a handful of false alarms.
        """
        if self.fpr.size <= max_points:
            return self
        keep = [np.array([0, self.fpr.size - 1])]
        for axis in (self.fpr, self.pro):
            keep.append(np.searchsorted(axis, np.linspace(0.0, axis[-1], max_points // 2 - 1)))
        index = np.unique(np.concatenate(keep))
        return ProCurve(self.fpr[index], self.pro[index], self.thresholds[index], self.limit, self.aupro)


def region_weights(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Weights of the anomalous pixels of one mask and the number of its regions.

    Regions touch by an edge or a corner: 8 neighbours in 2-D, 26 in 3-D.

    Args:
        mask: (H, W) or (D, H, W), boolean, with at least one True.

    Returns:
        (P,) float64, one over the size of the pixel's region, in the order of `scores[mask]`; the number of regions.
    """
    from scipy import ndimage  # lazily: it takes longer to import than the rest of the package's metrics

    # Defects are small; labelling only their bounding box saves most of the time on large images.
    sides = [np.flatnonzero(mask.any(axis=tuple(j for j in range(mask.ndim) if j != i))) for i in range(mask.ndim)]
    box = mask[tuple(slice(side[0], side[-1] + 1) for side in sides)]
    labels, count = ndimage.label(box, structure=np.ones((3,) * box.ndim, dtype=bool))
    labels = labels[box]  # (P,), from 1
    return (1.0 / np.bincount(labels, minlength=count + 1)[1:])[labels - 1], count


class RegionPool:
    """Pixels of all images, pooled: scores of the normal ones, scores and weights of the anomalous ones.

    `add` the images, then call `aupro`, `curve` or `sorted_pixels`.
    """

    def __init__(self) -> None:
        self.normal: list[np.ndarray] = []  # chunks of (N_i,) scores
        self.anomalous: list[np.ndarray] = []  # chunks of (P_i,) scores
        self.weights: list[np.ndarray] = []  # chunks of (P_i,), 1 / size of the pixel's region
        self.regions = 0
        self.images = 0

    def add(self, score_map: np.ndarray, mask: np.ndarray | None, copy: bool = False) -> None:
        """Add one image as `_inputs.iterate_pairs` gives it; with `copy` no view of the caller's memory is kept."""
        self.images += 1
        if mask is None:
            self.normal.append(score_map.flatten() if copy else score_map.reshape(-1))
            return
        weights, regions = region_weights(mask)
        self.normal.append(score_map[~mask])
        self.anomalous.append(score_map[mask])
        self.weights.append(weights)
        self.regions += regions

    def update(self, scores: Any, masks: Any, *, spatial_dims: int | None = None, allow_infinite: bool = True) -> None:
        """Check and add a batch, all of it or, on a ValueError, nothing; keeps no view of the caller's memory."""
        for score_map, mask in list(iterate_pairs(scores, masks, spatial_dims, allow_infinite)):
            self.add(score_map, mask, copy=True)

    def merge(self, other: "RegionPool") -> None:
        """Add the images of another pool."""
        self.normal += other.normal
        self.anomalous += other.anomalous
        self.weights += other.weights
        self.regions += other.regions
        self.images += other.images

    def state_dict(self) -> dict[str, Any]:
        """The pooled pixels as three arrays, and the counts, to save or to send to another process."""
        scores, weights = self.take_anomalous()
        return {
            "normal": self.take_normal(),
            "anomalous": scores,
            "weights": weights,
            "regions": self.regions,
            "images": self.images,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "RegionPool":
        """Rebuild a pool from `state_dict()`."""
        pool = cls()
        pool.normal, pool.anomalous, pool.weights = [state["normal"]], [state["anomalous"]], [state["weights"]]
        pool.regions, pool.images = int(state["regions"]), int(state["images"])
        return pool

    def take_normal(self) -> np.ndarray:
        """All normal scores in one new array; the chunks are freed on the way, so that the peak stays at one copy."""
        merged = drain(self.normal)
        self.normal = [merged]
        return merged

    def take_anomalous(self) -> tuple[np.ndarray, np.ndarray]:
        """All anomalous scores and their weights, by rising score."""
        scores, weights = drain(self.anomalous), drain(self.weights)
        order = np.argsort(scores)
        self.anomalous, self.weights = [scores[order]], [weights[order]]
        return self.anomalous[0], self.weights[0]

    def sorted_pixels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All normal scores, rising; all anomalous scores, rising, and their weights."""
        normal = self.take_normal()
        normal.sort()
        return normal, *self.take_anomalous()

    def check(self) -> None:
        """Raise a ValueError if AUPRO is undefined for the images added so far."""
        if not self.regions:
            raise ValueError(f"no anomalous pixel in any of the {self.images} masks (images 0 to {self.images - 1})")
        if not any(chunk.size for chunk in self.normal):
            raise ValueError(f"no normal pixel in any of the {self.images} masks (images 0 to {self.images - 1})")

    def _top(self, limit: float) -> tuple[np.ndarray, int, int]:
        """Scores of the top `limit` share of the normal pixels, rising; number of all; number tied with the lowest."""
        self.check()
        normal = self.take_normal()
        total = normal.size
        wanted = _wanted(total, limit)
        normal.partition(total - wanted)
        rest, top = normal[: total - wanted], normal[total - wanted :]
        top.sort()
        tied = int(np.searchsorted(top, top[0], side="right")) + sum(
            int(np.count_nonzero(part == top[0])) for part in np.array_split(rest, max(1, rest.size >> 20))
        )
        return top, total, tied

    def aupro(self, limit: float = 0.3) -> float:
        """Area under PRO(FPR) from 0 to `limit`, divided by `limit`."""
        limit = check_limit(limit)
        top, total, tied = self._top(limit)
        scores, weights = self.take_anomalous()
        return normalised_area(top, total, tied, scores, weights, limit, self.regions)

    def curve(self, limit: float = 0.3) -> ProCurve:
        """The curve up to `limit`, one point per distinct score, with its area."""
        limit = check_limit(limit)
        top, total, tied = self._top(limit)
        scores, weights = self.take_anomalous()
        area = normalised_area(top, total, tied, scores, weights, limit, self.regions)
        first = np.searchsorted(scores, top[0])
        thresholds = np.unique(np.concatenate([top, scores[first:]]))[::-1]
        fpr = (top.size - np.searchsorted(top, thresholds)) / total
        # the lowest threshold, top[0], also detects the pixels tied with it that are not among the top ones
        fpr[-1] = (top.size - np.searchsorted(top, top[0], side="right") + tied) / total
        above = np.concatenate([np.cumsum(weights[::-1])[::-1], [0.0]])
        pro = above[np.searchsorted(scores, thresholds)] / self.regions
        fpr, pro = np.concatenate([[0.0], fpr]), np.concatenate([[0.0], pro])
        pro[-1] = pro[-2] + (pro[-1] - pro[-2]) * (limit - fpr[-2]) / (fpr[-1] - fpr[-2])
        fpr[-1] = limit
        return ProCurve(fpr, np.minimum(pro, 1.0), np.concatenate([[np.inf], thresholds]), limit, area)


def sorted_aupro(normal: np.ndarray, scores: np.ndarray, weights: np.ndarray, limit: float, regions: int) -> float:
    """AUPRO from `RegionPool.sorted_pixels`, for those who need all pixels sorted anyway."""
    top = normal[normal.size - _wanted(normal.size, limit) :]
    tied = int(np.searchsorted(normal, top[0], side="right") - np.searchsorted(normal, top[0], side="left"))
    return normalised_area(top, normal.size, tied, scores, weights, limit, regions)


def _wanted(total: int, limit: float) -> int:
    """Number of normal pixels, from the top, whose detection takes the FPR to the limit or just beyond."""
    return min(total, max(1, int(np.ceil(limit * total))))


def normalised_area(
    top: np.ndarray, total: int, tied: int, scores: np.ndarray, weights: np.ndarray, limit: float, regions: int
) -> float:
    """AUPRO: mean over regions of (pixel's weight x FPR length below its score, up to the limit), over the limit.

    Args:
        top: (M,) highest normal scores, rising, just enough for an FPR of `limit`.
        total: number of normal pixels.
        tied: number of normal pixels with the score `top[0]`, in `top` or not.
        scores: (P,) anomalous scores, rising.
        weights: (P,) their weights.
        regions: number of regions; the weights of each sum to 1.
    """
    start, stop = np.searchsorted(scores, top[0], side="left"), np.searchsorted(scores, top[0], side="right")
    above, above_weights = scores[stop:], weights[stop:]
    left, right = np.searchsorted(top, above, side="left"), np.searchsorted(top, above, side="right")
    passed = (2 * top.size - left - right) * (0.5 / total)  # FPR where the pixel is reached, in the middle of a tie
    area = float(np.dot(above_weights, np.maximum(limit - passed, 0.0)))
    # The curve crosses the limit on the segment that ends at top[0]: interpolate on it.
    before = (top.size - np.searchsorted(top, top[0], side="right")) / total
    area += float(weights[start:stop].sum()) * max(limit - before, 0.0) ** 2 / (2 * tied / total)
    return min(float(area / (limit * regions)), 1.0)  # the sum of a perfect map can round to above 1


def drain(chunks: list[np.ndarray]) -> np.ndarray:
    """Concatenate, freeing each chunk once it is copied: np.concatenate would hold two copies at its peak."""
    if not chunks:
        return np.empty(0)
    merged = np.empty(sum(chunk.size for chunk in chunks), dtype=np.result_type(*chunks))
    end = merged.size
    while chunks:
        chunk = chunks.pop()
        merged[end - chunk.size : end] = chunk
        end -= chunk.size
    return merged


def pool_pixels(scores: Any, masks: Any, spatial_dims: int | None = None, allow_infinite: bool = True) -> RegionPool:
    """Check all images and pool their pixels."""
    pool = RegionPool()
    for score_map, mask in iterate_pairs(scores, masks, spatial_dims, allow_infinite):
        pool.add(score_map, mask)
    return pool


@overload
def aupro(
    scores: Any,
    masks: Any,
    limit: float = ...,
    return_curve: Literal[False] = ...,
    *,
    spatial_dims: int | None = ...,
    allow_infinite: bool = ...,
) -> float: ...


@overload
def aupro(
    scores: Any,
    masks: Any,
    limit: float = ...,
    *,
    return_curve: Literal[True],
    spatial_dims: int | None = ...,
    allow_infinite: bool = ...,
) -> ProCurve: ...


def aupro(
    scores: Any,
    masks: Any,
    limit: float = 0.3,
    return_curve: bool = False,
    *,
    spatial_dims: int | None = None,
    allow_infinite: bool = True,
) -> float | ProCurve:
    """Exact AUPRO by the official definition of MVTec AD (see the module's docstring for the source).

    Regions are 8-connected in 2-D and 26-connected in 3-D, every region weighs the same, tied scores are one
    threshold, the curve is interpolated at the limit and the area divided by it. Only the order of the scores matters.

    Args:
        scores: anomaly maps, higher is more anomalous: a list of maps of any sizes, each (H, W) or (D, H, W), or an
            array or tensor (N, H, W), (N, 1, H, W), (N, D, H, W) or (N, 1, D, H, W). Any real dtype; +-inf is
            ranked like any other score.
        masks: ground truth in the same layout, bool or 0 and 1; an entry of a list may be None for a good image.
            Good images count in the false positive rate.
        limit: upper end of the false-positive-rate axis, in (0, 1].
        return_curve: return a `ProCurve` (with the value in `.aupro`) instead of the value.
        spatial_dims: 2 or 3. None reads an array of rank 3 as images, and one of rank 4 as images if axis 1 has size
            1 and as volumes otherwise; the docstring of `_inputs.split_images` has the whole rule.
        allow_infinite: False makes an infinite score an error.

    Returns:
        AUPRO in [0, 1], or a `ProCurve`.

    Raises:
        ValueError: naming the image, for NaN (or infinite scores if not allowed), shapes that differ, a mask that is
            not binary; also if no mask has an anomalous pixel, or none has a normal one.

    Example:
        >>> import numpy as np
        >>> mask = np.zeros((1, 4, 4), dtype=bool)
        >>> mask[0, 1:3, 1:3] = True
        >>> aupro(mask.astype(float), mask)
        1.0
    """
    check_limit(limit)
    pool = pool_pixels(scores, masks, spatial_dims, allow_infinite)
    return pool.curve(limit) if return_curve else pool.aupro(limit)
