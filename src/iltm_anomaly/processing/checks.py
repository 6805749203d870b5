"""Checks of the processor's settings; each returns the setting in the form that is saved, or raises ValueError."""

from collections.abc import Sequence
from typing import Any

import numpy as np

VOLUME_AXES = ("depth", "height", "width")


def check_size(size: int | dict[str, int] | Any) -> dict[str, int]:
    if isinstance(size, int):
        size = {"height": size, "width": size}
    try:
        sides = dict(size)
        valid = set(sides) in ({"height", "width"}, set(VOLUME_AXES))
        valid = valid and all(isinstance(side, int) and side >= 1 for side in sides.values())
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            f'size must be {{"height": H, "width": W}} in whole pixels or one number, with "depth" for volumes, got {size!r}'
        )
    return {axis: sides[axis] for axis in VOLUME_AXES if axis in sides}


def check_pair(
    name: str, pair: Sequence[float] | None, least: float = -np.inf, largest: float = np.inf
) -> list[float] | None:
    if pair is None:
        return None
    try:
        low, high = (float(value) for value in pair)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be two numbers, low < high, got {pair!r}") from None
    if not (least <= low < high <= largest and np.isfinite(high - low)):
        raise ValueError(f"{name} must be two numbers, {least:g} <= low < high <= {largest:g}, got {pair!r}")
    return [low, high]


def check_spacing(spacing: float | Sequence[float] | None) -> list[float] | None:
    if spacing is None:
        return None
    values = np.broadcast_to(np.asarray(spacing, dtype=float), 3) if np.size(spacing) in (1, 3) else np.zeros(1)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"spacing must be one positive number of mm, or three, got {spacing!r}")
    return [float(value) for value in values]
