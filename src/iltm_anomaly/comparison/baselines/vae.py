"""VAE: the autoencoder of `autoencoder` with a Gaussian code (Baur et al. 2021; the VAE of its code)."""

from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from iltm_anomaly.comparison.baselines.autoencoder import (
    AutoencoderConfig,
    AutoencoderModel,
    absolute_error,
    autoencoder_recipes,
)
from iltm_anomaly.comparison.baselines.modeling import AnomalyModelOutput, BaselineRecipe


@strict
class VAEConfig(AutoencoderConfig):
    """Configuration of `VAEModel`: the fields of `AutoencoderConfig`, with the dropout of the source's VAE."""

    model_type = "iltm_vae"

    dropout: float = 0.1


class VAEModel(AutoencoderModel):
    """Map and score are those of `AutoencoderModel`, with the reconstruction from the mean code."""

    config_class: Any = VAEConfig
    recipes: ClassVar[dict[str, BaselineRecipe]] = autoencoder_recipes(0.1)
    codes_per_image = 2

    def forward(self, pixel_values: Tensor) -> AnomalyModelOutput:
        """Loss: absolute error summed over an image, plus the divergence of its code from a unit normal; mean over images.
        Prediction: reconstructions (B, C, H, W), in training mode of a code drawn from the global random state, else of the
        mean code."""
        mean, log_deviation = self.dropout(self._encode(pixel_values)).float().chunk(2, dim=1)
        latent = mean
        if self.training:
            latent = mean + log_deviation.exp() * torch.randn_like(mean)
        reconstruction = self._decode(latent.to(self.dtype))
        loss = absolute_error(reconstruction, pixel_values) + divergence(mean, log_deviation)
        return AnomalyModelOutput(loss=loss, prediction=reconstruction)


def divergence(mean: Tensor, log_deviation: Tensor) -> Tensor:
    """KL(N(mean, deviation^2) || N(0, 1)) in nats, summed over the code (B, Z), averaged over images."""
    return 0.5 * (mean.square() + (2 * log_deviation).exp() - 2 * log_deviation - 1).sum(1).mean()
