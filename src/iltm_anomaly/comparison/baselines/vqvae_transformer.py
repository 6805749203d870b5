"""VQ-VAE + Transformer (Pinaya et al., "Unsupervised brain imaging 3D anomaly detection and segmentation with transformers",
Medical Image Analysis 79, 2022): the networks of ILTM's round 0, before anything is masked (`round_zero.from_run`).

It has two maps. "residual" is that of its paper; "kde" is ILTM's own, so that the masks are the only difference to ILTM. The
ensemble over orderings of the tokens is left out, as in ILTM itself.
"""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from iltm_anomaly import masking
from iltm_anomaly.comparison.baselines.modeling import AnomalyModelOutput, BaselineConfig, BaselineModel
from iltm_anomaly.healing import heal
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.prior import PerformerPriorConfig, PerformerPriorModel
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.scoring import smooth, to_pixels
from iltm_anomaly.settings import InferenceSettings
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig, VQVAEModel

MAPS = ("kde", "residual")
# Width of the filter over the mask of resampled tokens, in tokens: the 6 pixels of the authors' code, whose tokens have 8.
GATE_SIGMA = 0.75


@strict
class VQVAETransformerConfig(BaselineConfig):
    """Configuration of `VQVAETransformerModel`.

    Args:
        vqvae, prior: configurations of the two networks, or their fields.
        map: "kde" or "residual".
        inference: of "kde", the fields of `InferenceSettings`, as calibrated.
        token_threshold: of "residual", the probability below which a token is resampled; None is 1.3 over the number of codes.
        num_samples: of "residual", the resampled codes whose reconstructions are averaged.
    """

    model_type = "iltm_vqvae_transformer"

    vqvae: Any = None
    prior: Any = None
    map: str = "kde"
    inference: dict | None = None
    token_threshold: float | None = None
    num_samples: int = 5

    def __post_init__(self, **kwargs):
        self.vqvae = _part(VQVAEConfig, self.vqvae)
        self.prior = _part(PerformerPriorConfig, self.prior)
        super().__post_init__(**kwargs)

    def validate_maps(self):
        """Raises ValueError where a value is out of range."""
        if self.map not in MAPS:
            raise ValueError(f"map must be one of {MAPS}, got {self.map!r}")
        if not 1 <= self.num_samples <= 1000:
            raise ValueError(f"num_samples must be 1 to 1000, got {self.num_samples}")
        InferenceSettings.from_dict(self.inference or {}, "inference")

    def claimed_sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        depths, widths = self.vqvae.claimed_sizes()
        for mine, more in zip((depths, widths), self.prior.claimed_sizes(), strict=True):
            mine.update({f"prior.{key}": value for key, value in more.items()})
        return depths, widths


def _part(config_class: Any, value: Any) -> Any:
    if isinstance(value, config_class):
        return value
    return config_class(**{key: item for key, item in (value or {}).items() if key != "model_type"})


class VQVAETransformerModel(BaselineModel):
    """Map: as `config.map` says. Score: the map's maximum. Every image is healed with seed 0, and so has one map."""

    config_class = VQVAETransformerConfig

    def __init__(self, config: VQVAETransformerConfig):
        super().__init__(config)
        self.vqvae = VQVAEModel(config.vqvae)
        self.prior = PerformerPriorModel(config.prior)
        # of "kde": the usual reconstruction error of each pixel, see `ILTMAnomalyPipeline`
        self.register_buffer("noise", torch.zeros(config.image_size))
        self.post_init()

    def forward(self, pixel_values: Tensor) -> AnomalyModelOutput:
        """Loss: negative log-likelihood of a token in nats, mean over all tokens. Prediction: that of each token, (B, *grid)."""
        self.check_pixels(pixel_values)
        codes = self.vqvae.encode(pixel_values)
        surprise = -self.prior.log_likelihood(codes.flatten(1)).view(codes.shape)
        return AnomalyModelOutput(loss=surprise.mean(), prediction=surprise)

    @torch.no_grad()
    def anomaly_maps(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        self.check_pixels(pixel_values)
        maps = self._kde_maps(pixel_values) if self.config.map == "kde" else self._residual_maps(pixel_values)
        return maps.amax((1, 2)), maps

    def _kde_maps(self, pixel_values: Tensor) -> Tensor:
        height, width = self.config.image_size
        processor = ILTMImageProcessor(size={"height": height, "width": width}, num_channels=self.config.in_channels)
        settings = InferenceSettings.from_dict(self.config.inference or {}, "inference")
        iltm = ILTMAnomalyPipeline(self.vqvae, self.prior, processor, settings, noise=self.get_buffer("noise").cpu())
        return torch.stack(iltm.score_batch(pixel_values, settings, 0)[0])

    def _residual_maps(self, pixel_values: Tensor) -> Tensor:
        codes = self.vqvae.encode(pixel_values)
        surprise = -self.prior.log_likelihood(codes.flatten(1))
        tau = self.config.token_threshold
        tau = masking.default_token_threshold(self.vqvae.config.vocab_size) if tau is None else tau
        keep = masking.keep_mask(surprise, masking.surprise_limit(tau))
        generators = [torch.Generator().manual_seed(0) for _ in codes]
        healed = heal(self.prior, codes.flatten(1), keep, self.config.num_samples, generators)
        maps = []
        for image, samples, kept in zip(pixel_values, healed, keep, strict=True):
            reconstructions = self.vqvae.expect(samples.unflatten(1, codes.shape[1:]))
            maps.append(gated_residual(image.float(), reconstructions.mean(0), ~kept.view(codes.shape[1:])))
        return self.smoothed(torch.stack(maps))


def gated_residual(image: Tensor, healed: Tensor, resampled: Tensor) -> Tensor:
    """The map "residual" of one image: its absolute difference to the healed one, averaged over channels, times a gate.

    Args:
        image, healed: (C, H, W) in [0, 1].
        resampled: (h, w) bool, True where a token was drawn again. Smoothed it is the gate: 1 amid many such tokens, 0 far from
            any.
    """
    spatial = (image.shape[1], image.shape[2])
    mask = to_pixels(resampled, spatial, "nearest")
    gate = smooth(mask, GATE_SIGMA * spatial[0] / resampled.shape[0])
    return (image - healed).abs().mean(0) * gate


def residual_settings() -> dict[str, Any]:
    """Defaults of the fields that the map "residual" depends on, beside the networks."""
    defaults = VQVAETransformerModel.config_defaults()
    return {name: defaults[name] for name in ("token_threshold", "num_samples", "smoothing")}
