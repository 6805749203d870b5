"""How an image is cut into overlapping tiles, and how the maps of these are blended without a seam. It needs neither torch nor
transformers."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

OVERLAP = 0.5  # of a tile with the next, at inference: what lies at the border of one is in the middle of another


def starts(length: int, tile: int, overlap: float) -> list[int]:
    """First pixels of tiles along a side of `length` pixels: as few as overlap by that share at least, evenly spread."""
    if length <= tile:
        return [0]
    step = max(1, round(tile * (1 - overlap)))
    count = -(-(length - tile) // step) + 1
    return [round(number * (length - tile) / (count - 1)) for number in range(count)]


def weights_along(length: int, tile: int, firsts: list[int]) -> list[np.ndarray]:
    """Weights (tile,) of each tile along a side: they rise and fall as a squared sine and are 1 together at every pixel."""
    side = min(tile, length)
    window = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    total = np.zeros(length)
    for first in firsts:
        total[first : first + side] += window
    return [(window / total[first : first + side]).astype(np.float32) for first in firsts]


@dataclass(frozen=True)
class Tiling:
    """How an image is cut into tiles.

    Args:
        height, width: of the image.
        tile: side of a tile in pixels; of a side of the image that is shorter, the tile has all.
        overlap: least share of a tile that it has in common with the next.
    """

    height: int
    width: int
    tile: int
    overlap: float = OVERLAP

    @cached_property
    def rows(self) -> list[int]:
        return starts(self.height, self.tile, self.overlap)

    @cached_property
    def columns(self) -> list[int]:
        return starts(self.width, self.tile, self.overlap)

    @property
    def tile_size(self) -> tuple[int, int]:
        """(height, width) of every tile."""
        return min(self.tile, self.height), min(self.tile, self.width)

    def windows(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each tile, row by row."""
        height, width = self.tile_size
        for top, left in itertools.product(self.rows, self.columns):
            yield slice(top, top + height), slice(left, left + width)

    def cut(self, image: Image.Image | np.ndarray) -> Iterator[Image.Image | np.ndarray]:
        """The tiles of what `decode_image` returns, row by row, each as it."""
        for rows, columns in self.windows():
            if isinstance(image, Image.Image):
                yield image.crop((columns.start, rows.start, columns.stop, rows.stop))
            else:
                yield image[rows, columns]

    def add(self, whole: np.ndarray, number: int, part: np.ndarray) -> None:
        """Adds tile `number` (h, w) or (h, w, C), times its weights, to the `whole`, which is 0 at first and complete after all
        tiles. Weights of one pixel sum to 1; of uint8 every summand is rounded."""
        row, column = divmod(number, len(self.columns))
        weights = self._weights[0][row][:, None] * self._weights[1][column]
        weights = weights.reshape(*weights.shape, *[1] * (part.ndim - 2))
        top, left = self.rows[row], self.columns[column]
        height, width = self.tile_size
        here = whole[top : top + height, left : left + width]
        if whole.dtype == np.uint8:
            here[:] = np.minimum(here + np.rint(weights * part), 255)
        else:
            here += weights * part

    @cached_property
    def _weights(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return (
            weights_along(self.height, self.tile, self.rows),
            weights_along(self.width, self.tile, self.columns),
        )


def tiling_of(image: Image.Image | np.ndarray, tile: int, overlap: float = OVERLAP) -> Tiling:
    """The tiling of what `decode_image` returns."""
    height, width = image.size[::-1] if isinstance(image, Image.Image) else image.shape[:2]
    return Tiling(height, width, tile, overlap)
