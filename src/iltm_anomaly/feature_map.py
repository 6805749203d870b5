"""The map of a pipeline on features, from three looks at each token: fine, coarse, and at detail.

The fine look is how far a token is from the codes and from what its position usually holds; the coarse one how far the mean of
the tokens around it is from what is usual there; and the third how far its shallow levels alone are from its code. All are put on
one scale by the training images alone, and divided by how much they usually vary at a position. Training images are judged by
models that were fitted to the other half of them.
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
from iltm_anomaly.tokenizers.features.fitting import residual_lengths

LOOKS = 3
EVENNESS = 3.0  # usual variation added to each position's own, so that still positions are not blown up
LIMIT = 5.0  # of the score of an image, in distances of the upper quartile of training images from their median
LEAST_SCALE = 0.1  # of distances in a metric in which tokens usually vary by 1: images that are all alike do by less
LEAST_SPREAD = 0.02  # of scores, where 1 is the surprise of one training token in a hundred
HIGH = 0.9  # quantile of distances that sets their scale
RARE = 0.99  # quantile of a look that one training token in a hundred exceeds, and all looks are weighed at


class Distances(NamedTuple):
    """Of tokens, each (B, *grid).

    Args:
        code: to the nearest code.
        detail: the same in the levels of the backbone that see least beyond the token.
        position: to what the position usually holds.
        surroundings: of the mean of the tokens around, to what that usually is.
    """

    code: Tensor
    detail: Tensor
    position: Tensor
    surroundings: Tensor


def looks_of(distances: Distances, settings: FeatureSettings) -> Tensor:
    """The fine look, the coarse one and that at detail, (3, B, *grid), before calibration."""
    fine = settings.code_share * distances.code / (settings.code_scale or 1.0)
    fine = fine + (1 - settings.code_share) * distances.position / (settings.position_scale or 1.0)
    return torch.stack([fine, distances.surroundings, distances.detail])


def calibrated(looks: Tensor, settings: FeatureSettings, usual: Tensor | None) -> Tensor:
    """Looks (3, B, *grid) on one scale: 0 is usual, and 1 what one training token in a hundred reaches; the coarse one times its
    weight.

    Args:
        settings: calibrated or not; without calibration looks have the scale that they have.
        usual: (3, *grid), of `calibrate_looks`, or None.
    """
    medians = [settings.usual_fine or 0.0, settings.usual_coarse or 0.0, settings.usual_detail or 0.0]
    looks = looks - looks.new_tensor(medians).view(-1, *[1] * (looks.ndim - 1))
    if usual is not None:
        looks = looks / usual.to(looks.device)[:, None]
    return looks * looks.new_tensor([1, settings.coarse_weight, 1]).view(-1, *[1] * (looks.ndim - 1))


def surprise_of(looks: Tensor, settings: FeatureSettings) -> Tensor:
    """Calibrated looks (3, B, *grid) as one surprise (B, *grid), 0 where all is usual.

    It is the larger of the fine and the coarse look. Both look beyond a token, over the edge of a defect, and many normal tokens
    surprise a little. So what is beyond 1 counts more as far as detail confirms it: maps follow the edges of defects, and
    smoothing does not drown a small defect in what surrounds it.
    """
    larger = torch.maximum(looks[0], looks[1])
    return larger + settings.detail_weight * torch.minimum(larger - 1, looks[2]).clamp(min=0)


def calibrate_looks(looks: Tensor, keep: Tensor, settings: FeatureSettings) -> Tensor:
    """Sets what the looks usually are, and returns what the difference from it is divided by, (3, *grid).

    Args:
        looks: (3, N, *grid) of training images, each judged by a model that has not seen it.
        keep: (N, *grid) bool, tokens that were not rejected.
    """
    usual, medians = [], []
    for look in looks:
        median, variation = float(look[keep].median()), usual_variation(look, keep)
        rare = float(np.quantile(((look - median) / variation)[keep].numpy(), RARE))
        usual.append(variation * max(rare, LEAST_SCALE))
        medians.append(median)
    settings.usual_fine, settings.usual_coarse, settings.usual_detail = medians
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
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor, list[float]]:
    """Images (B, C, *spatial) in [0, 1] -> maps (*spatial), healed images (C, *spatial), log-likelihoods and healed tokens
    (B, *grid), all on the CPU, and scores of images; likelihoods up to a constant."""
    spatial = tuple(pixel_values.shape[2:])
    # 1. images become tokens, which are compared with the codes and with what their positions usually hold, alone and together
    codes, distances = distances_of(tokenizer, prior, pixel_values)
    looks = calibrated(looks_of(distances, settings), settings, usual)
    surprise = surprise_of(looks, settings)
    # 2. in place of surprising tokens stand the normal patches that are most like them
    healed = surprise > (math.inf if settings.token_limit is None else settings.token_limit)
    pictures = []
    for own, where, pixels in zip(codes, healed, pixel_values.float(), strict=True):
        if bool(where.any()):
            pixels = tokenizer.show_codes(own).where(to_pixels(where, spatial, "nearest") > 0, pixels)
        pictures.append(pixels.cpu())
    # 3. surprise becomes a map, and that and the looks a score
    made = [map_of(looks[:, number], settings, spatial, tokenizer.pixels_per_token) for number in range(len(codes))]
    likelihood = -(distances.code.square() + distances.position.square()) / 2
    scores = [image_score(highest, settings) for _, highest in made]
    return [values for values, _ in made], pictures, likelihood.cpu(), healed.cpu(), scores


def distances_of(
    tokenizer: FeatureTokenizerModel, prior: PositionPriorModel, pixel_values: Tensor
) -> tuple[Tensor, Distances]:
    """Codes (B, *grid) of images (B, C, *spatial) in [0, 1], and the distances of their tokens."""
    codes, observed = tokenizer.tokenize(pixel_values)
    residuals = (observed - tokenizer.expect(codes)).movedim(1, -1)
    code, detail = residual_lengths(residuals, tokenizer.get_buffer("detail"))
    return codes, Distances(code, detail, *prior(observed))


def scored_surprises(looks: Tensor, settings: FeatureSettings) -> Tensor:
    """What a score rests on, (2, *grid) of calibrated looks (3, *grid) at one image: the surprise that becomes its map, and the
    sum of the fine and the coarse look."""
    return torch.stack([surprise_of(looks, settings) / (settings.map_scale or 1.0), looks[0] + looks[1]])


def map_of(
    looks: Tensor, settings: FeatureSettings, spatial: tuple[int, ...], pixels_per_token: int
) -> tuple[Tensor, Tensor]:
    """Calibrated looks (3, *grid) at one image -> its map (*spatial), and the means of the highest values (2,) of the map and of
    the sum of the fine and the coarse look; on the CPU."""
    surprises = scored_surprises(looks, settings).cpu()
    smoothing = settings.smoothing * pixels_per_token
    maps = torch.stack([smooth(to_pixels(one, spatial), smoothing) for one in surprises]).flatten(1)
    count = max(1, round(settings.score_share * maps.shape[1]))
    return maps[0].view(spatial), maps.topk(count).values.mean(1)


def image_score(highest: Tensor, settings: FeatureSettings) -> float:
    """The score of an image from its highest values (2,), of `map_of`: the larger of both, each in distances of the upper
    quartile of training images from their median. What surprises in a small place raises the first, and what surprises both
    looks a little the second."""
    return float(max(highest[0], highest[1] / (settings.sum_scale or 1.0) + (settings.sum_offset or 0.0)))


def looks_good(clean: Tensor) -> Tensor:
    """(N,) bool, images that are taken for good: those that no token was rejected in, or all where these are fewer than half."""
    return clean if int(clean.sum()) >= len(clean) / 2 else torch.ones_like(clean)


def calibrate_scores(highest: Tensor, clean: Tensor, settings: FeatureSettings) -> Tensor:
    """Sets the scales of map and score, threshold and share of false alarms, and returns the scores (N,) of training images.

    Args:
        highest: (N, 2), of `map_of`, without `map_scale`, of training images, each judged by models that have not seen it.
        clean: (N,) bool, images that no token was rejected in; defects may be left in some of them.
    """
    own = highest[looks_good(clean)].numpy()
    # a few defects move neither median nor upper quartile
    medians, quartiles = np.quantile(own, [0.5, 0.75], axis=0)
    settings.map_scale, settings.sum_scale = np.maximum(quartiles - medians, LEAST_SPREAD).tolist()
    settings.sum_offset = float(medians[0] / settings.map_scale - medians[1] / settings.sum_scale)
    scaled = highest / torch.tensor([settings.map_scale, 1.0])
    scores = torch.tensor([image_score(one, settings) for one in scaled])
    settings.score_threshold = float(medians[0] / settings.map_scale) + LIMIT
    settings.false_alarm_share = float((scores >= settings.score_threshold).float().mean())
    return scores


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
