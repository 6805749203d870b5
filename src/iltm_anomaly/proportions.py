"""How wide images are for their height. A model stretches every image to one size, so that one of other proportions than those of
the training looks unlike them, however good it is."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from PIL import Image

KEY = "aspect_ratio"  # of the data in a training report: width over height, the median of the training images
FAR = 1.25  # between two ratios


@dataclass
class Watched:
    """Images one by one, as they come, and what was seen of them on the way.

    Args:
        images: of any form; the proportions of pictures are seen.
        ratios: width over height of each that has come.
    """

    images: Iterable[Any]
    ratios: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]  # a stream has none, and says so

    def __iter__(self) -> Iterator[Any]:
        for image in self.images:
            if isinstance(image, Image.Image):
                self.ratios.append(image.width / image.height)
            yield image

    def report(self) -> dict[str, float]:
        """What a training report keeps of it: nothing where no picture has come."""
        return {KEY: round(median(self.ratios), 4)} if self.ratios else {}


def ratio_of(report: dict[str, Any]) -> float | None:
    """That of the training images, from a training report; None of an earlier version's, of volumes, or if it is damaged."""
    data = report.get("data")
    ratio = data.get(KEY) if isinstance(data, dict) else None
    return ratio if isinstance(ratio, int | float) and 0 < ratio < math.inf else None


def is_far(ratio: float, usual: float) -> bool:
    """Whether stretching an image by the one to an image of the other changes it so much that it is worth a word."""
    return max(ratio / usual, usual / ratio) > FAR
