"""AE: autoencoder with a dense bottleneck (Baur et al., "Autoencoders for unsupervised anomaly segmentation in brain MR images: a
comparative study", Medical Image Analysis 69, 2021; the unified architecture of its code).

Convolutions of 5 x 5 halve an image down to about 8 x 8, a dense layer makes a short code of it, and the way back makes an image.
What that image lacks is abnormal.
"""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from iltm_anomaly.comparison.baselines.modeling import (
    AnomalyModelOutput,
    BaselineConfig,
    BaselineModel,
    BaselineRecipe,
)
from iltm_anomaly.recipes.pixel_recipe import StageRecipe

BOTTLENECK_SIDE = 8  # pixels of the smallest feature map
LEAK = 0.3  # slope of LeakyReLU below 0: the default of Keras, which the source uses


@strict
class AutoencoderConfig(BaselineConfig):
    """Configuration of `AutoencoderModel`. Defaults are the source's.

    Args:
        first_width, largest_width: filters of the first level, doubled at every level up to the largest.
        latent_size: length of the dense code.
        dropout: on the code, and on what the decoder's dense layer makes of it.
    """

    model_type = "iltm_autoencoder"

    first_width: int = 32
    largest_width: int = 128
    latent_size: int = 128
    dropout: float = 0.2

    def validate_sizes(self):
        """Raises ValueError where a size or rate is out of range."""
        for name in ("first_width", "largest_width", "latent_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Filters of each level. There are as many levels as leave 8 pixels of the shorter side, fewer if one would have to halve
        an odd side."""
        levels = max(1, int(math.log2(max(2, min(self.image_size) / BOTTLENECK_SIDE))))
        while levels > 1 and any(side % 2**levels for side in self.image_size):
            levels -= 1
        return tuple(min(self.largest_width, self.first_width * 2**level) for level in range(levels))


def autoencoder_recipes(dropout: float) -> dict[str, BaselineRecipe]:
    """Recipes of AE and VAE, which differ in their dropout. Images are not augmented, as in the source."""
    source = StageRecipe(epochs=500, batch_size=8, learning_rate=1e-4, schedule="constant", max_grad_norm=0)
    short = StageRecipe(steps=5000, batch_size=16, learning_rate=1e-3)
    tiny = StageRecipe(steps=120, batch_size=8, learning_rate=3e-3)
    narrow = {"first_width": 16, "largest_width": 64, "dropout": dropout}
    small = {"first_width": 8, "largest_width": 16, "latent_size": 16, "dropout": 0.0}
    return {
        "paper": BaselineRecipe(source, {"dropout": dropout}),
        "cpu": BaselineRecipe(short, narrow, "bf16"),
        "tiny": BaselineRecipe(tiny, small),
    }


class AutoencoderModel(BaselineModel):
    """Map: absolute difference of an image to its reconstruction. Score: the map's maximum."""

    config_class: Any = AutoencoderConfig
    recipes: ClassVar[dict[str, BaselineRecipe]] = autoencoder_recipes(0.2)
    codes_per_image = 1  # what the encoder's dense layer makes of an image; of the VAE two, a mean and a deviation

    def __init__(self, config: Any):
        super().__init__(config)
        widths = config.widths
        encoder: list[nn.Module] = []
        for entering, width in zip((config.in_channels, *widths), widths, strict=False):
            encoder += [nn.Conv2d(entering, width, 5, stride=2, padding=2), nn.BatchNorm2d(width), nn.LeakyReLU(LEAK)]
        squeezed = max(1, widths[-1] // 8)
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(widths[-1], squeezed, 1))
        self.smallest = (squeezed, *(side // 2 ** len(widths) for side in config.image_size))
        self.to_latent = nn.Linear(math.prod(self.smallest), self.codes_per_image * config.latent_size)
        self.from_latent = nn.Linear(config.latent_size, math.prod(self.smallest))
        decoder: list[nn.Module] = [nn.Conv2d(squeezed, widths[-1], 1), nn.BatchNorm2d(widths[-1]), nn.ReLU()]
        entering = widths[-1]
        for level in range(len(widths)):
            width = max(config.first_width, config.largest_width // 2**level)
            up = nn.ConvTranspose2d(entering, width, 5, stride=2, padding=2, output_padding=1)
            decoder += [up, nn.BatchNorm2d(width), nn.LeakyReLU(LEAK)]
            entering = width
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(entering, config.in_channels, 1))
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def _encode(self, pixel_values: Tensor) -> Tensor:
        self.check_pixels(pixel_values)
        return self.to_latent(self.encoder(pixel_values).flatten(1))  # (B, codes_per_image * latent_size)

    def _decode(self, latent: Tensor) -> Tensor:
        return self.decoder(self.dropout(self.from_latent(latent)).unflatten(1, self.smallest))

    def forward(self, pixel_values: Tensor) -> AnomalyModelOutput:
        """Loss: absolute error summed over an image, mean over images. Prediction: reconstructions (B, C, H, W), not clamped."""
        reconstruction = self._decode(self.dropout(self._encode(pixel_values)))
        return AnomalyModelOutput(loss=absolute_error(reconstruction, pixel_values), prediction=reconstruction)


def absolute_error(reconstruction: Tensor, pixel_values: Tensor) -> Tensor:
    """Absolute difference of images (B, C, H, W), summed over each image, mean over images; computed in float32."""
    return (reconstruction.float() - pixel_values.float()).abs().sum((1, 2, 3)).mean()
