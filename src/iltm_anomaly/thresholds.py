"""Thresholds of the score: from the share of false alarms that is wanted, or from a few images whose state is known.

The scores of good training images tell how many false alarms a threshold is to be expected to give. Their logarithms are taken
for normally distributed, by their median and upper quartile, which a few defective images left among them hardly move.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

KEY = "training_scores"  # in a training report
MOST_SCORES = 1001  # that are kept: of more training images, as many quantiles
FEWEST_SCORES = 8
UPPER_QUARTILE = NormalDist().inv_cdf(0.75)
LEAST_SPREAD = 1e-3  # of logarithms: scores that are all alike still have an order


@dataclass(frozen=True)
class TrainingScores:
    """
    Args:
        scores: (N,) of training images that look good, each judged as a new image would be.
        zero: what is added before logarithms are taken, so that no score is below 0.
    """

    scores: np.ndarray
    zero: float

    @classmethod
    def of(cls, scores: Any, zero: float) -> "TrainingScores":
        """Of as many scores as there are; see `MOST_SCORES`."""
        values = np.sort(np.asarray(scores, dtype=np.float64))
        if len(values) > MOST_SCORES:
            values = np.quantile(values, np.linspace(0, 1, MOST_SCORES))
        return cls(values, zero)

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
            kept = cls.of([float(score) for score in found["scores"]], float(found["zero"]))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"training_report.json: {KEY} must hold scores and zero, as numbers: {error}") from error
        if not np.isfinite([*kept.scores, kept.zero]).all():
            raise ValueError(f"training_report.json: {KEY} holds NaN or infinity")
        return kept if len(kept.scores) >= FEWEST_SCORES else None

    def to_report(self) -> dict[str, Any]:
        """What a training report keeps: plain values, with six digits."""
        return {KEY: {"scores": [float(f"{score:.6g}") for score in self.scores], "zero": float(f"{self.zero:.6g}")}}

    def threshold(self, false_alarms: float) -> float:
        """The score that a share of good images, from above 0 to below 0.5, is to be expected to reach.

        Raises:
            ValueError: for another share.
        """
        if not 0 < false_alarms < 0.5:
            raise ValueError(f"the share of false alarms is above 0 and below 0.5, such as 0.01; got {false_alarms:g}")
        centre, spread = self._normal()
        return math.exp(centre + spread * NormalDist().inv_cdf(1 - false_alarms)) - self.zero

    def false_alarms(self, threshold: float) -> float:
        """The share of good images that is to be expected to reach a threshold."""
        centre, spread = self._normal()
        if threshold + self.zero <= 0:
            return 1.0
        return NormalDist(centre, spread).cdf(
            2 * centre - math.log(threshold + self.zero)
        )  # of the other side, for its digits

    def _normal(self) -> tuple[float, float]:
        """Mean and standard deviation of the logarithms."""
        median, upper = np.quantile(np.log(np.maximum(self.scores + self.zero, 1e-6)), [0.5, 0.75])
        return float(median), max(float(upper - median) / UPPER_QUARTILE, LEAST_SPREAD)


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
