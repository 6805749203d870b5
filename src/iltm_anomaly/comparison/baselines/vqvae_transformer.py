"""VQ-VAE + Transformer (Pinaya et al., "Unsupervised brain imaging 3D anomaly detection and segmentation with transformers",
Medical Image Analysis 79, 2022): round 0 of an ILTM run, the same networks before anything is masked.

Two maps: "residual", as in its paper, and "kde", ILTM's own, which leaves the masks as the only difference to ILTM. The ensemble
over orderings is left out, as in ILTM itself.
"""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from iltm_anomaly import masking
from iltm_anomaly.calibration import calibration_images
from iltm_anomaly.comparison.baselines import VQVAE_TRANSFORMER
from iltm_anomaly.comparison.baselines.modeling import AnomalyModelOutput, BaselineConfig, BaselineModel, check_pixels
from iltm_anomaly.comparison.baselines.pipeline import BaselinePipeline
from iltm_anomaly.comparison.baselines.training import images_digest
from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.healing import heal
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.prior import PerformerPriorConfig, PerformerPriorModel
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.scoring import smooth, to_pixels
from iltm_anomaly.settings import InferenceSettings
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig, VQVAEModel

MAPS = ("kde", "residual")
GATE_SIGMA = 0.75  # tokens, of the filter over the mask of resampled tokens: the authors' 6 pixels at 8 a token


@strict
class VQVAETransformerConfig(BaselineConfig):
    """Configuration of `VQVAETransformerModel`.

    Args:
        vqvae, prior: configurations of the two networks, or their fields.
        map: "kde" or "residual".
        inference: fields of `InferenceSettings`, as calibrated; of "kde".
        token_threshold: probability below which a token is resampled, of "residual"; None is 1.3 over the number of codes.
        num_samples: resampled codes whose reconstructions are averaged, of "residual".
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
    """Map: one of `MAPS`. Score: its maximum. Every image is healed with seed 0, so that its map is always the same."""

    config_class = VQVAETransformerConfig

    def __init__(self, config: VQVAETransformerConfig):
        super().__init__(config)
        self.vqvae = VQVAEModel(config.vqvae)
        self.prior = PerformerPriorModel(config.prior)
        self.register_buffer("noise", torch.zeros(config.image_size))  # usual reconstruction error, of "kde"
        self.post_init()

    def forward(self, pixel_values: Tensor) -> AnomalyModelOutput:
        """Loss: -log likelihood of a token, mean. Prediction: that of every token, (B, *grid)."""
        check_pixels(pixel_values, self.config)
        codes = self.vqvae.encode(pixel_values)
        surprise = -self.prior.log_likelihood(codes.flatten(1)).view(codes.shape)
        return AnomalyModelOutput(loss=surprise.mean(), prediction=surprise)

    @torch.no_grad()
    def anomaly_maps(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        check_pixels(pixel_values, self.config)
        maps = self._kde_maps(pixel_values) if self.config.map == "kde" else self._residual_maps(pixel_values)
        return maps.amax((1, 2)), maps

    def as_iltm(self, processor: ILTMImageProcessor) -> ILTMAnomalyPipeline:
        """The same networks as a pipeline of ILTM, whose map "kde" is."""
        settings = InferenceSettings.from_dict(self.config.inference or {}, "inference")
        return ILTMAnomalyPipeline(self.vqvae, self.prior, processor, settings, noise=self.get_buffer("noise").cpu())

    def _kde_maps(self, pixel_values: Tensor) -> Tensor:
        height, width = self.config.image_size
        size = {"height": height, "width": width}
        pipeline = self.as_iltm(ILTMImageProcessor(size=size, num_channels=self.config.in_channels))
        return torch.stack(pipeline.score_batch(pixel_values, pipeline.settings, 0)[0])

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
            decoded = self.vqvae.decode(samples.unflatten(1, codes.shape[1:])).float().clamp(0, 1)
            maps.append(gated_residual(image.float(), decoded.mean(0), ~kept.view(codes.shape[1:])))
        return self.smoothed(torch.stack(maps))


def gated_residual(image: Tensor, healed: Tensor, resampled: Tensor) -> Tensor:
    """Absolute difference of an image (C, H, W) to its healed reconstruction, averaged over channels, times the smoothed mask of
    resampled tokens (h, w), which is 0 far from them and 1 amid many."""
    spatial = (image.shape[1], image.shape[2])
    mask = to_pixels(resampled, spatial, "nearest")
    gate = smooth(mask, GATE_SIGMA * spatial[0] / resampled.shape[0])
    return (image - healed).abs().mean(0) * gate


def residual_settings() -> dict[str, Any]:
    """What the map "residual" depends on beside the run."""
    defaults = VQVAETransformerModel.config_defaults()
    return {name: defaults[name] for name in ("token_threshold", "num_samples", "smoothing")}


def from_run(run_folder: str | Path, map: str = "kde", device: str | torch.device | None = None) -> BaselinePipeline:
    """VQ-VAE + Transformer from a finished ILTM run, calibrated on its training images as ILTM is.

    Args:
        run_folder: has rounds/round_0, model/ and images.arrow.
        map: "kde" or "residual".

    Raises:
        ValueError: if the run is not finished, or for an unknown map.
    """
    if map not in MAPS:
        raise ValueError(f"map must be one of {MAPS}, got {map!r}")
    run_folder = Path(run_folder)
    round_0 = run_folder / "rounds" / "round_0"
    if not (run_folder / "model" / "model_index.json").is_file() or not round_0.is_dir():
        raise ValueError(f"{run_folder} holds no finished run with its rounds: it has no model/ or no rounds/round_0/")
    iltm = ILTMAnomalyPipeline.from_pretrained(run_folder / "model", device=device)
    report = iltm.training_report
    iltm.prior = PerformerPriorModel.from_pretrained(round_0).eval().to(iltm.device)
    images = PixelCache(run_folder / "images.arrow")
    # as `evaluate_run` does for every round: the limit from all training images
    iltm.calibrate_surprise_limit(iltm.encode(images))
    pixel_values = calibration_images(images, report["seed"])  # those that ILTM itself was calibrated on
    iltm.calibrate_noise(pixel_values, iltm.encode(pixel_values))

    settings = vars(iltm.settings) | {"score_threshold": None}
    config = VQVAETransformerConfig(
        image_size=iltm.image_processor.padded_size,
        in_channels=iltm.image_processor.num_channels,
        vqvae=iltm.vqvae.config,
        prior=iltm.prior.config,
        map=map,
        inference=settings,
    )
    model = VQVAETransformerModel(config)
    model.vqvae.load_state_dict(iltm.vqvae.state_dict())
    model.prior.load_state_dict(iltm.prior.state_dict())
    assert iltm.noise is not None  # calibrate_noise has just measured it
    model.get_buffer("noise").copy_(iltm.noise)
    pipeline = BaselinePipeline(model, iltm.image_processor).to(iltm.device)
    pipeline.training_report = _report(report, images)
    pipeline.calibrate(pixel_values)
    return pipeline


def _report(report: dict[str, Any], images: PixelCache) -> dict[str, Any]:
    """What of a run's report is about the VQ-VAE and round 0."""
    rounds = report["rounds"][:1]
    kept = {key: report[key] for key in ("recipe", "seed", "data", "versions", "commit", "hardware") if key in report}
    return kept | {
        "method": "vqvae_transformer",
        "title": VQVAE_TRANSFORMER.title,
        "images": len(images),
        "images_sha256": images_digest(images),
        "stage1": report["stage1"],
        "rounds": rounds,
        "training_seconds": round(report["stage1"]["seconds"] + rounds[0]["seconds"], 1),
    }
