"""What a report tells, whatever it is of: images with scores and verdicts, and their small pictures."""

import base64
import io
from dataclasses import dataclass, field

from PIL import Image

SIDE = 160  # pixels: the longer side of a picture
BYTES = 6000  # of a picture of that side, so that a thousand images with two each stay below 20 MB
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
class ReportRow:
    """
    Args:
        path: of the image, as the user knows it.
        score: higher is more anomalous; finite.
        abnormal: the verdict at the report's own threshold.
        pictures: of the image; may be empty.
        detail: what else there is to say of it, or why it has no picture.
    """

    path: str
    score: float
    abnormal: bool
    pictures: list[Picture] = field(default_factory=list)
    detail: str = ""


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
        rounds: number of each round of training, share of tokens that it rejected, and a remark; empty where nothing was trained.
    """

    title: str
    about: list[str]
    words: tuple[str, str]
    threshold: float
    rows: list[ReportRow]
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    rounds: list[tuple[int, float, str]] = field(default_factory=list)

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest threshold that the page offers: all scores lie between them."""
        values = [self.threshold, *(row.score for row in self.rows)]
        margin = 0.02 * (max(values) - min(values)) or 1.0
        return min(values) - margin, max(values) + margin


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
