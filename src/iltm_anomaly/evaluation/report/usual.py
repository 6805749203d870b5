"""What is usual: the scores that a model keeps of its training images, and the false alarms that they lead one to expect."""

import math
from dataclasses import dataclass

import numpy as np

from iltm_anomaly.thresholds import TrainingScores, share_told

OFFERED = (10, 20, 100, 1000)  # a false alarm in so many good images
STEPS = 200  # thresholds whose false alarms the page knows; between them it interpolates


@dataclass(frozen=True)
class Usual:
    """
    Args:
        good: scores of training images that look good.
        others: of the other training images.
        of: what was scored in training, "images" or "tiles".
        expected: threshold, and the share of good images that is to be expected to reach it; by rising threshold.
        offers: how many good images one false alarm is to be expected in, and the threshold for that.
        is_drawn: whether they are other scores than those of the page's images.
    """

    good: list[float]
    others: list[float]
    of: str
    expected: list[tuple[float, float]]
    offers: list[tuple[int, float]]
    is_drawn: bool

    def told(self, threshold: float) -> str:
        """What is to be expected of a threshold, in a sentence; the page's script says the same."""
        thresholds, shares = zip(*self.expected, strict=True)
        share = float(np.interp(threshold, thresholds, shares))
        reached = sum(score >= threshold for score in self.good)
        return (
            f"To be expected: {share_told(share)} % of good {self.of} called abnormal. Of {len(self.good)} training "
            f"{self.of} that look good, {reached} reach the threshold; of {len(self.others)} others, "
            f"{sum(score >= threshold for score in self.others)} do."
        )


def usual_of(scores: TrainingScores, values: list[float], of: str = "images", is_drawn: bool = True) -> Usual:
    """
    Args:
        scores: of training images.
        values: scores and threshold of the page.
    """
    everything = np.concatenate([scores.good, scores.others, values])
    margin = 0.05 * (everything.max() - everything.min()) + 1.0
    around = np.linspace(everything.min() - margin, everything.max() + margin, STEPS)
    near = np.linspace(float(scores.good.min()), float(scores.good.max()), STEPS)  # where shares change most
    expected = [(_digits(one), scores.false_alarms(one)) for one in sorted({*around.tolist(), *near.tolist()})]
    offers = [(count, scores.threshold(1 / count)) for count in OFFERED]
    good, others = ([_digits(score) for score in group] for group in (scores.good, scores.others))
    return Usual(good, others, of, expected, [one for one in offers if math.isfinite(one[1])], is_drawn)


def _digits(value: float) -> float:
    return float(f"{value:.6g}")
