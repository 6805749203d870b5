"""Pictures of a run under way: what the tokenizer makes of the first images, and what surprises the prior in them."""

import math

import numpy as np
import torch
from torch import Tensor

from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.prior import PerformerPriorModel
from iltm_anomaly.tokenizers.base import TokenizerModel, images_at_once
from iltm_anomaly.tokenizers.vqvae import VQVAEModel
from iltm_anomaly.training.context import RunContext
from iltm_anomaly.training.tracking import panel

PICTURED = 4  # images


@torch.no_grad()
def picture_reconstructions(run: RunContext, model: VQVAEModel, pixels: PixelCache, step: int) -> None:
    """Input and reconstruction of the first images, side by side; the model is left in the mode it was in."""
    if not run.accelerator.is_main_process:
        return
    was_training = model.training
    model.eval()
    batch = _first_images(run, pixels)
    rows = [[_displayed(a), _displayed(b)] for a, b in zip(batch, model(batch).reconstruction, strict=True)]
    model.train(was_training)
    run.log.picture("reconstructions", panel(rows), step)


@torch.no_grad()
def picture_surprise(
    run: RunContext, number: int, tokenizer: TokenizerModel, prior: PerformerPriorModel, pixels: PixelCache
) -> None:
    """Of the first images: input, what their codes lead one to expect, and how surprising the prior of round `number` finds each
    token; white is as surprising as chance."""
    if not run.accelerator.is_main_process:
        return
    batch = _first_images(run, pixels)
    codes = tokenizer.encode(batch)
    surprise = -prior.log_likelihood(codes.flatten(1)).unflatten(1, codes.shape[1:])
    strength = surprise / math.log(prior.config.vocab_size)
    for axis in range(1, strength.dim()):
        strength = strength.repeat_interleave(tokenizer.pixels_per_token, axis)
    rows = [
        [_displayed(a), _displayed(tokenizer.show(b)), _displayed(c.unsqueeze(0))]
        for a, b, c in zip(batch, tokenizer.expect(codes), strength, strict=True)
    ]
    run.log.picture(f"surprise_round_{number}", panel(rows), run.steps_before_round(number + 1, len(pixels)))


def _first_images(run: RunContext, pixels: PixelCache) -> Tensor:
    return pixels[: images_at_once(pixels[:1], PICTURED)].to(run.device).float() / 255


def _displayed(values: Tensor) -> np.ndarray:
    """(C, H, W), or (C, D, H, W) of which the middle slice is taken -> (H, W, C)."""
    if values.dim() == 4:
        values = values[:, values.shape[1] // 2]
    return values.permute(1, 2, 0).float().cpu().numpy()
