"""`FeatureTokenizerModel`: tokens are features of a frozen network, codes the nearest of a codebook of theirs."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from iltm_anomaly.tokenizers.base import TokenizerModel
from iltm_anomaly.tokenizers.features.backbones import backbone_of, on_one_grid, pretrained_config
from iltm_anomaly.tokenizers.features.configuration_feature_tokenizer import FeatureTokenizerConfig
from iltm_anomaly.tokenizers.features.fitting import nearest


class FeatureTokenizerModel(TokenizerModel):
    """A token is observed as a vector of D features: several levels of a frozen backbone, brought to one grid, times a matrix in
    which the usual variation of a token about its place has the same size in all directions. Its code is the nearest of K
    codewords, and the distance to it, the residual, is kept by whoever compares the two.

    Attributes:
        metric: (D, D) float32.
        codebook: (K, D) float32.
        detail: (D, E) float32, by which what is observed becomes the features of all levels but the deepest, which sees furthest
            beyond a token, in a metric of their own.
        patches: (K, C, p, p) uint8, the patch of a training image that shows each code, p pixels a side.
    """

    config_class = FeatureTokenizerConfig

    def __init__(self, config: FeatureTokenizerConfig):
        super().__init__(config)
        self.backbone: Any = backbone_of(config.backbone_config, config.levels)
        size, side = sum(self.backbone.channels), config.pixels_per_token
        self.register_buffer("metric", torch.eye(size))
        self.register_buffer("codebook", torch.zeros(config.vocab_size, size))
        self.register_buffer("detail", torch.eye(size)[:, : sum(self.backbone.channels[:-1]) or size])
        self.register_buffer("patches", torch.zeros(config.vocab_size, config.in_channels, side, side).byte())
        self.post_init()
        self.eval()

    @classmethod
    def from_backbone(cls, backbone: str = "efficientnet-lite0", **fields: Any) -> "FeatureTokenizerModel":
        """A tokenizer with the backbone's pretrained weights, and no codes yet.

        Args:
            backbone: as of `FeatureTokenizerConfig`, of which `fields` are more fields.

        Raises:
            ImportError: if the weights of EfficientNet-Lite0 are not installed.
            ValueError: if a field is out of range.
        """
        config = FeatureTokenizerConfig(backbone=backbone, backbone_config=pretrained_config(backbone), **fields)
        model = cls(config)
        model.backbone.load_pretrained(backbone)
        return model

    def train(self, mode: bool = True) -> "FeatureTokenizerModel":
        """Stays as it is: batch normalisation keeps the statistics of the backbone's own training."""
        return super().train(False)

    def set_codes(self, metric: Tensor, codebook: Tensor, detail: Tensor, patches: Tensor) -> None:
        """Takes what was fitted to training tokens; shapes as in the class."""
        values = {"metric": metric, "codebook": codebook, "detail": detail, "patches": patches}
        for name, value in values.items():
            self.get_buffer(name).copy_(value)

    def features(self, pixel_values: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> features (B, h, w, D) float32 before the metric.

        Raises:
            ValueError: if channels or sides do not fit the configuration.
        """
        channels, *sides = pixel_values.shape[1:]
        if channels != self.config.in_channels or any(side % self.pixels_per_token or side == 0 for side in sides):
            raise ValueError(
                f"images must be (B, {self.config.in_channels}, H, W) with sides that are multiples of {self.pixels_per_token}, "
                f"got {tuple(pixel_values.shape)}"
            )
        pixels = pixel_values.to(self.dtype).expand(-1, 3, -1, -1)
        levels = self.backbone(pixels.contiguous(memory_format=torch.channels_last))  # faster, on CPUs too
        return on_one_grid(levels, self.grid_shape(tuple(sides))).float()

    def observe(self, pixel_values: Tensor) -> Tensor:
        metric = self.get_buffer("metric").float()
        return (self.features(pixel_values) @ metric).permute(0, 3, 1, 2)

    def observed_shape(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        return self.grid_shape(spatial)

    def encode(self, pixel_values: Tensor) -> Tensor:
        return self.tokenize(pixel_values)[0]

    def tokenize(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        observed = self.observe(pixel_values)
        vectors = observed.permute(0, 2, 3, 1)
        codes = nearest(vectors.flatten(0, 2), self.get_buffer("codebook").float())
        return codes.view(vectors.shape[:3]), observed

    def expect(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.get_buffer("codebook").float()).permute(0, 3, 1, 2)

    def draw_expected(self, codes: Tensor, num_draws: int, generator: Any) -> Iterator[tuple[slice, Tensor]]:
        """A code leads one to expect its codeword: all draws are the same."""
        yield slice(None), self.expect(codes).repeat_interleave(num_draws, 0)

    def show(self, expected: Tensor) -> Tensor:
        """Expected features (D, h, w) -> the patches of the nearest codes, side by side."""
        vectors = expected.permute(1, 2, 0)
        codes = nearest(vectors.flatten(0, 1).float(), self.get_buffer("codebook").float())
        return self.show_codes(codes.view(vectors.shape[:2]))

    def show_codes(self, codes: Tensor) -> Tensor:
        """The patches of codes (h, w) side by side, (C, *spatial) in [0, 1]."""
        pasted = self.get_buffer("patches")[codes]
        return pasted.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2).float() / 255
