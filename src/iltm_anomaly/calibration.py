"""What the training images tell a finished pipeline: which tokens are outliers, how far pixels usually are from what is expected,
and from which score on an image is abnormal. No label is read."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from iltm_anomaly.masking import RejectionRule
from iltm_anomaly.prior import PerformerPriorModel
from iltm_anomaly.scoring import smooth
from iltm_anomaly.seeds import sample_seed
from iltm_anomaly.tokenizers.base import TokenizerModel, images_at_once

CALIBRATION_IMAGES = 96  # images scored to set the threshold; more change it little
CALIBRATION_STREAM = 12  # the random stream that they are drawn from
USUAL = 0.75  # quantile over images, which a minority of defective ones hardly moves


def calibration_images(images: Any, seed: int) -> Tensor:
    """The training images that thresholds are set by, of any method: (M, C, *spatial) in [0, 1], drawn by the seed from `images`
    (N, C, *spatial) uint8, a tensor or a `PixelCache`."""
    generator = torch.Generator().manual_seed(sample_seed(seed, CALIBRATION_STREAM))
    chosen = torch.randperm(len(images), generator=generator)[:CALIBRATION_IMAGES]
    return images[chosen.sort().values].float() / 255


@torch.no_grad()
def surprise_limit(prior: PerformerPriorModel, codes: Tensor, rule: RejectionRule) -> float:
    """The largest surprise, in nats, that `rule` keeps, from the codes (N, *grid) of all training images."""
    likelihood = prior.log_likelihood(codes.flatten(1)).view(codes.shape)
    return rule.limit(rule.surprise(likelihood))


@torch.no_grad()
def usual_error(tokenizer: TokenizerModel, pixel_values: Tensor, codes: Tensor) -> Tensor:
    """How far what is observed usually is from what an image's own codes lead one to expect, at each place.

    Args:
        pixel_values: training images (N, C, *spatial) in [0, 1].
        codes: (N, *grid), theirs.

    Returns:
        (*observed) float32: the upper quartile over images of the squared error, as a root, smoothed over a quarter of a token.
    """
    errors = []
    count = images_at_once(pixel_values)
    for batch, batch_codes in zip(pixel_values.split(count), codes.split(count), strict=True):
        observed = tokenizer.observe(batch.to(tokenizer.device))
        errors.append((tokenizer.expect(batch_codes) - observed).square().mean(1))
    typical = np.quantile(torch.cat(errors).cpu().numpy(), USUAL, axis=0).astype(np.float32)
    coarseness = pixel_values.shape[-1] / typical.shape[-1]  # pixels per observed value, 1 where pixels are observed
    return smooth(torch.from_numpy(typical).sqrt(), tokenizer.pixels_per_token / 4 / coarseness)


@torch.no_grad()
def explained_share(tokenizer: TokenizerModel, pixel_values: Tensor, codes: Tensor) -> float:
    """How much of what images differ by their own codes tell: 1 if all, 0 if no more than the mean of all images does, below 0 if
    less. Such a tokenizer draws grey images, and no map of it means anything. Arguments as of `usual_error`."""
    count = images_at_once(pixel_values)
    observed = torch.cat([tokenizer.observe(batch.to(tokenizer.device)).cpu() for batch in pixel_values.split(count)])
    expected = torch.cat([tokenizer.expect(batch).cpu() for batch in codes.split(count)])
    error, variation = (observed - expected).square().mean(), (observed - observed.mean(0)).square().mean()
    return 1 - float(error / variation.clamp(min=1e-12))
