"""Plots of a report, as what its template draws: lines in an SVG, with axes and words for those who do not see them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 330, 240
LEFT, TOP, RIGHT, BOTTOM = 46, 10, 320, 196  # of the area inside the axes

Points = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Plot:
    """
    Args:
        name: short and unique on the page, for the script.
        title: what it shows.
        across, up: names of the axes.
        said: the same as a sentence.
        lines: name of each line, and its points as an SVG has them.
        ticks: of both axes, place and text of each.
        mark: place of a vertical line with a meaning that `said` tells, or None.
    """

    name: str
    title: str
    across: str
    up: str
    said: str
    lines: list[tuple[str, str]]
    ticks: tuple[list[tuple[float, str]], list[tuple[float, str]]]
    mark: float | None = None


def make_plot(
    name: str,
    title: str,
    axes: tuple[str, str],
    said: str,
    lines: Mapping[str, Points],
    ranges: tuple[tuple[float, float], tuple[float, float]] | None = None,
    mark: float | None = None,
) -> Plot:
    """Draws lines.

    Args:
        axes: their names.
        lines: x and y of each by its name.
        ranges: lowest and highest value of both axes; without them those of the lines.
        mark: x of a vertical line.
    """
    if ranges is None:
        ranges = (_range([x for x, _ in lines.values()]), _range([y for _, y in lines.values()]))
    (left, right), (low, high) = ranges

    def place(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        across = LEFT + (np.asarray(x, dtype=float) - left) / (right - left) * (RIGHT - LEFT)
        return across, BOTTOM - (np.asarray(y, dtype=float) - low) / (high - low) * (BOTTOM - TOP)

    drawn = [(label, _points(*place(x, y))) for label, (x, y) in lines.items()]
    across = [(float(place(np.array(x), np.array(low))[0]), f"{x:.4g}") for x in _ticks(left, right)]
    up = [(float(place(np.array(left), np.array(y))[1]), f"{y:.4g}") for y in _ticks(low, high)]
    marked = None if mark is None else float(place(np.array(mark), np.array(low))[0])
    return Plot(name, title, *axes, said, drawn, (across, up), marked)


def histogram(values: np.ndarray, lowest: float, highest: float, bins: int = 40) -> Points:
    """Counts of values, as the outline of bars."""
    counts, edges = np.histogram(values, bins, (lowest, highest))
    return np.repeat(edges, 2), np.concatenate([[0], np.repeat(counts, 2), [0]])


def _range(values: list[np.ndarray]) -> tuple[float, float]:
    low, high = (float(pick([pick(one) for one in values])) for pick in (min, max))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """Some four round numbers from `low` to `high`."""
    step = 10.0 ** np.floor(np.log10((high - low) / 2))
    step = next(step * factor for factor in (0.5, 1, 2, 5) if (high - low) / (step * factor) <= 5)
    numbers = np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1)
    return [float(f"{number * step:.12g}") + 0.0 for number in numbers]  # never -0


def _points(across: np.ndarray, up: np.ndarray) -> str:
    """Text of points, without those that cannot be told from the one before: as many as the picture has dots at the most."""
    texts = [f"{x:.1f},{y:.1f}" for x, y in zip(across, up, strict=True)]
    return " ".join(text for number, text in enumerate(texts) if not number or text != texts[number - 1])
