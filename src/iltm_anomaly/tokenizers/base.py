"""What ILTM asks of a tokenizer: images to codes, and what codes lead one to expect of an image."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from iltm_anomaly.modeling import SafetensorsModel

VOXELS_AT_ONCE = 1 << 20


class TokenizerModel(SafetensorsModel, ABC):
    """Base of all tokenizers.

    The prior, masking, healing and scoring know a tokenizer by this interface alone. What is *observed* of an image, and compared
    with what its healed codes lead one to expect, is the tokenizer's choice: pixels, or feature vectors on a coarser grid.

    `config` has `vocab_size`, `spatial_dims` (2 for images, 3 for volumes), `in_channels` and `pixels_per_token`.
    """

    config: Any
    main_input_name = "pixel_values"

    @property
    def vocab_size(self) -> int:
        """Number of codes, K."""
        return self.config.vocab_size

    @property
    def pixels_per_token(self) -> int:
        """Pixels per token along each axis, of which every side of an image is a multiple."""
        return self.config.pixels_per_token

    def grid_shape(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Grid of tokens of an image of size `spatial`, in the same order of axes."""
        return tuple(side // self.pixels_per_token for side in spatial)

    def observed_shape(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Grid of what is observed of an image of size `spatial`: its pixels, unless a tokenizer says otherwise."""
        return spatial

    @abstractmethod
    def encode(self, pixel_values: Tensor) -> Tensor:
        """Images (B, C, *spatial) in [0, 1] -> codes (B, *grid) int64, each from 0 to K - 1.

        Raises:
            ValueError: if channels or sides do not fit the configuration.
        """

    def tokenize(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """`encode` and `observe` at once, for less where they share work. Images are taken in any floating-point type."""
        return self.encode(pixel_values.to(self.dtype)), self.observe(pixel_values)

    @abstractmethod
    def observe(self, pixel_values: Tensor) -> Tensor:
        """Images (B, C, *spatial) in [0, 1] -> what is observed of them, (B, F, *observed) float32."""

    @abstractmethod
    def expect(self, codes: Tensor) -> Tensor:
        """Codes (B, *grid) -> the mean of what one would observe, (B, F, *observed) float32."""

    @abstractmethod
    def draw_expected(self, codes: Tensor, num_draws: int, generator: Any) -> Iterator[tuple[slice, Tensor]]:
        """Draws what one might observe under each grid of codes, part by part along the first axis to save memory.

        Args:
            codes: (S, *grid) int64.
            num_draws: draws D for each of the S grids.
            generator: `torch.Generator` on the CPU, the only random state that is used.

        Yields:
            The part's slice of the first axis of *observed*, and its draws (S * D, F, rows, ...) float32.
        """

    @abstractmethod
    def show(self, expected: Tensor) -> Tensor:
        """What is expected (F, *observed) as a picture for people, (C, *spatial) in [0, 1]."""


def images_at_once(images: Any, most: int = 8) -> int:
    """How many images (N, C, *spatial) go through a tokenizer together: `most`, fewer if they are large volumes."""
    if len(images.shape) == 4:
        return most
    return max(1, min(most, VOXELS_AT_ONCE // math.prod(images.shape[1:])))
