"""AUPRO of a stream of images in bounded memory, mergeable across processes, with a guaranteed error bound.

The state is two rank summaries, one of the normal scores and one of the anomalous ones (each weighted by one over
the size of its region). A summary keeps scores taken from the data, spaced by rank and not by value, so that neither
a heavy tail nor any other increasing transform of the scores changes what it resolves. For each kept score it knows
a lower and an upper bound of the weight at or above it, after any sequence of updates and merges. (Rank bounds as in
M. Greenwald and S. Khanna, "Space-efficient online computation of quantile summaries", SIGMOD 2001.)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._inputs import check_limit, iterate_pairs
from .region_overlap import ProCurve, region_weights

BUFFERED_SCORES = 1 << 20  # scores are sorted and summarised by the million: 4 to 8 MB, and few passes


class RankSummary:
    """Bounds of the total weight at or above any value, in O(resolution) memory.

    Attributes:
        resolution: kept values lie about 1 / resolution of the weight apart; at most 3 x resolution are kept.
        values: (M,) kept values, rising; the lowest and the highest ever seen are always among them.
        bounds: (4, M) lower and upper bound of the weight >= value, lower and upper bound of the weight > value.
        total: weight of all values.
    """

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution
        self.values = np.empty(0)
        self.bounds = np.empty((4, 0))
        self.total = 0.0

    def at(self, points: np.ndarray) -> np.ndarray:
        """(4, P) bounds, as in `bounds`, at any points."""
        index = np.searchsorted(self.values, points)
        known = np.append(self.values, np.nan)[index] == points
        # between two kept values: at least the weight from the upper one on, at most the weight above the lower one
        low = np.append(self.bounds[0], 0.0)[index]
        high = np.append(self.total, self.bounds[3])[index]
        result = np.stack([low, high, low, high])
        result[:, known] = self.bounds[:, index[known]]
        return result

    def add(self, values: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Add (N,) values, rising, each with its weight (1 if None)."""
        if not values.size:
            return
        cumulated = np.arange(values.size + 1.0) if weights is None else np.append(0.0, np.cumsum(weights))

        def exact(points: np.ndarray) -> np.ndarray:
            reached = cumulated[-1] - cumulated[np.searchsorted(values, points, side="left")]
            passed = cumulated[-1] - cumulated[np.searchsorted(values, points, side="right")]
            return np.stack([reached, reached, passed, passed])

        total = self.total + cumulated[-1]
        kept = self.bounds + exact(self.values)
        picks = self._pick(values, cumulated, kept, total)
        picked = self.at(picks) + exact(picks)
        self.total = total
        self._insert(kept, picks, picked)

    def merge(self, other: "RankSummary") -> None:
        """Add the values of another summary; the bounds add up."""
        if not other.values.size:
            return
        kept = self.bounds + other.at(self.values)
        picks = other.values[~np.isin(other.values, self.values, assume_unique=True)]
        picked = self.at(picks) + other.at(picks)
        self.total += other.total
        self._insert(kept, picks, picked)

    def _pick(self, values: np.ndarray, cumulated: np.ndarray, kept: np.ndarray, total: float) -> np.ndarray:
        """Values of a batch that must be kept: new extremes, and enough to cut every gap of more than two shares."""
        share = total / self.resolution
        steps = np.arange(0.0, cumulated[-1], share) if cumulated.size - 1 > self.resolution else cumulated[:-1]
        candidates = [values[np.searchsorted(cumulated[1:-1], steps, side="right")]]
        gaps = np.append(total, kept[3]) - np.append(kept[0], 0.0)  # (M + 1,) weight below, between and above
        wide = gaps > 2 * share
        # A gap can fill up slowly, by less than a share per batch: always offer the middle of what fell into it.
        start = np.append(0, np.searchsorted(values, self.values, side="right"))[wide]
        stop = np.append(np.searchsorted(values, self.values, side="left"), values.size)[wide]
        candidates.append(values[((start + stop) // 2)[start < stop]])
        picks = np.unique(np.concatenate(candidates)).astype(np.float64)
        index = np.searchsorted(self.values, picks)
        new = np.append(self.values, np.nan)[index] != picks
        picks = picks[new & wide[index]]
        ends = np.array([values[0], values[-1]], dtype=np.float64)
        if self.values.size:
            ends = ends[[values[0] < self.values[0], values[-1] > self.values[-1]]]
        return np.union1d(picks, ends)

    def _insert(self, kept: np.ndarray, picks: np.ndarray, picked: np.ndarray) -> None:
        where = np.searchsorted(self.values, picks)
        self.values = np.insert(self.values, where, picks)
        self.bounds = np.insert(kept, where, picked, axis=1)
        if self.values.size > 3 * self.resolution:
            self._prune()

    def _prune(self) -> None:
        """Keep one value per share of the weight, the best known one, and every value tied for a share or more."""
        share = self.total / self.resolution
        rank = self.bounds[:2].mean(axis=0)
        window = np.floor(rank / share)
        uncertainty = self.bounds[1] - self.bounds[0]
        off_centre = np.abs(rank - (window + 0.5) * share)
        order = np.lexsort((off_centre, uncertainty, window))
        best = order[np.flatnonzero(np.diff(window[order], prepend=-1.0))]
        keep = rank - self.bounds[2:].mean(axis=0) >= share
        keep[best] = True
        keep[[0, -1]] = True
        self.values, self.bounds = self.values[keep], self.bounds[:, keep]


class StreamingAUPRO:
    """AUPRO of any number of images in memory that does not grow with them.

    The value is within `error_bound` of the exact one, always: the bound is computed from the state, not estimated. It
    is about (1 / limit + 1) / (2 x resolution), 3.3e-5 at the defaults, and larger after unusual orders of the
    images or many merges; the error itself is far smaller, because errors of both signs cancel.

    Each process can hold one, pickle it or send `state_dict()`, and one process merges them all.

    Args:
        limit: upper end of the false-positive-rate axis, in (0, 1].
        resolution: shares of the scores that are told apart. The state takes at most about 240 x resolution bytes
            (16 MB at the default) and the buffer 4 to 8 MB for each of the two sides.

    Example:
        >>> import numpy as np
        >>> mask = np.zeros((1, 4, 4), dtype=bool)
        >>> mask[0, 1:3, 1:3] = True
        >>> metric = StreamingAUPRO()
        >>> metric.update(mask.astype(float), mask)
        >>> metric.compute(), metric.error_bound
        (1.0, 1e-12)
    """

    def __init__(self, limit: float = 0.3, resolution: int = 1 << 16) -> None:
        self.limit = check_limit(limit)
        if resolution < 16:
            raise ValueError(f"resolution must be at least 16, got {resolution}")
        self.resolution = int(resolution)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.normal = RankSummary(self.resolution)
        self.anomalous = RankSummary(self.resolution)
        self.regions = 0
        self.images = 0
        self._buffered: list[np.ndarray] = []
        self._buffered_anomalous: list[tuple[np.ndarray, np.ndarray]] = []
        self._pending = 0

    def update(self, scores: Any, masks: Any, *, spatial_dims: int | None = None, allow_infinite: bool = True) -> None:
        """Add a batch of images; arguments and errors as for `aupro`, with images counted from 0 in this batch.

        An invalid batch is refused as a whole and leaves the state as it was.
        """
        for score_map, mask in list(iterate_pairs(scores, masks, spatial_dims, allow_infinite)):
            self._add(score_map, mask)

    def _add(self, score_map: np.ndarray, mask: np.ndarray | None) -> None:
        self.images += 1
        if mask is None:
            self._buffered.append(score_map.flatten())
        else:
            weights, regions = region_weights(mask)
            self.regions += regions
            self._buffered.append(score_map[~mask])
            self._buffered_anomalous.append((score_map[mask], weights))
        self._pending += score_map.size
        if self._pending >= BUFFERED_SCORES:
            self._flush()

    def _flush(self) -> None:
        """Move the buffered scores into the summaries."""
        if self._buffered:
            self.normal.add(np.sort(np.concatenate(self._buffered)))
        if self._buffered_anomalous:
            scores, weights = (np.concatenate(parts) for parts in zip(*self._buffered_anomalous, strict=True))
            order = np.argsort(scores)
            self.anomalous.add(scores[order], weights[order])
        self._buffered, self._buffered_anomalous, self._pending = [], [], 0

    def merge(self, other: "StreamingAUPRO") -> "StreamingAUPRO":
        """Add the images of another instance (same limit), as if they had been given to this one; returns self."""
        if other.limit != self.limit:
            raise ValueError(f"cannot merge limits {self.limit} and {other.limit}")
        self._flush()
        other._flush()
        self.normal.merge(other.normal)
        self.anomalous.merge(other.anomalous)
        self.regions += other.regions
        self.images += other.images
        return self

    def state_dict(self) -> dict[str, Any]:
        """The whole state as numpy arrays and numbers, to save or to send to another process."""
        self._flush()
        state: dict[str, Any] = {name: getattr(self, name) for name in ("limit", "resolution", "regions", "images")}
        for side in ("normal", "anomalous"):
            summary = getattr(self, side)
            state |= {f"{side}_{name}": getattr(summary, name) for name in ("values", "bounds", "total")}
        return state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "StreamingAUPRO":
        """Rebuild an instance from `state_dict()`."""
        metric = cls(float(state["limit"]), int(state["resolution"]))
        metric.regions, metric.images = int(state["regions"]), int(state["images"])
        for side in ("normal", "anomalous"):
            summary = getattr(metric, side)
            summary.values = np.array(state[f"{side}_values"], dtype=np.float64)
            summary.bounds = np.array(state[f"{side}_bounds"], dtype=np.float64)
            summary.total = float(state[f"{side}_total"])
        return metric

    def compute(self, return_curve: bool = False) -> float | ProCurve:
        """AUPRO of all images so far, to within `error_bound`; the state stays, more images may follow.

        Args:
            return_curve: return a `ProCurve` with one point per kept score; `.aupro` is the value.

        Raises:
            ValueError: if no image had an anomalous pixel, or none a normal one.
        """
        value = self._areas()[1]
        return self._curve(value) if return_curve else value

    @property
    def error_bound(self) -> float:
        """Guaranteed upper bound of |compute() - exact AUPRO|."""
        low, middle, high = self._areas()
        return max(high - middle, middle - low) + 1e-12  # the rounding of the sums: the worst case can be attained

    def _areas(self) -> tuple[float, float, float]:
        """AUPRO at the lower end of all bounds, in their middle, and at the upper end.

        A pixel adds its weight times the FPR length below its score. That falls as more normal pixels outrank it, so
        bounds of the ranks of both sides carry over to the area.
        """
        self._flush()
        if not self.regions:
            raise ValueError(f"no anomalous pixel in any of the {self.images} images so far")
        if not self.normal.total:
            raise ValueError(f"no normal pixel in any of the {self.images} images so far")
        fpr = self.normal.at(self.anomalous.values)[:, ::-1] / self.normal.total  # (4, M), scores falling
        pro = self.anomalous.bounds[:, ::-1] / self.anomalous.total
        areas = []
        for which in ("low", "middle", "high"):
            # few detections of regions go with many false alarms, and the other way round
            reached, passed = _select(fpr, {"low": "high", "high": "low"}.get(which, which))
            length = _length_below(passed, reached, self.limit)
            between = self._length_between(which, reached, passed)
            pro_reached, pro_passed = _select(pro, which)
            # PRO rises at each kept score, then at the unknown scores between it and the next one
            steps = np.stack([pro_reached, np.append(pro_passed[1:], 1.0)], axis=1).reshape(-1)
            lengths = np.stack([length, np.append(between, 0.0)], axis=1).reshape(-1)
            gains = np.diff(np.maximum.accumulate(steps), prepend=0.0)
            areas.append(min(float(np.dot(gains, lengths)) / self.limit, 1.0))
        return areas[0], areas[1], areas[2]

    def _length_between(self, which: str, reached: np.ndarray, passed: np.ndarray) -> np.ndarray:
        """(M - 1,) FPR length below the anomalous scores that lie between two kept ones, kept scores falling."""
        if which == "high":  # all just below the upper one
            return _length_below(reached[:-1], reached[:-1], self.limit)
        if which == "low":  # all just above the lower one
            return _length_below(passed[1:], passed[1:], self.limit)
        return _length_below(reached[:-1], passed[1:], self.limit)

    def _curve(self, value: float) -> ProCurve:
        thresholds = np.union1d(self.normal.values, self.anomalous.values)[::-1]
        fpr = self.normal.at(thresholds)[:2].mean(axis=0) / self.normal.total
        pro = self.anomalous.at(thresholds)[:2].mean(axis=0) / self.anomalous.total
        fpr, pro = (np.maximum.accumulate(np.append(0.0, axis)) for axis in (fpr, pro))
        stop = min(int(np.searchsorted(fpr, self.limit)), fpr.size - 1)
        fpr, pro, thresholds = fpr[: stop + 1], pro[: stop + 1], np.append(np.inf, thresholds)[: stop + 1]
        pro[-1] = np.interp(self.limit, fpr[-2:], pro[-2:])
        fpr[-1] = self.limit
        return ProCurve(fpr, np.minimum(pro, 1.0), thresholds, self.limit, value)


def _select(bounds: np.ndarray, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight at or above and weight above: the lower bounds, the upper bounds or their middle."""
    if which == "middle":
        return bounds[:2].mean(axis=0), bounds[2:].mean(axis=0)
    row = 0 if which == "low" else 1
    return bounds[row], bounds[row + 2]


def _length_below(passed: np.ndarray, reached: np.ndarray, limit: float) -> np.ndarray:
    """Mean length of the FPR axis, up to the limit, beyond a point spread evenly from `passed` to `reached`."""
    width = reached - passed
    inside = np.maximum(limit - passed, 0.0) ** 2 / (2 * np.where(width > 0, width, 1.0))
    return np.where(reached <= limit, limit - (passed + reached) / 2, np.where(width > 0, inside, 0.0))
