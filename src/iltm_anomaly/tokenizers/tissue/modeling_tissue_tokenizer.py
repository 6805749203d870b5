"""`TissueTokenizerModel`: every voxel of a PET is a token, and its code says what tissue the CT shows there and around."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from iltm_anomaly.tokenizers.base import TokenizerModel
from iltm_anomaly.tokenizers.features.fitting import nearest
from iltm_anomaly.tokenizers.tissue.configuration_tissue_tokenizer import TissueTokenizerConfig


def voxels_of(pixel_values: Tensor) -> tuple[slice, ...]:
    """The box of a volume (C, *spatial) outside of which its first channel is 0 everywhere: that is padding, and no token. All of
    it where nothing is above 0."""
    above = pixel_values[0] > 0
    if not bool(above.any()):
        return tuple(slice(0, side) for side in above.shape)
    axes = range(above.ndim)
    lines = [above.amax([other for other in axes if other != axis]).nonzero().flatten() for axis in axes]
    return tuple(slice(int(line[0]), int(line[-1]) + 1) for line in lines)


class TissueTokenizerModel(TokenizerModel):
    """What is observed of a voxel is its uptake, the first channel. Its code is what surrounds it in the last channel: the
    nearest of K codewords of means and a standard deviation in windows about it. Of a PET alone both are the same channel.

    Attributes:
        codebook: (K, D) float32, in units of `spread`.
        spread: (D,) float32, standard deviations of what codes are made of, over training voxels.
        usual: (K,) float32 in [0, 1], what the first channel usually is where a code stands.
    """

    config_class = TissueTokenizerConfig

    def __init__(self, config: TissueTokenizerConfig):
        super().__init__(config)
        size = len(config.scales) + 1
        self.codebook = nn.Parameter(
            torch.zeros(config.vocab_size, size), requires_grad=False
        )  # gives the model its type
        self.register_buffer("spread", torch.ones(size))
        self.register_buffer("usual", torch.zeros(config.vocab_size))
        self.post_init()
        self.eval()

    def surroundings(self, channel: Tensor) -> Tensor:
        """One channel of the voxels of one volume (D, H, W) -> what codes are made of, (D, H, W, D') float32 on the CPU."""
        values = channel.float().cpu().numpy()
        means = [ndimage.gaussian_filter(values, scale) for scale in self.config.scales]
        middle = self.config.scales[len(means) // 2]
        variance = ndimage.gaussian_filter(values**2, middle) - means[len(means) // 2] ** 2
        return torch.from_numpy(np.stack([*means, np.sqrt(variance.clip(min=0))], axis=-1))

    def encode(self, pixel_values: Tensor) -> Tensor:
        channels = self.config.in_channels
        if pixel_values.ndim != 5 or pixel_values.shape[1] != channels:
            raise ValueError(f"volumes must be (B, {channels}, D, H, W), got {tuple(pixel_values.shape)}")
        codes = torch.zeros((len(pixel_values), *pixel_values.shape[2:]), dtype=torch.int64)
        codebook, spread = self.codebook.float().cpu(), self.get_buffer("spread").float().cpu()
        for own, volume in zip(codes, pixel_values, strict=True):
            box = voxels_of(volume)
            found = self.surroundings(volume[-1][box]) / spread
            own[box] = nearest(found.flatten(0, 2), codebook).view(found.shape[:3])
        return codes.to(pixel_values.device)

    def observe(self, pixel_values: Tensor) -> Tensor:
        return pixel_values[:, :1].float()

    def expect(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.get_buffer("usual").float()[:, None]).movedim(-1, 1)

    def draw_expected(self, codes: Tensor, num_draws: int, generator: Any) -> Iterator[tuple[slice, Tensor]]:
        """A code leads one to expect what is usual there: all draws are the same."""
        yield slice(None), self.expect(codes).repeat_interleave(num_draws, 0)

    def show(self, expected: Tensor) -> Tensor:
        return expected
