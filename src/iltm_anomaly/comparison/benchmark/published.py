"""The figures that the paper printed, two of which cannot be right."""

import math
from functools import cache
from importlib import resources
from typing import Any

import yaml


@cache
def load_published() -> dict[str, Any]:
    """What `published.yaml` holds: source, methods, and by category and metric [mean, standard deviation] of each method."""
    return yaml.safe_load((resources.files(__package__) / "published.yaml").read_text(encoding="utf-8"))


def published(method: str | None, category: str, metric: str) -> tuple[float, float] | None:
    """Mean and standard deviation in per cent as printed; None if the table has no such cell."""
    table = load_published()
    row = table["categories"].get(category, {}).get(metric)
    if row is None or method not in table["methods"]:
        return None
    mean, deviation = row[table["methods"].index(method)]
    return mean, deviation


def comparable(method: str | None, category: str, metric: str) -> float | None:
    """The printed mean in per cent; None if there is none, or if it is impossible and must not be compared with."""
    cell = published(method, category, metric)
    return None if cell is None or is_impossible(*cell) else cell[0]


def is_impossible(mean: float, deviation: float) -> bool:
    """Whether no values from 0 to 100 have this mean and standard deviation. The largest deviation, sqrt(mean (100 - mean)), is
    that of values that are all 0 or 100."""
    return deviation > math.sqrt(mean * (100 - mean))
