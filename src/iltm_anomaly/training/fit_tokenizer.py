"""Stage 1: the VQ-VAE, trained on augmented images (appendix A)."""

import logging
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.seeds import sample_seed
from iltm_anomaly.tokenizers.base import images_at_once
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig, VQVAEModel
from iltm_anomaly.training.batches import total_steps
from iltm_anomaly.training.context import STREAM_STAGE1, RunContext
from iltm_anomaly.training.fit import Objective, fit
from iltm_anomaly.training.pictures import picture_reconstructions

logger = logging.getLogger(__name__)

CODEBOOK_IMAGES = 128  # images whose encoder outputs the codebook starts from
REPORTED_IMAGES = 256  # images whose reconstructions are measured at the end
PICTURES = 10  # of reconstructions, over the stage


def fit_tokenizer(run: RunContext, pixels: PixelCache) -> tuple[VQVAEModel, dict[str, Any]]:
    """The run's tokenizer and its report: loaded if the stage is finished, else trained from its checkpoint or from the start.

    Args:
        pixels: the training images, (N, C, *spatial) uint8.
    """
    stage = run.folder.stage("tokenizer", follows=pixels.digest)
    finished = stage.load(VQVAEModel)
    if finished is not None:
        return finished
    run.start_weights(0)
    model = run.placed(VQVAEModel(VQVAEConfig(in_channels=run.recipe.num_channels, **run.recipe.vqvae)))
    if not run.recipe.is_volumetric:
        model = model.to(memory_format=torch.channels_last)
    tokens = math.prod(model.grid_shape(pixels.shape[2:]))
    settings = run.loop_settings("tokenizer", STREAM_STAGE1, pixels.digest, tokens_per_sample=tokens)
    objective = VQVAEObjective(run, model, pixels, settings.seed)
    report: dict[str, Any] = fit(run.accelerator, objective, run.recipe.stage1, len(pixels), settings)
    report |= _reconstruction_report(run, model, pixels)
    picture_reconstructions(run, model, pixels, objective.steps)
    model = model.to(memory_format=torch.contiguous_format)
    return model, stage.save(model, report)


class VQVAEObjective(Objective):
    """Reconstruction of augmented images. Until `codebook_start` nothing is quantised; then the codebook is put onto the
    encoder's outputs by k-means.

    Args:
        seed: of the stage.
    """

    model: VQVAEModel

    def __init__(self, run: RunContext, model: VQVAEModel, pixels: PixelCache, seed: int):
        super().__init__(model)
        self.run, self.pixels, self.seed = run, pixels, seed
        self.steps = total_steps(run.recipe.stage1, len(pixels))
        self.start = run.recipe.codebook_start
        if self.start is not None and self.start >= self.steps:
            logger.warning(
                "stage 1 has %d steps, fewer than codebook_start: the codebook starts half-way. Train it longer, or lower "
                "codebook_start",
                self.steps,
            )
            self.start = self.steps // 2

    def inputs(self, indices: Tensor, step: int) -> dict[str, Tensor]:
        # seeded by step and image, not by process: the same batch whatever the number of processes
        seeds = [sample_seed(self.seed, 3, step, int(index)) for index in indices]
        batch = self.run.augmented(self.pixels[indices], seeds)
        return {"pixel_values": batch.contiguous(memory_format=torch.channels_last) if batch.dim() == 4 else batch}

    def before_step(self, step: int, epoch: int) -> None:
        quantizer = self.model.quantizer
        if self.start is not None and step <= self.start:
            quantizer.bypass = step < self.start
            if step == self.start:
                self._start_codebook()
        decay = self.run.recipe.stage1.ema_decay_at(epoch)
        if decay is not None:
            quantizer.decay = decay
        if step and step % max(1, self.steps // PICTURES) == 0:
            picture_reconstructions(self.run, self.model, self.pixels, step)

    def before_forward(self, is_last: bool) -> None:
        self.model.quantizer.defer = not is_last

    def measure(self) -> dict[str, float]:
        count = self.model.quantizer.code_count
        return {"codebook_use": round((count > 0.01 * count.mean()).float().mean().item(), 4)}

    def _start_codebook(self) -> None:
        sample = self.pixels[:: max(1, len(self.pixels) // CODEBOOK_IMAGES)][:CODEBOOK_IMAGES]
        if self.run.recipe.is_volumetric:
            sample = sample[: images_at_once(self.pixels[:1])]  # one holds more codes than many images
        self.model.initialize_codebook(sample.to(self.run.device).float() / 255)


@torch.no_grad()
def _reconstruction_report(run: RunContext, model: VQVAEModel, pixels: PixelCache) -> dict[str, float]:
    """Squared error and codes in use over the first training images, without augmentation or dropout."""
    model.eval()
    errors, used = [], set()
    for batch in pixels[:REPORTED_IMAGES].split(images_at_once(pixels[:1], 16)):
        batch = batch.to(run.device).float() / 255
        output = model(batch)
        errors.append((output.reconstruction - batch).square().mean().item())
        used.update(output.codes.unique().tolist())
    return {"mse": float(np.mean(errors)), "codes_in_use": len(used)}
