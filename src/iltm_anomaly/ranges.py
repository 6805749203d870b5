"""Least and largest value of each setting of inference, and the check of them."""

from dataclasses import fields
from numbers import Integral, Real
from typing import Any

# Least and largest value of each setting. What lies beyond is a mistake or malice: a huge filter takes all memory.
RANGES: dict[str, tuple[float, float]] = {
    "token_threshold": (0, 1),
    "neighbourhood": (0, 100),
    "outlier_scale": (0, 1e6),
    "surprise_limit": (0, 1e6),
    "num_samples": (1, 10_000),
    "num_dropout_passes": (0, 10_000),
    "num_contexts": (0, 10_000),
    "bandwidth_floor": (1e-6, 1),
    "likelihood_share": (0, 1),
    "surprise_floor": (0, 100),
    "smoothing": (0, 100),
    "score_threshold": (-1e30, 1e30),
    "code_share": (0, 1),
    "score_share": (1e-6, 1),
    "code_scale": (1e-12, 1e12),
    "position_scale": (1e-12, 1e12),
    "coarse_weight": (0, 1e3),
    "usual_fine": (0, 1e12),
    "usual_coarse": (0, 1e12),
    "detail_weight": (0, 1e3),
    "usual_detail": (0, 1e12),
    "map_scale": (1e-12, 1e12),
    "sum_scale": (1e-12, 1e12),
    "sum_offset": (-1e12, 1e12),
    "pixel_weight": (0, 1e3),
    "usual_pixels": (-1e12, 1e12),
    "pixel_scale": (1e-12, 1e12),
    "token_limit": (-1e12, 1e12),
    "false_alarm_share": (0, 1),
    "tissue_weight": (0, 100),
    "background": (1e-6, 1e6),
    "threshold_at_fast": (-1e30, 1e30),
    "threshold_at_score": (-1e30, 1e30),
    "tile": (8, 1e6),
}
WHOLE = (int, int | None)  # types of settings that are whole numbers


def check_fields(settings: Any) -> None:
    """Raises ValueError if a value is not of its type or not in `RANGES`; numbers become Python's own."""
    for setting in fields(settings):
        value: Any = getattr(settings, setting.name)
        if value is None and setting.default is None:
            continue
        if setting.type is bool:
            valid, expected = isinstance(value, bool), "true or false"
        else:
            low, high = RANGES[setting.name]
            kind: Any = Integral if setting.type in WHOLE else Real
            text = "whole number" if kind is Integral else "number"
            # the comparison is false for NaN
            valid = isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high
            expected = f"a {text} from {low:g} to {high:g}"
        if not valid:
            raise ValueError(f"setting {setting.name!r} must be {expected}, got {value!r}")
        if setting.type is not bool:  # numpy's numbers cannot be saved
            setattr(settings, setting.name, int(value) if setting.type in WHOLE else float(value))
