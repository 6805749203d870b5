"""The map of a pipeline on features, from two looks at each token, fine and coarse.

The fine look is how far a token is from the codes and from what its position usually holds; the coarse one how far the mean of
the tokens around it is from what is usual there. All are put on one scale by the training images alone, and divided by how much
they usually vary at a position. Training images are judged by models that were fitted to the other half of them.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from iltm_anomaly.masking import NORMAL_MAD
from iltm_anomaly.prior import PositionPriorModel
from iltm_anomaly.scoring import smooth, to_pixels
from iltm_anomaly.settings import FeatureSettings
from iltm_anomaly.tokenizers.features import FeatureTokenizerModel

LOOKS = 2
EVENNESS = 3.0  # usual variation added to each position's own, so that still positions are not blown up
QUARTILES = 4.0  # from the median to the threshold, in distances to the upper quartile: 3 in 1000 of normally distributed scores
LEAST_SCALE = 0.1  # of distances in a metric in which tokens usually vary by 1: images that are all alike do by less
HIGH = 0.9  # quantile of distances that sets their scale
RARE = 0.99  # quantile of a look that one training token in a hundred exceeds, and both looks are weighed at


class Distances(NamedTuple):
    """Of tokens, each (B, *grid).

    Args:
        code: to the nearest code.
        position: to what the position usually holds.
        surroundings: of the mean of the tokens around, to what that usually is.
    """

    code: Tensor
    position: Tensor
    surroundings: Tensor


def two_looks(distances: Distances, settings: FeatureSettings) -> Tensor:
    """The fine and the coarse look (2, B, *grid), before calibration."""
    fine = settings.code_share * distances.code / (settings.code_scale or 1.0)
    fine = fine + (1 - settings.code_share) * distances.position / (settings.position_scale or 1.0)
    return torch.stack([fine, distances.surroundings])


def combined(looks: Tensor, settings: FeatureSettings, usual: Tensor | None) -> Tensor:
    """Two looks (2, B, *grid) as one surprise (B, *grid): the larger of both, the coarse one times its weight. It is 0 where all
    is usual, and 1 where one training token in a hundred is.

    Args:
        settings: calibrated or not; without calibration looks have the scale that they have.
        usual: (2, *grid), of `calibrate_looks`, or None.
    """
    fine, coarse = looks[0] - (settings.usual_fine or 0.0), looks[1] - (settings.usual_coarse or 0.0)
    if usual is not None:
        fine, coarse = fine / usual[0].to(fine.device), coarse / usual[1].to(fine.device)
    return torch.maximum(fine, settings.coarse_weight * coarse)


def calibrate_looks(looks: Tensor, keep: Tensor, settings: FeatureSettings) -> Tensor:
    """Sets what both looks usually are, and returns what the difference from it is divided by, (2, *grid).

    Args:
        looks: (2, N, *grid) of training images, each judged by a model that has not seen it.
        keep: (N, *grid) bool, tokens that were not rejected.
    """
    usual, medians = [], []
    for look in looks:
        median, variation = float(look[keep].median()), usual_variation(look, keep)
        rare = float(np.quantile(((look - median) / variation)[keep].numpy(), RARE))
        usual.append(variation * max(rare, LEAST_SCALE))
        medians.append(median)
    settings.usual_fine, settings.usual_coarse = medians
    return torch.stack(usual)


def token_limit(surprise: Tensor, keep: Tensor) -> float:
    """Surprise that one in a thousand of the kept training tokens reaches; arguments as of `usual_variation`."""
    return float(np.quantile(surprise[keep].numpy(), 0.999))


@torch.no_grad()
def score_images(
    tokenizer: FeatureTokenizerModel,
    prior: PositionPriorModel,
    pixel_values: Tensor,
    settings: FeatureSettings,
    usual: Tensor | None,
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Images (B, C, *spatial) in [0, 1] -> maps (*spatial), healed images (C, *spatial), log-likelihoods and healed tokens
    (B, *grid), all on the CPU; likelihoods up to a constant."""
    spatial = tuple(pixel_values.shape[2:])
    # 1. images become tokens, which are compared with the codes and with what their positions usually hold, alone and together
    codes, distances = distances_of(tokenizer, prior, pixel_values)
    surprise = combined(two_looks(distances, settings), settings, usual)
    # 2. in place of surprising tokens stand the normal patches that are most like them
    healed = surprise > (math.inf if settings.token_limit is None else settings.token_limit)
    pictures = []
    for own, where, pixels in zip(codes, healed, pixel_values.float(), strict=True):
        if bool(where.any()):
            pixels = tokenizer.show_codes(own).where(to_pixels(where, spatial, "nearest") > 0, pixels)
        pictures.append(pixels.cpu())
    # 3. surprise becomes a map
    maps = [to_map(one, spatial, settings, tokenizer.pixels_per_token) for one in surprise]
    likelihood = -(distances.code.square() + distances.position.square()) / 2
    return maps, pictures, likelihood.cpu(), healed.cpu()


def distances_of(
    tokenizer: FeatureTokenizerModel, prior: PositionPriorModel, pixel_values: Tensor
) -> tuple[Tensor, Distances]:
    """Codes (B, *grid) of images (B, C, *spatial) in [0, 1], and the distances of their tokens."""
    codes, observed = tokenizer.tokenize(pixel_values)
    to_code = (observed - tokenizer.expect(codes)).square().sum(1).sqrt()
    return codes, Distances(to_code, *prior(observed))


def to_map(surprise: Tensor, spatial: tuple[int, ...], settings: FeatureSettings, pixels_per_token: int) -> Tensor:
    """Surprise of the tokens of one image (*grid) -> map (*spatial) on the CPU."""
    return smooth(to_pixels(surprise.cpu(), spatial), settings.smoothing * pixels_per_token)


def image_score(values: Tensor | np.ndarray, share: float) -> float:
    """Mean of the highest values of a map, a `share` of it."""
    flat = torch.as_tensor(values).flatten()
    return float(flat.topk(max(1, round(share * len(flat)))).values.mean())


def distance_scale(distances: Tensor) -> float:
    """From the median of distances (N,) to their 90th percentile."""
    median, high = np.quantile(distances.numpy(), [0.5, HIGH])
    return max(float(high - median), LEAST_SCALE)


def usual_variation(surprise: Tensor, keep: Tensor) -> Tensor:
    """How much surprise usually varies at each position, over what it varies in all.

    Args:
        surprise: (N, *grid) of training images, each judged by a model that has not seen it.
        keep: (N, *grid) bool, tokens that were not rejected.

    Returns:
        (*grid) float32, about 1: robust standard deviations, evened out by `EVENNESS` of the median one.
    """
    values = torch.where(keep, surprise, torch.nan)
    deviation = NORMAL_MAD * (values - values.nanmedian(0).values).abs().nanmedian(0).values
    typical = deviation.nanmedian().clamp(min=0.01)
    return (deviation.nan_to_num(nan=float(typical)) + EVENNESS * typical) / ((1 + EVENNESS) * typical)


def threshold_of(scores: Tensor, clean: Tensor) -> tuple[float, float]:
    """From which score on an image is called abnormal, and which share of all training images reaches it.

    Args:
        scores: (N,) of training images, each judged by models that have not seen it.
        clean: (N,) bool, images that no token was rejected in; defects may be left in some of them.
    """
    own = (scores[clean] if int(clean.sum()) >= len(scores) / 2 else scores).numpy()
    # The tail of the logarithms, drawn out from the median and the upper quartile: a few defects in it move neither.
    median, upper = np.quantile(np.log(np.maximum(own, 1e-6)), [0.5, 0.75])
    threshold = float(np.exp(median + (upper - median) * QUARTILES))
    return threshold, float((scores >= threshold).float().mean())
