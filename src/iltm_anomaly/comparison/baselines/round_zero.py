"""VQ-VAE + Transformer from a finished ILTM run, whose round 0 it is."""

from pathlib import Path
from typing import Any

import torch

from iltm_anomaly.calibration import calibration_images
from iltm_anomaly.comparison.baselines.pipeline import BaselinePipeline
from iltm_anomaly.comparison.baselines.vqvae_transformer import MAPS, VQVAETransformerConfig, VQVAETransformerModel
from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.prior import PerformerPriorModel


def load_round_zero(run_folder: str | Path, device: str | torch.device | None = None) -> ILTMAnomalyPipeline:
    """The pipeline of a finished run with the prior of round 0 in place of the last one. Which tokens it heals is calibrated on
    all training images, as for every round; its score threshold is still that of the last round.

    Args:
        run_folder: holds rounds/round_0, model/ and images.arrow.

    Raises:
        ValueError: if the run is not finished.
    """
    run_folder = Path(run_folder)
    round_0 = run_folder / "rounds" / "round_0"
    if not (run_folder / "model" / "model_index.json").is_file() or not round_0.is_dir():
        raise ValueError(f"{run_folder} holds no finished run with its rounds: it has no model/ or no rounds/round_0/")
    pipeline = ILTMAnomalyPipeline.from_pretrained(run_folder / "model", device=device)
    pipeline.prior = PerformerPriorModel.from_pretrained(round_0).eval().to(pipeline.device)
    pipeline.calibrate_surprise_limit(pipeline.encode(PixelCache(run_folder / "images.arrow")))
    return pipeline


def from_run(run_folder: str | Path, map: str = "kde", device: str | torch.device | None = None) -> BaselinePipeline:
    """VQ-VAE + Transformer from a finished ILTM run, calibrated on the training images that ILTM itself was calibrated on.

    Args:
        run_folder: as of `load_round_zero`.
        map: "kde" or "residual".

    Raises:
        ValueError: if the run is not finished, its tokenizer is not a VQ-VAE, or for an unknown map.
    """
    if map not in MAPS:
        raise ValueError(f"map must be one of {MAPS}, got {map!r}")
    iltm = load_round_zero(run_folder, device)
    config = VQVAETransformerConfig(
        image_size=iltm.image_processor.padded_size,
        in_channels=iltm.image_processor.num_channels,
        vqvae=iltm.tokenizer.config,
        prior=iltm.prior.config,
        map=map,
        inference=vars(iltm.settings) | {"score_threshold": None},
    )
    model = VQVAETransformerModel(config)
    model.vqvae.load_state_dict(iltm.tokenizer.state_dict())
    model.prior.load_state_dict(iltm.prior.state_dict())
    if iltm.noise is not None:
        model.get_buffer("noise").copy_(iltm.noise)
    images = PixelCache(Path(run_folder) / "images.arrow")
    report = _report(iltm.training_report, images)
    pipeline = BaselinePipeline(model, iltm.image_processor, training_report=report).to(iltm.device)
    pipeline.calibrate(calibration_images(images, report["seed"]))
    return pipeline


def _report(report: dict[str, Any], images: PixelCache) -> dict[str, Any]:
    """What a run's training report says of the tokenizer and of round 0."""
    kept = {key: report[key] for key in ("recipe", "seed", "data", "versions", "commit", "hardware") if key in report}
    stage1, round_0 = report["stage1"], report["rounds"][0]
    return kept | {
        "method": "vqvae_transformer",
        "title": "VQ-VAE + Transformer",
        "images": len(images),
        "images_sha256": images.digest,
        "stage1": stage1,
        "rounds": [round_0],
        "training_seconds": round(stage1["seconds"] + round_0["seconds"], 1),
    }
