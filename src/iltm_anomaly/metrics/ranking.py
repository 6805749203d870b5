"""Ranking metrics (AUROC, AUPR) and overlaps at a threshold (F1, Dice), exact, over pixels or over images.

All of them follow from two sorted arrays, the scores of the normal and of the anomalous entries: ties are one
threshold, nothing is binned, and only the order of the scores matters.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._inputs import check_scores, iterate_pairs, to_numpy
from .region_overlap import drain


def sorted_auroc(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """Probability that an anomalous entry outranks a normal one, ties counting half.

    Args:
        normal: (N,) scores, rising. anomalous: (P,) scores, rising.
    """
    below = np.searchsorted(normal, anomalous, side="left")
    up_to = np.searchsorted(normal, anomalous, side="right")
    # integer sums: exact however many pixels there are
    return (int(below.sum(dtype=np.int64)) + int(up_to.sum(dtype=np.int64))) / (2 * normal.size * anomalous.size)


def sorted_detections(normal: np.ndarray, anomalous: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and false positives at every threshold that is an anomalous score, thresholds falling.

    Returns:
        thresholds (T,), true positives (T,), false positives (T,). An entry is detected if its score >= threshold.
    """
    starts = np.flatnonzero(np.concatenate([[True], anomalous[1:] != anomalous[:-1]]))
    thresholds = anomalous[starts]
    hits = anomalous.size - starts
    false_alarms = normal.size - np.searchsorted(normal, thresholds, side="left")
    return thresholds[::-1], hits[::-1], false_alarms[::-1]


def sorted_aupr(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """Average precision: sum over thresholds of (recall gained) x precision, without interpolation."""
    _, hits, false_alarms = sorted_detections(normal, anomalous)
    gained = np.diff(hits, prepend=0)
    return float(np.sum(gained * (hits / (hits + false_alarms))) / anomalous.size)


def sorted_best_f1(normal: np.ndarray, anomalous: np.ndarray) -> tuple[float, float]:
    """Highest F1 (= Dice) over all thresholds and the highest threshold that attains it.

    Only anomalous scores need trying: moving a threshold down to the next anomalous score adds false alarms alone.
    """
    thresholds, hits, false_alarms = sorted_detections(normal, anomalous)
    f1 = 2 * hits / (hits + false_alarms + anomalous.size)
    best = int(np.argmax(f1))
    return float(f1[best]), float(thresholds[best])


def _split_pixels(scores: Any, masks: Any, spatial_dims: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Sorted scores of all normal and all anomalous pixels of the test set."""
    normal: list[np.ndarray] = []
    anomalous: list[np.ndarray] = []
    for score_map, mask in iterate_pairs(scores, masks, spatial_dims):
        normal.append(score_map.reshape(-1) if mask is None else score_map[~mask])
        if mask is not None:
            anomalous.append(score_map[mask])
    return _sorted(normal), _sorted(anomalous)


def split_images(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Sorted scores of the good and of the anomalous images."""
    values, truth = to_numpy(scores).reshape(-1), to_numpy(labels).reshape(-1)
    if not values.size:
        raise ValueError("scores are empty: no image to evaluate")
    if values.shape != truth.shape:
        raise ValueError(f"{values.size} image scores but {truth.size} labels")
    for index, label in enumerate(truth):
        if label not in (0, 1):
            raise ValueError(f"label of image {index} is {label!r}; expected 0 (good) or 1 (anomalous)")
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise ValueError(f"score of image {int(np.flatnonzero(np.isnan(values))[0])} is NaN")
    values, truth = check_scores(values, 0), truth.astype(bool)
    return _sorted([values[~truth]]), _sorted([values[truth]])


def _sorted(chunks: list[np.ndarray]) -> np.ndarray:
    merged = drain(chunks)
    merged.sort()
    return merged


def _split(scores: Any, targets: Any, spatial_dims: int | None) -> tuple[np.ndarray, np.ndarray]:
    """One number per image, in a list or an array of rank 1, is image scores; anything else is maps."""
    if not hasattr(scores, "dtype"):
        scores = list(scores)
        per_image = not scores or (scores[0] is not None and to_numpy(scores[0]).ndim == 0)
    else:
        per_image = scores.ndim == 1 and to_numpy(scores).dtype != object
    return split_images(scores, targets) if per_image else _split_pixels(scores, targets, spatial_dims)


def _require(array: np.ndarray, missing: str, metric: str) -> None:
    if not array.size:
        raise ValueError(f"{metric} is undefined: none of the images has an {missing}")


def pixel_auroc(scores: Any, masks: Any, *, spatial_dims: int | None = None) -> float:
    """Area under the ROC curve over the pixels of all images, pooled.

    Args:
        scores, masks, spatial_dims: as for `aupro`.

    Returns:
        AUROC in [0, 1].

    Raises:
        ValueError: as for `aupro`.
    """
    normal, anomalous = _split_pixels(scores, masks, spatial_dims)
    _require(anomalous, "anomalous pixel", "pixel AUROC")
    if not normal.size:
        raise ValueError("pixel AUROC is undefined: none of the images has a normal pixel")
    return sorted_auroc(normal, anomalous)


def image_auroc(image_scores: Any, image_labels: Any) -> float:
    """Area under the ROC curve over images.

    Args:
        image_scores: (N,) one score per image, higher is more anomalous; list, array or tensor.
        image_labels: (N,) 0 or False for good images, 1 or True for anomalous ones.

    Returns:
        AUROC in [0, 1].

    Raises:
        ValueError: for a NaN score or a label that is not 0 or 1 (naming the image), or if one class is absent.
    """
    return sorted_auroc(*_two_classes(image_scores, image_labels, "image AUROC"))


def _two_classes(image_scores: Any, image_labels: Any, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """As `split_images`, neither of them empty."""
    normal, anomalous = split_images(image_scores, image_labels)
    if not normal.size or not anomalous.size:
        absent = "anomalous" if normal.size else "good"
        raise ValueError(f"{metric} is undefined: no {absent} image among the {normal.size + anomalous.size} images")
    return normal, anomalous


@dataclass(frozen=True)
class ImageCurves:
    """ROC and precision-recall curve of images, one point per distinct score, by falling threshold.

    Attributes:
        thresholds: (T,) an image is detected if its score >= threshold.
        recall: (T,) share of the anomalous images that are detected, rising to 1.
        false_alarms: (T,) share of the good images that are, rising to 1.
        precision: (T,) share of the detected images that are anomalous.
    """

    thresholds: np.ndarray
    recall: np.ndarray
    false_alarms: np.ndarray
    precision: np.ndarray


def image_curves(image_scores: Any, image_labels: Any) -> ImageCurves:
    """The curves whose areas `image_auroc` (by trapezoids) and `aupr` (recall gained times precision) are.

    Args and errors as for `image_auroc`.
    """
    normal, anomalous = _two_classes(image_scores, image_labels, "a curve")
    thresholds = np.unique(np.concatenate([normal, anomalous]))[::-1]
    hits = anomalous.size - np.searchsorted(anomalous, thresholds)
    false_alarms = normal.size - np.searchsorted(normal, thresholds)
    return ImageCurves(thresholds, hits / anomalous.size, false_alarms / normal.size, hits / (hits + false_alarms))


def aupr(scores: Any, targets: Any, *, spatial_dims: int | None = None) -> float:
    """Area under the precision-recall curve (average precision, no interpolation), over images or over pixels.

    Args:
        scores: (N,) image scores, or anomaly maps as for `aupro`.
        targets: (N,) labels, or masks as for `aupro`.

    Returns:
        AUPR in (0, 1].

    Raises:
        ValueError: for invalid input, or if nothing is anomalous.
    """
    normal, anomalous = _split(scores, targets, spatial_dims)
    _require(anomalous, "anomalous entry", "AUPR")
    return sorted_aupr(normal, anomalous)


def best_f1(
    scores: Any, targets: Any, *, return_threshold: bool = False, spatial_dims: int | None = None
) -> float | tuple[float, float]:
    """Highest F1 over all thresholds, over images or over pixels.

    Args:
        scores, targets, spatial_dims: as for `aupr`.
        return_threshold: also return the threshold; an entry is detected if its score >= threshold.

    Returns:
        F1 in (0, 1], or (F1, threshold).

    Raises:
        ValueError: for invalid input, or if nothing is anomalous.
    """
    normal, anomalous = _split(scores, targets, spatial_dims)
    _require(anomalous, "anomalous entry", "F1")
    result = sorted_best_f1(normal, anomalous)
    return result if return_threshold else result[0]


def best_dice(
    scores: Any, masks: Any, *, return_threshold: bool = False, spatial_dims: int | None = None
) -> float | tuple[float, float]:
    """Highest Dice coefficient over all thresholds (often written "[Dice]"), over the pooled pixels of all images.

    Args and errors as for `best_f1`, with maps and masks.
    """
    normal, anomalous = _split_pixels(scores, masks, spatial_dims)
    _require(anomalous, "anomalous pixel", "Dice")
    result = sorted_best_f1(normal, anomalous)
    return result if return_threshold else result[0]


def dice(scores: Any, masks: Any, threshold: float, *, spatial_dims: int | None = None) -> float:
    """Dice coefficient of `scores >= threshold` against the masks, over the pixels of all images, pooled.

    Args:
        scores, masks, spatial_dims: as for `aupro`.
        threshold: a pixel is detected if its score >= threshold.

    Returns:
        2 TP / (2 TP + FP + FN) in [0, 1]; 1.0 if nothing is anomalous and nothing is detected.

    Raises:
        ValueError: for invalid input or a NaN threshold.
    """
    if np.isnan(threshold):
        raise ValueError("threshold is NaN")
    overlap = total = 0
    for score_map, mask in iterate_pairs(scores, masks, spatial_dims):
        # compare in float64: a float32 map against a Python float would round the threshold to float32
        detected = score_map >= np.float64(threshold)
        total += int(np.count_nonzero(detected))
        if mask is not None:
            total += int(np.count_nonzero(mask))
            overlap += int(np.count_nonzero(detected & mask))
    return 2 * overlap / total if total else 1.0
