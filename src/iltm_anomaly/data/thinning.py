"""A few of many values; apart from the rest, so that importing the metrics stays light."""

import math

import numpy as np


def thinned(values: np.ndarray, count: int) -> np.ndarray:
    """About `count` values of an array, spread evenly over it.

    They lie a fixed step apart in memory. The step has no factor in common with any side of the array: with one it would never
    meet most places along that axis.
    """
    step = max(1, values.size // count)
    while any(math.gcd(step, side) > 1 for side in values.shape):
        step += 1
    return values.ravel()[::step]
