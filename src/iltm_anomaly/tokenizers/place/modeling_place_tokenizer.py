"""`PlaceTokenizerModel`: every voxel of a body is a token, and its code says where in the body it lies."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iltm_anomaly.tokenizers.base import TokenizerModel
from iltm_anomaly.tokenizers.place.configuration_place_tokenizer import PlaceTokenizerConfig


class PlaceTokenizerModel(TokenizerModel):
    """What is observed of a voxel is its uptake. Its code is its number on the grid, on which bodies have the same parts at the
    same places.

    Attributes:
        usual: (D, H, W) float32 in [0, 1], the median uptake at each place.
    """

    config_class = PlaceTokenizerConfig

    def __init__(self, config: PlaceTokenizerConfig):
        super().__init__(config)
        self.usual = nn.Parameter(torch.zeros(config.grid_shape), requires_grad=False)
        self.post_init()
        self.eval()

    def encode(self, pixel_values: Tensor) -> Tensor:
        expected = (1, *self.config.grid_shape)
        if tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(f"volumes must be (B, {', '.join(map(str, expected))}), got {tuple(pixel_values.shape)}")
        places = torch.arange(self.vocab_size, device=pixel_values.device).view(self.config.grid_shape)
        return places.expand(len(pixel_values), *places.shape)

    def observe(self, pixel_values: Tensor) -> Tensor:
        return pixel_values.float()

    def expect(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.usual.float().view(-1, 1)).movedim(-1, 1)

    def draw_expected(self, codes: Tensor, num_draws: int, generator: Any) -> Iterator[tuple[slice, Tensor]]:
        """A place leads one to expect what is usual there: all draws are the same."""
        yield slice(None), self.expect(codes).repeat_interleave(num_draws, 0)

    def show(self, expected: Tensor) -> Tensor:
        return expected
