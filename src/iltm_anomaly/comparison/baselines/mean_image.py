"""The trivial baseline: how far an image is from the mean training image. A method that does no better has learned nothing."""

from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from iltm_anomaly.comparison.baselines.modeling import (
    AnomalyModelOutput,
    BaselineConfig,
    BaselineModel,
    BaselineRecipe,
)


@strict
class MeanImageConfig(BaselineConfig):
    """Configuration of `MeanImageModel`; see `BaselineConfig`."""

    model_type = "iltm_mean_image"


class MeanImageModel(BaselineModel):
    """Map: absolute difference of an image to the mean training image. Score: the map's maximum."""

    config_class = MeanImageConfig
    recipes: ClassVar[dict[str, BaselineRecipe]] = {name: BaselineRecipe() for name in ("paper", "cpu", "tiny")}

    def __init__(self, config: MeanImageConfig):
        super().__init__(config)
        # a parameter rather than a buffer, since transformers takes the model's device and type from its parameters
        self.mean = nn.Parameter(torch.zeros(config.in_channels, *config.image_size), requires_grad=False)
        self.post_init()

    @torch.no_grad()
    def fit_statistics(self, images: Any, seed: int) -> None:
        """Averages the training images."""
        total = torch.zeros_like(self.mean, dtype=torch.float64)
        for batch in self.batches(images):
            total += batch.double().sum(0)
        self.mean.copy_(total / len(images))

    def forward(self, pixel_values: Tensor) -> AnomalyModelOutput:
        """Loss: mean absolute difference to the mean training image. Prediction: that image, for each of (B, C, H, W)."""
        self.check_pixels(pixel_values)
        mean = self.mean.expand_as(pixel_values)
        return AnomalyModelOutput(loss=(pixel_values - mean).abs().mean(), prediction=mean)
