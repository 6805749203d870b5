"""The figures that the paper printed, and the two among them that cannot be right."""

import math
from functools import cache
from importlib import resources
from typing import Any

import yaml


@cache
def load_published() -> dict[str, Any]:
    """`published.yaml`: source, methods, and per category and metric one [mean, standard deviation] a method."""
    return yaml.safe_load((resources.files(__package__) / "published.yaml").read_text(encoding="utf-8"))


def published(method: str | None, category: str, metric: str) -> tuple[float, float] | None:
    """Mean and standard deviation in per cent as printed, None where the table has no such cell."""
    table = load_published()
    row = table["categories"].get(category, {}).get(metric)
    if row is None or method not in table["methods"]:
        return None
    mean, deviation = row[table["methods"].index(method)]
    return mean, deviation


def comparable(method: str | None, category: str, metric: str) -> float | None:
    """The printed mean, None where there is none or it must not be compared against."""
    cell = published(method, category, metric)
    return None if cell is None or is_impossible(*cell) else cell[0]


def is_impossible(mean: float, deviation: float) -> bool:
    """Whether no set of values in [0, 100] has this mean and standard deviation: at most sqrt(mean (100 - mean)), the deviation
    of values that are all 0 or 100."""
    return deviation > math.sqrt(mean * (100 - mean))
