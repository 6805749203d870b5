"""Thresholds of the score: from the share of false alarms that is wanted, or from a few images whose state is known.

The scores of good training images tell how many false alarms a threshold is to be expected to give, by their median and upper
quartile, which a few defective images left among them hardly move. Of models on codes their logarithms are taken for normally
distributed; of those on features the excess over the median is taken for exponentially distributed, as their tails are heavier:
each distance of the quartile halves it. How many good training images reach a threshold is told beside it.
"""

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy import ndimage

KEY = "training_scores"  # in a training report
FINDINGS = (
    "findings"  # there too, of models on tissues: regions that reach the threshold, a training volume in the mean
)
FEWEST_SCORES = 8
UPPER_QUARTILE = NormalDist().inv_cdf(0.75)
OWN_SHARE = 0.3  # of a region's highest value, where its edge is drawn
LEAST_SPREAD = 1e-3  # scores that are all alike still have an order


def abnormal_pixels(values: np.ndarray, score: float, threshold: float) -> np.ndarray:
    """Which values of a map are abnormal, a bool array: none of a normal image; of an abnormal one those from the threshold on,
    or if there are none (its score may be higher than its map) the highest hundredth. A map falls off smoothly around what is far
    above the threshold: so of an image, (H, W), each connected region begins at `OWN_SHARE` of its own highest value."""
    if score < threshold:
        return np.zeros(values.shape, dtype=bool)
    if values.max() < threshold:
        return values >= np.quantile(values, 0.99)
    mask = values >= threshold
    if values.ndim == 2:
        regions, count = ndimage.label(mask, np.ones((3, 3)))
        begins = OWN_SHARE * np.append(0.0, ndimage.maximum(values, regions, np.arange(1, count + 1)))
        mask &= (values >= begins[regions]) | (values <= 0)  # a map below 0 has no such share
    return mask


def findings_told(report: dict[str, Any]) -> str:
    """What follows the model's own threshold in a message, by its training report; nothing where that does not tell."""
    found = report.get(FINDINGS)
    if not isinstance(found, int | float):
        return ""
    return f": training volumes have {found:.2g} findings each from it on in the mean, their lesions among them"


def share_told(share: float) -> str:
    """A share that is to be expected, 0 to 1, as a number in per cent; the script of a report says the same."""
    return "less than 0.1" if share < 0.001 else f"{100 * share:.3g}"


@dataclass(frozen=True)
class TrainingScores:
    """
    Args:
        good: (N,) scores of training images that look good, each judged as a new image would be.
        zero: what is added before logarithms are taken, so that no score is below 0; None of scores whose tail is exponential.
        others: (M,) of the other training images, of which some or all are defective.
    """

    good: np.ndarray
    zero: float | None
    others: np.ndarray = field(default_factory=lambda: np.empty(0))

    @classmethod
    def of_report(cls, report: dict[str, Any]) -> "TrainingScores | None":
        """Those that a training report keeps; None of an earlier version's, or of so few that they tell nothing.

        Raises:
            ValueError: if they are no finite numbers.
        """
        found = report.get(KEY)
        if found is None:
            return None
        try:
            good, others = (np.array([float(score) for score in found[name]]) for name in ("good", "others"))
            kept = cls(good, None if found["zero"] is None else float(found["zero"]), others)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"training_report.json: {KEY} must hold good, others and zero, as numbers: {error}"
            ) from error
        if not np.isfinite([*good, *others, kept.zero or 0.0]).all():
            raise ValueError(f"training_report.json: {KEY} holds NaN or infinity")
        return kept if len(good) >= FEWEST_SCORES else None

    def to_report(self) -> dict[str, Any]:
        """What a training report keeps: plain values, with six digits."""
        lists = {"good": self.good, "others": self.others}
        values = {name: sorted(float(f"{score:.6g}") for score in scores) for name, scores in lists.items()}
        return {KEY: values | {"zero": self.zero}}

    def threshold(self, false_alarms: float) -> float:
        """The score that a share of good images, from above 0 to below 0.5, is to be expected to reach.

        Raises:
            ValueError: for another share.
        """
        if not 0 < false_alarms < 0.5:
            raise ValueError(f"the share of false alarms is above 0 and below 0.5, such as 0.01; got {false_alarms:g}")
        if self.zero is None:
            median, spread = self._spread(self.good)
            return median + spread * math.log2(0.5 / false_alarms)
        return math.exp(self._normal(self.zero).inv_cdf(1 - false_alarms)) - self.zero

    def false_alarms(self, threshold: float) -> float:
        """The share of good images that is to be expected to reach a threshold."""
        if self.zero is None:
            median, spread = self._spread(self.good)
            return min(1.0, 2 ** min(1000.0, (median - threshold) / spread - 1))
        if threshold + self.zero <= 0:
            return 1.0
        normal = self._normal(self.zero)
        return normal.cdf(2 * normal.mean - math.log(threshold + self.zero))  # of the other side, for its digits

    def reached(self, threshold: float) -> float:
        """The share of all training images that reach a threshold, defective ones among them."""
        return float((np.concatenate([self.good, self.others]) >= threshold).mean())

    @staticmethod
    def _spread(values: np.ndarray) -> tuple[float, float]:
        """The median, and how far above it the upper quartile is."""
        median, upper = np.quantile(values, [0.5, 0.75])
        return float(median), max(float(upper - median), LEAST_SPREAD)

    def _normal(self, zero: float) -> NormalDist:
        """The distribution of the logarithms."""
        median, spread = self._spread(np.log(np.maximum(self.good + zero, 1e-6)))
        return NormalDist(median, spread / UPPER_QUARTILE)


@dataclass(frozen=True)
class LabelledThreshold:
    """
    Args:
        threshold: a score.
        precision: share of defective ones among the images that such thresholds call abnormal; 0 if they call none so.
        recall: share of the defective images that they call abnormal.
        good, defective: numbers of images that it rests on.
    """

    threshold: float
    precision: float
    recall: float
    good: int
    defective: int


def labelled_threshold(scores: Any, defective: Any) -> LabelledThreshold:
    """The threshold with the best F1 on images whose state is known. What is to be expected of it on others is measured by
    leaving each image out in turn, and judging it by the threshold of the others.

    Args:
        scores: (N,) of the images.
        defective: (N,) bool.

    Raises:
        ValueError: if fewer than two are good, or fewer than two defective.
    """
    values, is_defective = np.asarray(scores, dtype=np.float64), np.asarray(defective, dtype=bool)
    count = int(is_defective.sum())
    if min(count, len(values) - count) < 2:
        raise ValueError(
            f"a threshold needs two good and two defective images at least, and many more to be any good; these are "
            f"{len(values) - count} good and {count} defective"
        )
    called = np.zeros(len(values), dtype=bool)
    for index in range(len(values)):
        others = np.arange(len(values)) != index
        called[index] = values[index] >= _best_f1(values[others], is_defective[others])
    hits = int((called & is_defective).sum())
    best = _best_f1(values, is_defective)
    return LabelledThreshold(best, hits / max(1, int(called.sum())), hits / count, len(values) - count, count)


def _best_f1(scores: np.ndarray, defective: np.ndarray) -> float:
    """The threshold with the best F1, in the middle between two scores; of several as good, the highest."""
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(defective[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + defective.sum())
    ends = np.append(ranked[1:] < ranked[:-1], True)  # between equal scores there is no threshold
    best = int(np.argmax(np.where(ends, f1, -1)))
    return float(ranked[best] + ranked[best + 1]) / 2 if best + 1 < len(ranked) else float(ranked[best])
