"""What a report tells, whatever it is of: images with scores and verdicts, and their small pictures."""

import base64
import io
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from iltm_anomaly.data import GOOD
from iltm_anomaly.drawing import overlay
from iltm_anomaly.evaluation.report.plots import Plot
from iltm_anomaly.evaluation.report.truth import Truth
from iltm_anomaly.evaluation.report.usual import Usual
from iltm_anomaly.processing.images import restore_map

SIDE = 160  # pixels: the longer side of a picture
BYTES = 6000  # of a picture of that side, so that a thousand images with two each stay below 20 MB
SATURATED = 4  # times the threshold: from there on the highest value of a map is far beyond the colours of its overlay
QUALITIES = (80, 60, 40, 20)  # of JPEG: the first that fits


@dataclass(frozen=True)
class Picture:
    """
    Args:
        source: a JPEG file as data URI.
        caption: what it shows, in a few words.
        width, height: pixels.
    """

    source: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class Slices:
    """
    Args:
        sheet: all slices in one picture, row by row from the lowest.
        count: of slices.
        across: slices in a row of the sheet.
        width, height: pixels of a slice.
        first: number of the slice to be shown first.
    """

    sheet: Picture
    count: int
    across: int
    width: int
    height: int
    first: int


@dataclass(frozen=True)
class Training:
    """
    Args:
        rounds: number of each round, share of the tokens that it was fitted without, and a remark.
        given_up: path of each of some images, and a picture of what each round was fitted without, by the number of the round.
        calibration: sentences about the threshold.
        plots: losses, and scores of training images.
    """

    rounds: list[tuple[int, float, str]]
    given_up: list[tuple[str, dict[int, Picture]]]
    calibration: list[str]
    plots: list[Plot]


@dataclass(frozen=True)
class ReportRow:
    """
    Args:
        path: of the image, as the user knows it.
        score: higher is more anomalous; finite.
        abnormal: the verdict at the report's own threshold.
        pictures: of the image; may be empty.
        detail: what else there is to say of it, or why it has no picture.
        defect: what it is known to be, "good" or a type of defect; None where nobody knows.
        slices: of a volume, to be scrolled.
    """

    path: str
    score: float
    abnormal: bool
    pictures: list[Picture] = field(default_factory=list)
    detail: str = ""
    defect: str | None = None
    slices: "Slices | None" = None

    @property
    def is_defective(self) -> bool | None:
        """What it is known to be; None where nobody knows."""
        return None if self.defect is None else self.defect != GOOD


@dataclass(frozen=True)
class Report:
    """
    Args:
        title: the page's heading.
        about: sentences below it.
        words: what a normal and an abnormal image is called.
        threshold: score from which on an image is abnormal, unless the reader moves it.
        rows: by falling score.
        unreadable: path and reason of each file that could not be read or scored.
        usual: scores of training images; None where the model keeps none.
        truth: how well scores and maps tell what is known of the images; None where nothing is.
        training: how the model came about; None where nothing was trained.
    """

    title: str
    about: list[str]
    words: tuple[str, str]
    threshold: float
    rows: list[ReportRow]
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    usual: Usual | None = None
    truth: Truth | None = None
    training: "Training | None" = None

    @property
    def scale(self) -> "Scale":
        """Of histogram and slider: all scores lie on it."""
        values = [self.threshold, *(row.score for row in self.rows)]
        if self.usual is not None:
            values += [*self.usual.good, *self.usual.others] if self.usual.is_drawn else []
        margin = 0.02 * (max(values) - min(values)) or 1.0
        return Scale(min(values) - margin, max(values) + margin, self.threshold)


@dataclass(frozen=True)
class Scale:
    """Places of scores, nearly evenly below the threshold and by their logarithm far above it: scores of defects may be a hundred
    times as high as those of good images, which else would be one bar. The page's script does the same.

    Args:
        low, high: scores at both ends.
        threshold: where the scale bends.
    """

    low: float
    high: float
    threshold: float

    @property
    def unit(self) -> float:
        """The distance from `low` at which the logarithm begins."""
        return max(self.threshold - self.low, (self.high - self.low) / 100)

    def place(self, score: float) -> float:
        """From 0 to 1."""
        return math.asinh((score - self.low) / self.unit) / math.asinh((self.high - self.low) / self.unit)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Place, in per cent, and text of some scores."""
        whole = math.asinh((self.high - self.low) / self.unit)
        scores = [self.low + self.unit * math.sinh(whole * part / 6) for part in range(1, 6)]
        texts = [f"{score:.2g}" if abs(score) < 100 else f"{score:.0f}" for score in scores]
        return [(100 * self.place(float(text)), text) for text in dict.fromkeys(texts)]


def peak_of(values: np.ndarray, image: Image.Image, threshold: float) -> Image.Image | None:
    """An image under its map (H, W) of any size, in colours up to the map's own maximum; None where those of its overlay, which
    end at twice the threshold, say enough."""
    if not values.max() > SATURATED * threshold > 0:
        return None
    resized = restore_map(torch.from_numpy(values), (image.height, image.width))
    return overlay(image, resized, float(resized.max()) / 2, lowest=min(0.0, float(resized.min())))


def picture(image: Image.Image, caption: str, side: int = SIDE) -> Picture:
    """An RGB image as a JPEG of at most `side` pixels a side; it is never enlarged."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    for quality in QUALITIES:
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= BYTES * (side / SIDE) ** 2:
            break
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(source, caption, *small.size)
