"""Lesion-wise detection: how many lesions are found at how many false alarms per scan (free-response ROC)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.thinning import thinned
from ._inputs import iterate_pairs


@dataclass(frozen=True)
class LesionCurve:
    """Operating points, thresholds falling.

    Attributes:
        thresholds: (T,) a voxel is detected if its score >= threshold.
        sensitivity: (T,) share of lesions with at least one detected voxel.
        false_positives: (T,) per scan: connected detections that touch no lesion.
        lesions, scans: what was counted.
    """

    thresholds: np.ndarray
    sensitivity: np.ndarray
    false_positives: np.ndarray
    lesions: int
    scans: int

    def sensitivity_at(self, false_positives: float) -> float:
        """Highest sensitivity before false positives first exceed so many per scan; 0 if they do from the start.

        Further down detections grow together, until all of a scan is one that touches every lesion: that is no detection.
        """
        allowed = np.maximum.accumulate(self.false_positives) <= false_positives
        return float(self.sensitivity[allowed].max()) if allowed.any() else 0.0


def lesion_curve(maps: Any, masks: Any, max_points: int = 50, *, spatial_dims: int | None = None) -> LesionCurve:
    """Sensitivity and false positives at falling thresholds.

    Lesions and detections are 26-connected (8-connected in 2-D). Only the highest score of a lesion matters for finding it, so
    these scores are thresholds (evenly chosen ones if there are more than `max_points`), and the highest score of every scan and
    quantiles of all scores in between, so that no rise of the false positives is passed over.

    Args:
        maps, masks, spatial_dims: as for `aupro`.
        max_points: most lesion scores tried.

    Raises:
        ValueError: for invalid input, or if there is no lesion.
    """
    from scipy import ndimage

    pairs = list(iterate_pairs(maps, masks, spatial_dims))
    peaks: list[np.ndarray] = []
    for score_map, mask in pairs:
        if mask is not None:
            labels, count = _regions(mask)
            peaks.append(np.atleast_1d(ndimage.maximum(score_map, labels, np.arange(1, count + 1))))
    if not peaks:
        raise ValueError(f"lesion-wise detection is undefined: none of the {len(pairs)} scans has a lesion")
    highest = np.sort(np.concatenate(peaks).astype(np.float64))[::-1]
    thresholds = np.unique(highest)[::-1]
    if len(thresholds) > max_points:
        thresholds = thresholds[np.linspace(0, len(thresholds) - 1, max_points).round().astype(int)]
    pooled = np.concatenate([thinned(score_map, 50_000) for score_map, _ in pairs])
    tops = [float(score_map.max()) for score_map, _ in pairs]
    # scores themselves, as between infinite ones lies nothing
    between = np.quantile(pooled.astype(np.float64), 1 - np.geomspace(1e-5, 0.5, 12), method="higher")
    thresholds = np.unique(np.concatenate([thresholds, tops, between]))[::-1]
    found = np.searchsorted(-highest, -thresholds, side="right")
    alarms = [_false_positives(pairs, threshold) for threshold in thresholds]
    return LesionCurve(thresholds, found / len(highest), np.array(alarms) / len(pairs), len(highest), len(pairs))


def lesion_detection(
    maps: Any, masks: Any, false_positives: Sequence[float] = (0.5, 1, 2, 4), *, spatial_dims: int | None = None
) -> dict[str, float | int]:
    """Sensitivities of `lesion_curve` at given numbers of false positives per scan, as plain numbers for a report.

    Returns:
        `lesion_sensitivity_at_1_fp` and so on, and `lesions`.
    """
    curve = lesion_curve(maps, masks, spatial_dims=spatial_dims)
    result: dict[str, float | int] = {
        f"lesion_sensitivity_at_{count:g}_fp": curve.sensitivity_at(count) for count in false_positives
    }
    return result | {"lesions": curve.lesions}


def _regions(binary: np.ndarray) -> tuple[np.ndarray, int]:
    from scipy import ndimage  # here, so that importing the metrics stays light

    return ndimage.label(binary, structure=np.ones((3,) * binary.ndim, dtype=bool))


def _false_positives(pairs: list[tuple[np.ndarray, np.ndarray | None]], threshold: float) -> int:
    total = 0
    for score_map, mask in pairs:
        labels, count = _regions(score_map >= threshold)
        touching = 0 if mask is None else int(np.count_nonzero(np.unique(labels[mask])))
        total += count - touching
    return total
