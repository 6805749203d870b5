"""Seeds and random numbers that are the same on every machine and with every version of numpy.

numpy promises that the raw 64-bit integers of a bit generator (PCG64) never change, but not what the methods of `Generator` make
of them. So whatever must stay as it is, such as the split of a data set, is drawn from the raw integers.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

_MASK = (1 << 64) - 1


def raw_integers(seed: int | Sequence[int], count: int) -> np.ndarray:
    """(count,) uint64 raw integers of PCG64 for a seed, which is one or several non-negative integers."""
    return np.random.PCG64(seed).random_raw(count)


def uniforms(seed: int | Sequence[int], count: int) -> np.ndarray:
    """(count,) float64 uniform in [0, 1), from the upper 53 bits of `raw_integers`."""
    return (raw_integers(seed, count) >> np.uint64(11)) * 2.0**-53


def sample_seed(base_seed: int, *counters: int) -> int:
    """Seed of one sample: a hash of a base seed and counters (epoch, copy, row, ...).

    Each number is mixed in by one step of splitmix64 (Steele, Lea and Flood 2014). So seeds that differ in any counter, or in
    the order of the counters, are unrelated.

    Args:
        base_seed: any integer, of which the lower 64 bits count.
        counters: integers, for instance (epoch, row).

    Returns:
        Integer in [0, 2**63), which both `torch.Generator.manual_seed` and numpy accept.
    """
    state = 0
    for number in (len(counters), base_seed, *counters):
        state = (state ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


def check_seed(seed: Any) -> int:
    """A seed that `torch.Generator.manual_seed` accepts.

    Raises:
        ValueError: if it is no whole number of 64 bits.
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not -(1 << 63) <= int(seed) <= _MASK:
        raise ValueError(f"a seed must be a whole number of 64 bits, got {seed!r}")
    return int(seed)
